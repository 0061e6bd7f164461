"""Plain arithmetic, on any processor."""

from __future__ import annotations

from kernels.cpu.codegen.microkernels.contract import F32, S16, MicroKernel

__all__ = ["KERNELS"]

_V = "<4 x i32>"
_HALF = "<i32 16, i32 16, i32 16, i32 16>"

KERNELS = (
    MicroKernel(
        isa="portable",
        operands=S16,
        lanes=4,
        rows=4,
        multiply_add=(
            ("a1", f"ashr {_V} {{data}}, {_HALF}"),
            ("b1", f"ashr {_V} {{weights}}, {_HALF}"),
            ("as", f"shl {_V} {{data}}, {_HALF}"),
            ("bs", f"shl {_V} {{weights}}, {_HALF}"),
            ("a0", f"ashr {_V} {{as}}, {_HALF}"),
            ("b0", f"ashr {_V} {{bs}}, {_HALF}"),
            ("p1", f"mul {_V} {{a1}}, {{b1}}"),
            ("p0", f"mul {_V} {{a0}}, {{b0}}"),
            ("p", f"add {_V} {{p0}}, {{p1}}"),
            ("s", f"add {_V} {{sums}}, {{p}}"),
        ),
    ),
    MicroKernel(
        isa="portable",
        operands=F32,
        lanes=4,
        rows=4,
        multiply_add=(
            ("p", "fmul <4 x float> {data}, {weights}"),
            ("s", "fadd <4 x float> {sums}, {p}"),
        ),
    ),
)
