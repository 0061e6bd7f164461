"""AMX: matrices of 16 rows of 64 bytes in registers; ``tdpbusd`` multiplies two, exactly."""

from __future__ import annotations

from dataclasses import replace

from kernels.cpu.codegen.microkernels.vnni import KERNELS as VNNI

__all__ = ["KERNELS"]

_WIDE = next(kernel for kernel in VNNI if kernel.lanes == 16)

KERNELS = (
    replace(
        _WIDE,
        isa="amx",
        matrix=True,
        features=(*_WIDE.features, "amx-tile", "amx-int8"),
        priority=7,
    ),
)
