"""Every operation on all cores through numba; results equal `kernels.reference`."""
