"""Products of 1x1 convolutions over planes as they lie, as machine code.

``points(y, y_pitch, w, w_pitch, x, x_pitch, channels, bias)`` fills, for some outputs m and as many
positions p as fit some vectors, ``y[m*y_pitch + p] = bias[m] + sum over c of w[m*w_pitch + c] *
x[c*x_pitch + p]``; pitches are in bytes. Channels are added in order.
"""

from __future__ import annotations

from functools import cache

from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.microkernels import MicroKernel
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Value

__all__ = ["compiled", "points_text"]

_NAMES = ("y", "y_pitch", "w", "w_pitch", "x", "x_pitch", "channels", "bias")
_NUMBERS = ("y_pitch", "w_pitch", "x_pitch", "channels")


@cache
def compiled(kernel: MicroKernel, rows: int, vectors: int) -> int:
    """Return the address of ``points`` for so many outputs and vectors of positions."""
    return compile_text(points_text(kernel, rows, vectors), "points", kernel.excluded)


def points_text(kernel: MicroKernel, rows: int, vectors: int) -> str:
    """Return the LLVM text of ``points`` for a float32 micro-kernel."""
    w = Writer("points", [("i64" if name in _NUMBERS else "ptr", name) for name in _NAMES])
    lanes = kernel.lanes
    cells = [(m, v) for m in range(rows) for v in range(vectors)]
    w.label("entry")
    lines = [w.at("%w", w.value(f"mul i64 %w_pitch, {m}")) for m in range(rows)]
    biases = [w.at("%bias", str(4 * m)) for m in range(rows)]
    first = [Value.load(w, "float", 0, place).splat(lanes) for place in biases]
    w.do("br label %step")
    w.label("step")
    w.phi("%k", "i64", entry="0", step="%k_next")
    w.phi("%at", "ptr", entry="%x", step="%at_next")
    sums = {
        (m, v): Value.phi(w, "float", lanes, f"%s{m}_{v}", entry=first[m], step=f"%n{m}_{v}")
        for m, v in cells
    }
    columns = [
        Value.load(w, "float", lanes, w.at("%at", str(4 * lanes * v))) for v in range(vectors)
    ]
    for m in range(rows):
        weight = Value.load(w, "float", 0, w.element("float", lines[m], "%k")).splat(lanes)
        for v in range(vectors):
            names = (str(value) for value in (sums[m, v], weight, columns[v]))
            fresh = w.multiply_add(kernel.multiply_add, *names)
            sums[m, v] = Value(w, "float", lanes, fresh).alias(f"%n{m}_{v}")
    w.named("%k_next", "add i64 %k, 1")
    w.named("%at_next", "getelementptr i8, ptr %at, i64 %x_pitch")
    w.loop("step", "%k_next", "%channels", "done")
    w.label("done")
    for m in range(rows):
        line = w.at("%y", w.value(f"mul i64 %y_pitch, {m}"))
        for v in range(vectors):
            sums[m, v].store(w.at(line, str(4 * lanes * v)))
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"
