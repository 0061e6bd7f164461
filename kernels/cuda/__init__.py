"""The CUDA backend: the operations of the CPU under the same file names, on device arrays."""
