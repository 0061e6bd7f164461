"""One file for each instruction set: how it multiplies and adds words of four bytes.

A word is four bytes of data beside four of weights: one float32, two int16 or four 8-bit
values (`Operands`). A `MicroKernel` says what one instruction does with a vector of words;
`kernels.cpu.codegen.gemm` makes whole tiles of it. To add one for another instruction set, add a
file here with ``KERNELS``, a tuple of `MicroKernel`; the tests find it by itself.
"""

from __future__ import annotations

from kernels.cpu.codegen.microkernels.choice import all_kernels, choose
from kernels.cpu.codegen.microkernels.contract import F32, S8, S16, U8, MicroKernel, Operands

__all__ = ["F32", "S8", "S16", "U8", "MicroKernel", "Operands", "all_kernels", "choose"]
