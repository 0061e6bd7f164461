"""Transposing a matrix, as machine code: blocks are transposed in registers by interleaving.

``turn(target, target_step, source, source_step, rows, columns, add)`` fills
``target[c][r] = source[r][c] + add``; steps are the bytes from one row to the next of either.
A block is `size` by `size`; the last ones lie over those before, so there must be one each way.
"""

from __future__ import annotations

from functools import lru_cache

from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Value

__all__ = ["SIZES", "compiled", "turn_text"]

#: Blocks there are, the fastest first.
SIZES = (16, 8, 4)


@lru_cache(maxsize=32)
def compiled(source: str, target: str, size: int) -> int:
    """Return the address of ``turn`` between two types of LLVM, in blocks of a size."""
    return compile_text(turn_text(source, target, size), "turn")


def _turned(rows: list[Value]) -> list[Value]:
    """Transpose a block: each round interleaves the first half of the rows with the second."""
    size = len(rows)
    low = [p for i in range(size // 2) for p in (i, i + size)]
    high = [p + size // 2 for p in low]
    for _ in range(size.bit_length() - 1):
        pairs = list(zip(rows[: size // 2], rows[size // 2 :], strict=True))
        rows = [a.shuffle(places, b) for a, b in pairs for places in (low, high)]
    return rows


def turn_text(source: str, target: str, size: int) -> str:
    """Return the LLVM text of ``turn``."""
    pointers = ("target", "source")
    names = ("target", "target_step", "source", "source_step", "rows", "columns", "add")
    w = Writer("turn", [("ptr" if n in pointers else "i64", n) for n in names])
    w.label("entry")
    w.named("%last_r", f"sub i64 %rows, {size}")
    w.named("%last_c", f"sub i64 %columns, {size}")
    if target != "float":
        added = Value(w, "i64", 0, "%add").to(target).splat(size)
    w.do("br label %column")
    w.label("column")
    w.phi("%c", "i64", entry="0", next_column="%c_next")
    w.named("%c0", "call i64 @llvm.smin.i64(i64 %c, i64 %last_c)")
    w.do("br label %row")
    w.label("row")
    w.phi("%r", "i64", column="0", row="%r_next")
    w.named("%r0", "call i64 @llvm.smin.i64(i64 %r, i64 %last_r)")
    w.declare("declare i64 @llvm.smin.i64(i64, i64)")
    block = []
    for i in range(size):
        line = w.at("%source", w.value(f"mul i64 %source_step, {w.value(f'add i64 %r0, {i}')}"))
        x = Value.load(w, source, size, w.element(source, line, "%c0"))
        block.append(x if target == "float" else x.to(target) + added)
    for i, turned in enumerate(_turned(block)):
        line = w.at("%target", w.value(f"mul i64 %target_step, {w.value(f'add i64 %c0, {i}')}"))
        turned.store(w.element(target, line, "%r0"))
    w.named("%r_next", f"add i64 %r, {size}")
    w.loop("row", "%r_next", "%rows", "next_column")
    w.label("next_column")
    w.named("%c_next", f"add i64 %c, {size}")
    w.loop("column", "%c_next", "%columns", "done")
    w.label("done")
    w.do("ret void")
    return w.text()
