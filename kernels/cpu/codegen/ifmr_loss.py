"""The squared errors of quantizing data with many scales, as machine code.

``add_errors(x, blocks, lows, highs, scales, shares, count, sums)`` adds, for each of `count`
candidates and blocks of `BLOCK` values, the squares of
``round_half_away(clip(x, low, high) / scale) * scale - x`` to its line of `sums`, float64 of as
many as a vector has lanes. All else is float32, and exact, with one exception that does not
show: instead of a division the value is multiplied by its share, the reciprocal of the scale.
Product and quotient differ by less than `NEAR` where both are below `MOST`; so only where the
product is so near half-way between two integers, or the share is NaN, the division is done after
all. Blocks that lie in a candidate's range are not clipped.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np

from kernels.cpu.codegen.ir import Writer, vector
from kernels.cpu.codegen.microkernels import choose
from kernels.cpu.codegen.native import compile_text

__all__ = ["BLOCK", "MOST", "compiled", "errors_text"]

#: Values in a block.
BLOCK = 256
#: The greatest magnitude in steps of values whose share is not NaN.
MOST = 512
#: Three roundings of a value below `MOST` are less than three times 2**-15.
NEAR = 2.0**-12

_ALMOST_HALF = 0.49999997
#: Vectors whose nearness to a half is looked at together.
_TOGETHER = 4


@lru_cache(maxsize=1)
def compiled() -> tuple[int, int]:
    """Return the address of ``add_errors`` for this processor, and its lanes."""
    lanes = choose("float").lanes
    return compile_text(errors_text(lanes), "add_errors"), lanes


class _Errors:
    """Writes the errors of some vectors of values for one candidate."""

    def __init__(self, writer: Writer, lanes: int) -> None:
        self.w, self.lanes = writer, lanes
        self.real, self.wide = vector(lanes, "float"), vector(lanes, "double")
        self.whole, self.mask = vector(lanes, "i32"), vector(lanes, "i1")

    def each(self, value: float) -> str:
        """Return a constant vector."""
        bits = struct.pack(">d", np.float32(value)).hex()  # as the double of the same value
        return f"splat (float 0x{bits})"

    def of(self, function: str, *values: str) -> str:
        """Call a function of float32 vectors."""
        given = ((self.real, v) for v in values)
        return self.w.call(self.real, f"llvm.{function}.v{self.lanes}f32", *given)

    def least(self, a: str, b: str, kind: str = "olt") -> str:
        """Return the smaller of two vectors, or the greater by "ogt"; of NaN and b, b."""
        wins = self.w.value(f"fcmp {kind} {self.real} {a}, {b}")
        return self.w.value(f"select {self.mask} {wins}, {self.real} {a}, {self.real} {b}")

    def clipped(self, x: str) -> str:
        """Return a vector within the candidate's range."""
        return self.least(self.least(x, "%low", "ogt"), "%high")

    def near(self, x: str) -> tuple[str, str]:
        """Return the integer nearest to the product, and the bits of how far it lies from it."""
        w = self.w
        product = w.value(f"fmul {self.real} {x}, %share")
        nearest = self.of("rint", product)
        rest = self.of("fabs", w.value(f"fsub {self.real} {product}, {nearest}"))
        return nearest, w.value(f"bitcast {self.real} {rest} to {self.whole}")

    def divided(self, x: str) -> str:
        """Return the quotient rounded half away from zero."""
        w = self.w
        quotient = w.value(f"fdiv {self.real} {x}, %scale")
        half = self.of("copysign", self.each(_ALMOST_HALF), quotient)
        return self.of("trunc", w.value(f"fadd {self.real} {quotient}, {half}"))

    def add(self, sums: str, x: str, steps: str) -> str:
        """Add the squared errors of a vector that became so many steps."""
        w = self.w
        product = w.value(f"fmul {self.real} {steps}, %scale")
        narrow = w.value(f"fsub {self.real} {product}, {x}")
        d = w.value(f"fpext {self.real} {narrow} to {self.wide}")
        name = f"llvm.fmuladd.v{self.lanes}f64"
        return w.call(self.wide, name, (self.wide, d), (self.wide, d), (self.wide, sums))

    def loop(self, name: str, clip: bool, after: str) -> None:
        """Write the loop over a block; it leaves its sums as ``{name}_sums_next``."""
        w = self.w
        w.label(name)
        w.phi(f"%{name}_i", "i64", candidate="0", **{f"{name}_end": f"%{name}_i_next"})
        w.phi(f"%{name}_sums", self.wide, candidate="%held", **{f"{name}_end": f"%{name}_total"})
        xs, inner, steps, doubts = [], [], [], []
        for k in range(_TOGETHER):
            place = w.value(f"add i64 %{name}_i, {k * self.lanes}")
            xs.append(w.load(self.real, w.value(f"getelementptr float, ptr %begin, i64 {place}")))
            inner.append(self.clipped(xs[-1]) if clip else xs[-1])
            step, doubt = self.near(inner[-1])
            steps.append(step)
            doubts.append(doubt)
        furthest = doubts[0]
        for other in doubts[1:]:  # of positive floats the bits are in order; NaN comes last
            given = (self.whole, furthest), (self.whole, other)
            furthest = w.call(self.whole, f"llvm.umax.v{self.lanes}i32", *given)
        limit = int(np.float32(0.5 - NEAR).view(np.int32))
        doubt = w.value(f"icmp ugt {self.whole} {furthest}, splat (i32 {limit})")
        bits = w.value(f"bitcast {self.mask} {doubt} to i{self.lanes}")
        some = w.value(f"icmp ne i{self.lanes} {bits}, 0")
        w.do(f"br i1 {some}, label %{name}_exact, label %{name}_end, !prof !0")
        w.label(f"{name}_exact")
        exact = [self.divided(x) for x in inner]
        w.do(f"br label %{name}_end")
        w.label(f"{name}_end")
        for k, (step, careful) in enumerate(zip(steps, exact, strict=True)):
            w.phi(f"%{name}_{k}", self.real, **{name: step, f"{name}_exact": careful})
        total = f"%{name}_sums"
        for k, x in enumerate(xs):
            total = self.add(total, x, f"%{name}_{k}")
        w.named(f"%{name}_total", f"bitcast {self.wide} {total} to {self.wide}")
        w.named(f"%{name}_i_next", f"add i64 %{name}_i, {_TOGETHER * self.lanes}")
        w.loop(name, f"%{name}_i_next", str(BLOCK), after)


