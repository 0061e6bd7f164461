"""VNNI: ``vpdpbusd`` adds four products of bytes to a sum, exactly."""

from __future__ import annotations

from kernels.cpu.codegen.microkernels.contract import U8, MicroKernel

__all__ = ["KERNELS"]


def _vnni(
    isa: str, lanes: int, rows: int, features: tuple[str, ...], cpu: str, priority: int
) -> MicroKernel:
    kind = f"<{lanes} x i32>"
    name = f"@llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return MicroKernel(
        isa=isa,
        operands=U8,
        lanes=lanes,
        rows=rows,
        multiply_add=(
            ("s", f"call {kind} {name}({kind} {{sums}}, {kind} {{data}}, {kind} {{weights}})"),
        ),
        declarations=f"declare {kind} {name}({kind}, {kind}, {kind})",
        features=features,
        excluded=() if lanes > 8 else ("avx512f",),
        instruction="vpdpbusd",
        cpu=cpu,
        priority=priority,
    )


KERNELS = (
    _vnni("avxvnni", 8, 6, ("avxvnni",), "alderlake", 5),
    _vnni("avx512vnni", 16, 14, ("avx512f", "avx512vnni"), "cascadelake", 6),
)
