"""The largest value of each window, as machine code, for values of any stored kind.

``largest(out, out_at, data, table, taps, count, channels)``: for each of `count` positions p,
``out[out_at[p]][c] = max over t of data[table[p, t]][c]``; offsets in bytes, `table` int64.
"""

from __future__ import annotations

from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.microkernels import MicroKernel
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Value, where

__all__ = ["compiled", "largest_text"]


def compiled(kernel: MicroKernel) -> int:
    """Return the address of ``largest`` for the data of a micro-kernel."""
    return compile_text(largest_text(kernel), "largest")


def _greater(best: Value, x: Value, unsigned: bool) -> Value:
    """Return the greater of two vectors; a NaN in x never wins."""
    if x.is_float:
        return where(x > best, x, best)
    return best.call("umax" if unsigned else "smax", x)


def largest_text(kernel: MicroKernel) -> str:
    """Return the LLVM text of ``largest``."""
    kind, lanes = kernel.operands.llvm, kernel.lanes
    pointers, numbers = ("out", "out_at", "data", "table"), ("taps", "count", "channels")
    w = Writer("largest", [*(("ptr", p) for p in pointers), *(("i64", n) for n in numbers)])
    lowest = kernel.operands.lowest
    first = Value.number(w, kind, lanes, lowest if kind == "float" else int(lowest))
    w.label("entry")
    w.do("br label %position")
    w.label("position")
    w.phi("%p", "i64", entry="0", next="%p_next")
    row = w.value("mul i64 %p, %taps")
    offsets = w.element("i64", "%table", row)
    target = w.at("%out", w.load("i64", w.element("i64", "%out_at", "%p")))
    w.do("br label %column")
    w.label("column")
    w.phi("%c", "i64", position="0", column_next="%c_next")
    w.do("br label %tap")
    w.label("tap")
    w.phi("%t", "i64", column="0", tap="%t_next")
    best = Value.phi(w, kind, lanes, "%best", column=first, tap="%better")
    offset = w.load("i64", w.element("i64", offsets, "%t"))
    place = w.element(kind, w.at("%data", offset), "%c")
    better = _greater(best, Value.load(w, kind, lanes, place), lowest == 0).alias("%better")
    w.named("%t_next", "add i64 %t, 1")
    w.loop("tap", "%t_next", "%taps", "store")
    w.label("store")
    w.named("%left", "sub i64 %channels, %c")
    here = w.element(kind, target, "%c")
    w.named("%full", f"icmp sge i64 %left, {lanes}")
    w.do("br i1 %full, label %all, label %some")
    w.label("all")
    better.store(here)
    w.do("br label %column_next")
    w.label("some")
    left = Value(w, "i64", 0, "%left").splat(lanes)
    better.store_where(left.iota() < left, here)
    w.do("br label %column_next")
    w.label("column_next")
    w.named("%c_next", f"add i64 %c, {lanes}")
    w.loop("column", "%c_next", "%channels", "next")
    w.label("next")
    w.named("%p_next", "add i64 %p, 1")
    w.loop("position", "%p_next", "%count", "done")
    w.label("done")
    w.do("ret void")
    return w.text()
