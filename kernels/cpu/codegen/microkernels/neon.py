"""NEON on 64-bit ARM: 32 registers of 128 bits; ``sdot`` adds four products of bytes, exactly."""

from __future__ import annotations

from kernels.cpu.codegen.microkernels.contract import F32, S8, S16, MicroKernel

__all__ = ["KERNELS"]

# With more rows LLVM moves sums about or spills them, though registers would hold them.

_TRIPLE = "aarch64-unknown-linux-gnu"
_PRODUCTS = "@llvm.aarch64.neon.smull.v4i32(<4 x i16>"
_PAIRS = "@llvm.aarch64.neon.addp.v4i32(<4 x i32>"
_DOT = "@llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>"
_LOW, _HIGH = (f"<4 x i32> <{', '.join(f'i32 {i + k}' for k in range(4))}>" for i in (0, 4))


def _half(value: str, places: str) -> str:
    return f"shufflevector <8 x i16> {{{value}}}, <8 x i16> poison, {places}"


KERNELS = (
    MicroKernel(
        isa="neon",
        operands=S16,
        lanes=4,
        rows=8,
        multiply_add=(
            ("a", "bitcast <4 x i32> {data} to <8 x i16>"),
            ("b", "bitcast <4 x i32> {weights} to <8 x i16>"),
            ("a0", _half("a", _LOW)),
            ("b0", _half("b", _LOW)),
            ("a1", _half("a", _HIGH)),
            ("b1", _half("b", _HIGH)),
            ("p0", f"call <4 x i32> {_PRODUCTS} {{a0}}, <4 x i16> {{b0}})"),
            ("p1", f"call <4 x i32> {_PRODUCTS} {{a1}}, <4 x i16> {{b1}})"),
            ("p", f"call <4 x i32> {_PAIRS} {{p0}}, <4 x i32> {{p1}})"),
            ("s", "add <4 x i32> {sums}, {p}"),
        ),
        declarations=(
            f"declare <4 x i32> {_PRODUCTS}, <4 x i16>)\ndeclare <4 x i32> {_PAIRS}, <4 x i32>)"
        ),
        features=("neon",),
        instruction="addp",
        cpu="cortex-a53",
        triple=_TRIPLE,
        priority=2,
    ),
    MicroKernel(
        isa="neondot",
        operands=S8,
        lanes=4,
        rows=12,
        multiply_add=(
            ("a", "bitcast <4 x i32> {data} to <16 x i8>"),
            ("b", "bitcast <4 x i32> {weights} to <16 x i8>"),
            ("s", f"call <4 x i32> {_DOT} {{sums}}, <16 x i8> {{a}}, <16 x i8> {{b}})"),
        ),
        declarations=f"declare <4 x i32> {_DOT}, <16 x i8>, <16 x i8>)",
        features=("neon", "dotprod"),
        instruction="sdot",
        cpu="neoverse-n1",
        triple=_TRIPLE,
        priority=5,
    ),
    MicroKernel(
        isa="neon",
        operands=F32,
        lanes=4,
        rows=12,
        multiply_add=(
            (
                "s",
                "call <4 x float> @llvm.fma.v4f32"
                "(<4 x float> {data}, <4 x float> {weights}, <4 x float> {sums})",
            ),
        ),
        declarations="declare <4 x float> @llvm.fma.v4f32(<4 x float>, <4 x float>, <4 x float>)",
        features=("neon",),
        instruction="fmla",
        cpu="cortex-a53",
        triple=_TRIPLE,
        priority=2,
    ),
)
