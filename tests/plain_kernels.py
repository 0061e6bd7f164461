"""Micro-kernels in plain arithmetic, for operands that this processor has no instruction for."""

from __future__ import annotations

from kernels.cpu.codegen.microkernels import S8, MicroKernel

#: Bytes as they are, as ARM's dot product takes them, in plain arithmetic.
PLAIN_S8 = MicroKernel(
    isa="plain",
    operands=S8,
    lanes=4,
    rows=8,
    multiply_add=(
        ("a", "bitcast <4 x i32> {data} to <16 x i8>"),
        ("b", "bitcast <4 x i32> {weights} to <16 x i8>"),
        ("x", "sext <16 x i8> {a} to <16 x i32>"),
        ("y", "sext <16 x i8> {b} to <16 x i32>"),
        ("p", "mul <16 x i32> {x}, {y}"),
        *(
            (
                f"p{i}",
                "shufflevector <16 x i32> {p}, <16 x i32> poison, "
                f"<4 x i32> <{', '.join(f'i32 {4 * lane + i}' for lane in range(4))}>",
            )
            for i in range(4)
        ),
        ("s0", "add <4 x i32> {sums}, {p0}"),
        ("s1", "add <4 x i32> {s0}, {p1}"),
        ("s2", "add <4 x i32> {s1}, {p2}"),
        ("s", "add <4 x i32> {s2}, {p3}"),
    ),
    priority=9,
)
