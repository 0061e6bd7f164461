"""Windows over one plane of float32, as machine code: positions side by side in each vector.

``plane(data, taps, weights, start, out, rows, width, step)``: for each of `rows` rows i and `width`
columns j, ``out[i, j] = start + sum over t of data[i, taps[t] + j] * weights[t]``. `taps`, and
`step` from one row of the data to the next, are in bytes; rows of `out` lie together. Loads reach
less than a vector beyond the last column.

``spread(source, target, rows, source_step, target_step, parts, table)`` copies rows to where
windows may read around them: for each row and each of `parts` lines of the table, int64 (from, to,
count, gap), ``target[to + q] = source[from + stride * q]`` for `count` values q, and zeros in `gap`
values behind them. All but the steps, which are in bytes, are in values. Whole vectors are written,
so parts must lie one behind the other in the target, with a vector and the gap to spare at its end;
`stride` vectors are read at once.
"""

from __future__ import annotations

from functools import cache

from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.microkernels import MicroKernel
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Value

__all__ = ["plane", "plane_text", "spread", "spread_text"]


@cache
def plane(kernel: MicroKernel, taps: int) -> int:
    """Return the address of ``plane`` for windows of so many taps."""
    return compile_text(plane_text(kernel, taps), "plane", kernel.excluded)


@cache
def spread(kernel: MicroKernel, stride: int) -> int:
    """Return the address of ``spread`` for a stride."""
    return compile_text(spread_text(kernel, stride), "spread", kernel.excluded)


def plane_text(kernel: MicroKernel, taps: int) -> str:
    """Return the LLVM text of ``plane``."""
    pointers = ("data", "taps", "weights", "start", "out")
    numbers = ("rows", "width", "step")
    w = Writer("plane", [*(("ptr", p) for p in pointers), *(("i64", n) for n in numbers)])
    lanes = kernel.lanes
    w.label("entry")
    first = Value.load(w, "float", 0, "%start").splat(lanes)
    offsets = [w.load("i64", w.element("i64", "%taps", str(t))) for t in range(taps)]
    weights = [
        Value.load(w, "float", 0, w.element("float", "%weights", str(t))).splat(lanes)
        for t in range(taps)
    ]
    w.named("%size", "mul i64 %rows, %width")
    w.do("br label %row")
    w.label("row")
    w.phi("%i", "i64", entry="0", next="%i_next")
    w.phi("%line", "ptr", entry="%data", next="%line_next")
    w.phi("%to", "ptr", entry="%out", next="%to_next")
    w.phi("%rest", "i64", entry="%size", next="%rest_next")
    w.do("br label %column")
    w.label("column")
    w.phi("%j", "i64", row="0", column_next="%j_next")
    at, sums = w.element("float", "%line", "%j"), first
    for offset, weight in zip(offsets, weights, strict=True):
        data = Value.load(w, "float", lanes, w.at(at, offset))
        names = str(sums), str(data), str(weight)
        sums = Value(w, "float", lanes, w.multiply_add(kernel.multiply_add, *names))
    here = w.element("float", "%to", "%j")
    # what is written beyond a row is the beginning of the next, which comes later
    w.named("%left", "sub i64 %rest, %j")
    w.named("%full", f"icmp sge i64 %left, {lanes}")
    w.do("br i1 %full, label %all, label %some")
    w.label("all")
    sums.store(here)
    w.do("br label %column_next")
    w.label("some")
    left = Value(w, "i64", 0, "%left").splat(lanes)
    sums.store_where(left.iota() < left, here)
    w.do("br label %column_next")
    w.label("column_next")
    w.named("%j_next", f"add i64 %j, {lanes}")
    w.loop("column", "%j_next", "%width", "next")
    w.label("next")
    w.named("%line_next", "getelementptr i8, ptr %line, i64 %step")
    w.named("%to_next", "getelementptr float, ptr %to, i64 %width")
    w.named("%rest_next", "sub i64 %rest, %width")
    w.named("%i_next", "add i64 %i, 1")
    w.loop("row", "%i_next", "%rows", "done")
    w.label("done")
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"


def spread_text(kernel: MicroKernel, stride: int) -> str:
    """Return the LLVM text of ``spread``."""
    names = ("source", "target", "rows", "source_step", "target_step", "parts", "table")
    pointers, lanes = ("source", "target", "table"), kernel.lanes
    w = Writer("spread", [("ptr" if n in pointers else "i64", n) for n in names])
    w.label("entry")
    w.do("br label %row")
    w.label("row")
    w.phi("%i", "i64", entry="0", next="%i_next")
    w.phi("%read", "ptr", entry="%source", next="%read_next")
    w.phi("%write", "ptr", entry="%target", next="%write_next")
    w.do("br label %part")
    w.label("part")
    w.phi("%p", "i64", row="0", part_next="%p_next")
    line = w.element("[4 x i64]", "%table", "%p")
    begin, to, count, gap = (w.load("i64", w.at(line, str(8 * k))) for k in range(4))
    first, target = w.element("float", "%read", begin), w.element("float", "%write", to)
    w.do("br label %copy")
    w.label("copy")
    w.phi("%q", "i64", part="0", copy="%q_next")
    place = w.element(f"[{stride} x float]", first, "%q")
    values = Value.load(w, "float", lanes * stride, place)
    values.shuffle(range(0, lanes * stride, stride)).store(w.element("float", target, "%q"))
    w.named("%q_next", f"add i64 %q, {lanes}")
    w.loop("copy", "%q_next", count, "behind")
    w.label("behind")
    end = w.element("float", target, count)
    w.do("br label %clear")
    w.label("clear")
    w.phi("%z", "i64", behind="0", clear="%z_next")
    Value.number(w, "float", lanes, 0).store(w.element("float", end, "%z"))
    w.named("%z_next", f"add i64 %z, {lanes}")
    w.loop("clear", "%z_next", gap, "part_next")
    w.label("part_next")
    w.named("%p_next", "add i64 %p, 1")
    w.loop("part", "%p_next", "%parts", "next")
    w.label("next")
    w.named("%read_next", "getelementptr i8, ptr %read, i64 %source_step")
    w.named("%write_next", "getelementptr i8, ptr %write, i64 %target_step")
    w.named("%i_next", "add i64 %i, 1")
    w.loop("row", "%i_next", "%rows", "done")
    w.label("done")
    w.do("ret void")
    return w.text()