def _block_extremes(w: Writer, e: _Errors) -> None:
    """Write the extremes of a block, NaN left out, as ``least`` and ``most``."""
    whole = [
        w.load(e.real, w.value(f"getelementptr float, ptr %begin, i64 {i}"))
        for i in range(0, BLOCK, e.lanes)
    ]
    for name, kind, first in (("min", "olt", np.inf), ("max", "ogt", -np.inf)):
        best = e.each(first)
        for x in whole:
            best = e.least(x, best, kind)
        reduced = f"llvm.vector.reduce.f{name}.v{e.lanes}f32"
        w.named(f"%{name}", f"bitcast float {w.call('float', reduced, (e.real, best))} to float")


def errors_text(lanes: int) -> str:
    """Return the LLVM text of ``add_errors`` for vectors of so many lanes."""
    names = ("x", "blocks", "lows", "highs", "scales", "shares", "count", "sums")
    w = Writer("add_errors", [("i64" if n in ("blocks", "count") else "ptr", n) for n in names])
    e = _Errors(w, lanes)
    w.label("entry")
    w.do("br label %block")
    w.label("block")
    w.phi("%b", "i64", entry="0", block_end="%b_next")
    w.named("%begin", f"getelementptr [{BLOCK} x float], ptr %x, i64 %b")
    _block_extremes(w, e)
    w.do("br label %candidate")
    w.label("candidate")
    w.phi("%r", "i64", block="0", candidate_end="%r_next")
    ends = {}
    for name in ("low", "high", "scale", "share"):
        ends[name] = w.load("float", w.value(f"getelementptr float, ptr %{name}s, i64 %r"))
        w.named(f"%{name}", f"bitcast {e.real} {w.splat(lanes, 'float', ends[name])} to {e.real}")
    w.named("%line", f"getelementptr {e.wide}, ptr %sums, i64 %r")
    w.named("%held", f"load {e.wide}, ptr %line, align 8")
    above = w.value(f"fcmp oge float %min, {ends['low']}")
    below = w.value(f"fcmp ole float %max, {ends['high']}")
    inside = w.value(f"and i1 {above}, {below}")
    w.do(f"br i1 {inside}, label %inside, label %clipped")
    e.loop("inside", False, "candidate_end")
    e.loop("clipped", True, "candidate_end")
    w.label("candidate_end")
    w.phi("%total", e.wide, inside_end="%inside_total", clipped_end="%clipped_total")
    w.store(e.wide, "%total", "%line")
    w.named("%r_next", "add i64 %r, 1")
    w.loop("candidate", "%r_next", "%count", "block_end")
    w.label("block_end")
    w.named("%b_next", "add i64 %b, 1")
    w.loop("block", "%b_next", "%blocks", "done")
    w.label("done")
    w.do("ret void")
    return w.text()
