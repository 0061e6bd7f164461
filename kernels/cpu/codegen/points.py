"""Products of convolutions of stride 1 over planes as they lie, as machine code.

``points(y, y_pitch, w, w_pitch, x, x_pitch, channels, bias, taps, count)`` fills, for some outputs
m and as many positions p as fit some vectors, ``y[m*y_pitch + p] = bias[m] + sum over c, t of
w[m*w_pitch + c*count + t] * x[c*x_pitch + taps[t] + p]``; pitches and taps are in bytes. Terms are
added in order. The form for one tap takes neither `taps` nor `count`.
"""

from __future__ import annotations

from functools import cache

from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.microkernels import MicroKernel
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Value

__all__ = ["compiled", "points_text"]

_NAMES = ("y", "y_pitch", "w", "w_pitch", "x", "x_pitch", "channels", "bias")
_NUMBERS = ("y_pitch", "w_pitch", "x_pitch", "channels", "count")


@cache
def compiled(kernel: MicroKernel, rows: int, vectors: int, windows: bool = False) -> int:
    """Return the address of ``points`` for so many outputs and vectors of positions."""
    return compile_text(points_text(kernel, rows, vectors, windows), "points", kernel.excluded)


def points_text(kernel: MicroKernel, rows: int, vectors: int, windows: bool = False) -> str:
    """Return the LLVM text of ``points`` for a float32 micro-kernel, for one tap or `windows`."""
    names = (*_NAMES, "taps", "count") if windows else _NAMES
    w = Writer("points", [("i64" if name in _NUMBERS else "ptr", name) for name in names])
    lanes = kernel.lanes
    cells = [(m, v) for m in range(rows) for v in range(vectors)]
    w.label("entry")
    lines = [w.at("%w", w.value(f"mul i64 %w_pitch, {m}")) for m in range(rows)]
    biases = [w.at("%bias", str(4 * m)) for m in range(rows)]
    first = [Value.load(w, "float", 0, place).splat(lanes) for place in biases]
    before, entered = {cell: first[cell[0]] for cell in cells}, "entry"
    if windows:  # a loop over channels around that over taps
        w.do("br label %channel")
        w.label("channel")
        w.phi("%c", "i64", entry="0", channel_end="%c_next")
        w.phi("%plane", "ptr", entry="%x", channel_end="%plane_next")
        w.phi("%k_first", "i64", entry="0", channel_end="%k_next")
        before = {
            (m, v): Value.phi(
                w, "float", lanes, f"%r{m}_{v}", entry=first[m], channel_end=f"%n{m}_{v}"
            )
            for m, v in cells
        }
        entered = "channel"
    w.do("br label %step")
    w.label("step")
    w.phi("%k", "i64", **{entered: "%k_first" if windows else "0"}, step="%k_next")
    if windows:
        w.phi("%t", "i64", channel="0", step="%t_next")
    else:
        w.phi("%at", "ptr", entry="%x", step="%at_next")
    sums = {
        (m, v): Value.phi(
            w, "float", lanes, f"%s{m}_{v}", **{entered: before[m, v]}, step=f"%n{m}_{v}"
        )
        for m, v in cells
    }
    at = w.at("%plane", w.load("i64", w.element("i64", "%taps", "%t"))) if windows else "%at"
    columns = [Value.load(w, "float", lanes, w.at(at, str(4 * lanes * v))) for v in range(vectors)]
    for m in range(rows):
        weight = Value.load(w, "float", 0, w.element("float", lines[m], "%k")).splat(lanes)
        for v in range(vectors):
            operands = (str(value) for value in (sums[m, v], weight, columns[v]))
            fresh = w.multiply_add(kernel.multiply_add, *operands)
            sums[m, v] = Value(w, "float", lanes, fresh).alias(f"%n{m}_{v}")
    w.named("%k_next", "add i64 %k, 1")
    if windows:
        w.named("%t_next", "add i64 %t, 1")
        w.loop("step", "%t_next", "%count", "channel_end")
        w.label("channel_end")
        w.named("%c_next", "add i64 %c, 1")
        w.named("%plane_next", "getelementptr i8, ptr %plane, i64 %x_pitch")
        w.loop("channel", "%c_next", "%channels", "done")
    else:
        w.named("%at_next", "getelementptr i8, ptr %at, i64 %x_pitch")
        w.loop("step", "%k_next", "%channels", "done")
    w.label("done")
    for m in range(rows):
        line = w.at("%y", w.value(f"mul i64 %y_pitch, {m}"))
        for v in range(vectors):
            sums[m, v].store(w.at(line, str(4 * lanes * v)))
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"
