"""The largest value of each window, as machine code, for values of any stored kind.

``largest(out, out_at, data, table, taps, count, channels)``: for each of `count` positions p,
``out[out_at[p]][c] = max over t of data[table[p, t]][c]``; distances in bytes, `table` int64.
"""

from __future__ import annotations

from kernels.cpu.codegen.ir import Writer, vector
from kernels.cpu.codegen.microkernels import MicroKernel
from kernels.cpu.codegen.native import compile_text

__all__ = ["compiled", "largest_text"]

_LOWEST = "splat (float 0xC7EFFFFFE0000000)"  # -FLT_MAX: Caffe starts from there


def compiled(kernel: MicroKernel) -> int:
    """Return the address of ``largest`` for the data of a micro-kernel."""
    return compile_text(largest_text(kernel), "largest")


def _greater(w: Writer, kind: str, lanes: int, best: str, value: str) -> str:
    whole = vector(lanes, kind)
    if kind != "float":
        name = "umax" if kind == "i8" else "smax"
        return w.call(whole, f"llvm.{name}.v{lanes}{kind}", (whole, best), (whole, value))
    wins = w.value(f"fcmp ogt {whole} {value}, {best}")  # a NaN never wins
    return w.value(f"select {vector(lanes, 'i1')} {wins}, {whole} {value}, {whole} {best}")


def largest_text(kernel: MicroKernel) -> str:
    """Return the LLVM text of ``largest``."""
    kind, lanes = kernel.operands.llvm, kernel.lanes
    whole = vector(lanes, kind)
    pointers, numbers = ("out", "out_at", "data", "table"), ("taps", "count", "channels")
    w = Writer("largest", [*(("ptr", p) for p in pointers), *(("i64", n) for n in numbers)])
    lowest = {"float": _LOWEST, "i8": "zeroinitializer", "i16": "splat (i16 -32768)"}[kind]
    w.label("entry")
    places = ", ".join(f"i64 {i}" for i in range(lanes))
    w.do("br label %position")
    w.label("position")
    w.phi("%p", "i64", entry="0", next="%p_next")
    row = w.value("mul i64 %p, %taps")
    distances = w.value(f"getelementptr i64, ptr %table, i64 {row}")
    to = w.load("i64", w.value("getelementptr i64, ptr %out_at, i64 %p"))
    target = w.at("%out", to)
    w.do("br label %column")
    w.label("column")
    w.phi("%c", "i64", position="0", column_next="%c_next")
    w.do("br label %tap")
    w.label("tap")
    w.phi("%t", "i64", column="0", tap="%t_next")
    w.phi("%best", whole, column=lowest, tap="%better")
    distance = w.load("i64", w.value(f"getelementptr i64, ptr {distances}, i64 %t"))
    place = w.value(f"getelementptr {kind}, ptr {w.at('%data', distance)}, i64 %c")
    better = _greater(w, kind, lanes, "%best", w.load(whole, place))
    w.named("%better", f"bitcast {whole} {better} to {whole}")
    w.named("%t_next", "add i64 %t, 1")
    w.loop("tap", "%t_next", "%taps", "store")
    w.label("store")
    w.named("%left", "sub i64 %channels, %c")
    here = w.value(f"getelementptr {kind}, ptr {target}, i64 %c")
    w.named("%full", f"icmp sge i64 %left, {lanes}")
    w.do("br i1 %full, label %all, label %some")
    w.label("all")
    w.store(whole, "%better", here)
    w.do("br label %column_next")
    w.label("some")
    many = w.splat(lanes, "i64", "%left")
    mask = w.value(f"icmp slt {vector(lanes, 'i64')} <{places}>, {many}")
    w.masked_store(lanes, kind, "%better", here, mask)
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
