"""NEON on 64-bit ARM: 32 registers of 128 bits; its dot products add four products of bytes."""

from __future__ import annotations

from kernels.cpu.codegen.microkernels.contract import F32, S8, S16, U8, MicroKernel, Operands

__all__ = ["KERNELS"]

# With more rows LLVM moves sums about or spills them, though registers would hold them.

_TRIPLE = "aarch64-unknown-linux-gnu"
_PRODUCTS = "@llvm.aarch64.neon.smull.v4i32(<4 x i16>"


def _pick(value: str, *places: int) -> str:
    mask = ", ".join(f"i32 {place}" for place in places)
    return f"shufflevector <8 x i16> {{{value}}}, <8 x i16> poison, <{len(places)} x i32> <{mask}>"


def _dot(
    isa: str, operands: Operands, instruction: str, feature: str, cpu: str, priority: int
) -> MicroKernel:
    name = f"@llvm.aarch64.neon.{instruction}.v4i32.v16i8(<4 x i32>"
    return MicroKernel(
        isa=isa,
        operands=operands,
        lanes=4,
        rows=12,
        multiply_add=(
            ("a", "bitcast <4 x i32> {data} to <16 x i8>"),
            ("b", "bitcast <4 x i32> {weights} to <16 x i8>"),
            ("s", f"call <4 x i32> {name} {{sums}}, <16 x i8> {{a}}, <16 x i8> {{b}})"),
        ),
        declarations=f"declare <4 x i32> {name}, <16 x i8>, <16 x i8>)",
        features=("neon", feature),
        instruction=instruction,
        cpu=cpu,
        triple=_TRIPLE,
        priority=priority,
    )


KERNELS = (
    MicroKernel(
        isa="neon",
        operands=S16,
        lanes=4,
        rows=10,
        # the first values of all words, then the second ones: products need no adding in pairs
        multiply_add=(
            ("a", "bitcast <4 x i32> {data} to <8 x i16>"),
            ("b", "bitcast <4 x i32> {weights} to <8 x i16>"),
            ("a01", _pick("a", 0, 2, 4, 6, 1, 3, 5, 7)),
            ("b01", _pick("b", 0, 2, 4, 6, 1, 3, 5, 7)),
            ("a0", _pick("a01", 0, 1, 2, 3)),
            ("b0", _pick("b01", 0, 1, 2, 3)),
            ("a1", _pick("a01", 4, 5, 6, 7)),
            ("b1", _pick("b01", 4, 5, 6, 7)),
            ("p0", f"call <4 x i32> {_PRODUCTS} {{a0}}, <4 x i16> {{b0}})"),
            ("p1", f"call <4 x i32> {_PRODUCTS} {{a1}}, <4 x i16> {{b1}})"),
            ("s0", "add <4 x i32> {sums}, {p0}"),
            ("s", "add <4 x i32> {s0}, {p1}"),
        ),
        declarations=f"declare <4 x i32> {_PRODUCTS}, <4 x i16>)",
        features=("neon",),
        instruction="smlal2",
        cpu="cortex-a53",
        triple=_TRIPLE,
        priority=2,
    ),
    _dot("neondot", S8, "sdot", "dotprod", "neoverse-n1", 5),
    # as fast, but what it stores for the next layer saturates: one instruction less a vector
    _dot("neonusdot", U8, "usdot", "i8mm", "neoverse-n2", 6),
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
