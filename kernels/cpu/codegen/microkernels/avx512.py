"""AVX-512: 32 registers of 512 bits."""

from __future__ import annotations

from kernels.cpu.codegen.microkernels.contract import F32, S16, MicroKernel

__all__ = ["KERNELS"]

KERNELS = (
    MicroKernel(
        isa="avx512",
        operands=S16,
        lanes=16,
        rows=14,
        multiply_add=(
            ("a", "bitcast <16 x i32> {data} to <32 x i16>"),
            ("b", "bitcast <16 x i32> {weights} to <32 x i16>"),
            ("p", "call <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16> {a}, <32 x i16> {b})"),
            ("s", "add <16 x i32> {sums}, {p}"),
        ),
        declarations="declare <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16>, <32 x i16>)",
        features=("avx512f", "avx512bw"),
        instruction="vpmaddwd",
        cpu="skylake-avx512",
        priority=4,
    ),
    MicroKernel(
        isa="avx512",
        operands=F32,
        lanes=16,
        rows=14,
        multiply_add=(
            (
                "s",
                "call <16 x float> @llvm.fma.v16f32"
                "(<16 x float> {data}, <16 x float> {weights}, <16 x float> {sums})",
            ),
        ),
        declarations=(
            "declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)"
        ),
        features=("avx512f",),
        compress="llvm.x86.avx512.mask.compress.v16i32",
        instruction="vfmadd",
        cpu="skylake-avx512",
        priority=4,
    ),
)
