"""AVX2 and FMA: 16 registers of 256 bits."""

from __future__ import annotations

from kernels.cpu.codegen.microkernels.contract import F32, S16, MicroKernel

__all__ = ["KERNELS"]

KERNELS = (
    MicroKernel(
        isa="avx2",
        operands=S16,
        lanes=8,
        rows=6,
        multiply_add=(
            ("a", "bitcast <8 x i32> {data} to <16 x i16>"),
            ("b", "bitcast <8 x i32> {weights} to <16 x i16>"),
            ("p", "call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> {a}, <16 x i16> {b})"),
            ("s", "add <8 x i32> {sums}, {p}"),
        ),
        declarations="declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)",
        features=("avx2",),
        excluded=("avx512f", "avxvnni"),
        instruction="vpmaddwd",
        cpu="haswell",
        priority=2,
    ),
    MicroKernel(
        isa="avx2",
        operands=F32,
        lanes=8,
        rows=6,
        multiply_add=(
            (
                "s",
                "call <8 x float> @llvm.fma.v8f32"
                "(<8 x float> {data}, <8 x float> {weights}, <8 x float> {sums})",
            ),
        ),
        declarations="declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)",
        features=("avx2", "fma"),
        excluded=("avx512f",),
        instruction="vfmadd",
        cpu="haswell",
        priority=2,
    ),
)
