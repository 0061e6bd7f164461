"""The squared errors of quantizing data with many scales, as machine code.

``add_errors(x, blocks, lows, highs, scales, shares, count, sums)`` adds for each of `count`
candidates (low, high, s) and for `blocks` blocks of `BLOCK` values x::

    sum over x of  (round(clip(x, low, high) / s) * s - x)**2

to its line of `sums`, float64 of as many as a vector has lanes. ``round`` is half away from zero.
The difference is computed in float32, its square in float64. All of it is exactly that, though
one thing is done otherwise: instead of a division, the value is multiplied by its share
``1 / s``. Product and quotient differ by less than `NEAR` where both are below `MOST`; so they can
round to different integers only where the product is that near to a tie, half-way between two
integers. There, and where the share is NaN, the division is done after all. Blocks that lie in a
candidate's range are not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kernels.cpu.codegen.ir import Writer, vector
from kernels.cpu.codegen.microkernels import choose
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Value, where

__all__ = ["BLOCK", "MOST", "compiled", "errors_text"]

#: Values in a block.
BLOCK = 256
#: The greatest magnitude in steps of values whose share is not NaN.
MOST = 512
#: Three roundings of a value below `MOST` are less than three times 2**-15.
NEAR = 2.0**-12

#: The float32 below one half.
_ALMOST_HALF = 0.49999997
#: Vectors that share one test for ties.
_TOGETHER = 4


@lru_cache(maxsize=1)
def compiled() -> tuple[int, int]:
    """Return the address of ``add_errors`` for this processor, and its lanes."""
    lanes = choose("float").lanes
    return compile_text(errors_text(lanes), "add_errors"), lanes


def _least(a: Value, b: Value) -> Value:
    """Return the smaller of two; of NaN and b, b."""
    return where(a < b, a, b)


def _greatest(a: Value, b: Value) -> Value:
    """Return the greater of two; of NaN and b, b."""
    return where(a > b, a, b)


@dataclass(frozen=True)
class _Candidate:
    """Where a candidate clips, its scale and the reciprocal of it, each through a vector."""

    low: Value
    high: Value
    scale: Value
    share: Value

    def clip(self, x: Value) -> Value:
        """Return ``min(max(x, low), high)``."""
        return _least(_greatest(x, self.low), self.high)

    def nearest(self, x: Value) -> tuple[Value, Value]:
        """Return ``rint(x * share)``, and how far it is from the product: 1/2 at a tie."""
        product = x * self.share
        nearest = product.call("rint")
        return nearest, abs(product - nearest)

    def divided(self, x: Value) -> Value:
        """Return ``round(x / scale)``: adding almost 1/2 rounds every float32 half away from 0."""
        quotient = x / self.scale
        half = quotient.constant(_ALMOST_HALF).copysign(quotient)
        return (quotient + half).trunc()

    def add(self, sums: Value, x: Value, steps: Value) -> Value:
        """Return ``sums + (steps * scale - x)**2``."""
        error = (steps * self.scale - x).to("double")
        return error.call("fmuladd", error, sums)


def _some_near_a_tie(distances: list[Value]) -> Value:
    """Return whether a product lies within `NEAR` of a tie, or is NaN.

    The bits of floats that are not negative, as integers, are in the order of the floats; those
    of NaN come last.
    """
    bits = [d.bits("i32") for d in distances]
    furthest = bits[0]
    for other in bits[1:]:
        furthest = furthest.call("umax", other)
    return furthest.above(int(np.float32(0.5 - NEAR).view(np.int32))).any()


def _loop(candidate: _Candidate, sums: Value, name: str, clip: bool, after: str) -> None:
    """Write the loop that adds a block's errors to sums; it leaves them as ``{name}_total``."""
    w, lanes, end = sums.w, sums.lanes, f"{name}_end"
    w.label(name)
    w.phi(f"%{name}_i", "i64", candidate="0", **{end: f"%{name}_i_next"})
    total = Value.phi(
        w, "double", lanes, f"%{name}_sums", candidate=sums, **{end: f"%{name}_total"}
    )
    xs, inner, nearest = [], [], []
    for k in range(_TOGETHER):
        place = w.value(f"add i64 %{name}_i, {k * lanes}")
        xs.append(Value.load(w, "float", lanes, w.element("float", "%begin", place)))
        inner.append(candidate.clip(xs[-1]) if clip else xs[-1])
        nearest.append(candidate.nearest(inner[-1]))
    any_near_tie = _some_near_a_tie([distance for _, distance in nearest])
    w.do(f"br i1 {any_near_tie}, label %{name}_exact, label %{end}, !prof !0")
    w.label(f"{name}_exact")
    exact = [candidate.divided(x) for x in inner]
    w.do(f"br label %{end}")
    w.label(end)
    steps = [
        Value.phi(w, "float", lanes, f"%{name}_{k}", **{name: fast, f"{name}_exact": divided})
        for k, ((fast, _), divided) in enumerate(zip(nearest, exact, strict=True))
    ]
    for x, step in zip(xs, steps, strict=True):
        total = candidate.add(total, x, step)
    total.alias(f"%{name}_total")
    w.named(f"%{name}_i_next", f"add i64 %{name}_i, {_TOGETHER * lanes}")
    w.loop(name, f"%{name}_i_next", str(BLOCK), after)


def _block_extremes(w: Writer, lanes: int) -> tuple[Value, Value]:
    """Return the least and the greatest value of a block, NaN left out."""
    xs = [
        Value.load(w, "float", lanes, w.element("float", "%begin", str(i)))
        for i in range(0, BLOCK, lanes)
    ]
    least, greatest = xs[0].constant(np.inf), xs[0].constant(-np.inf)
    for x in xs:
        least = _least(x, least)
    low = least.reduce("fmin")
    for x in xs:
        greatest = _greatest(x, greatest)
    return low, greatest.reduce("fmax")


def errors_text(lanes: int) -> str:
    """Return the LLVM text of ``add_errors`` for vectors of so many lanes."""
    names = ("x", "blocks", "lows", "highs", "scales", "shares", "count", "sums")
    w = Writer("add_errors", [("i64" if n in ("blocks", "count") else "ptr", n) for n in names])
    wide = vector(lanes, "double")
    w.label("entry")
    w.do("br label %block")
    w.label("block")
    w.phi("%b", "i64", entry="0", block_end="%b_next")
    w.named("%begin", f"getelementptr [{BLOCK} x float], ptr %x, i64 %b")
    least, greatest = _block_extremes(w, lanes)
    w.do("br label %candidate")
    w.label("candidate")
    w.phi("%r", "i64", block="0", candidate_end="%r_next")
    ends, splats = {}, {}
    for name in ("low", "high", "scale", "share"):
        ends[name] = Value.load(w, "float", 0, w.element("float", f"%{name}s", "%r"))
        splats[name] = ends[name].splat(lanes)
    w.named("%line", f"getelementptr {wide}, ptr %sums, i64 %r")
    sums = Value(w, "double", lanes, w.value(f"load {wide}, ptr %line, align 8"))
    inside = (least >= ends["low"]) & (greatest <= ends["high"])
    w.do(f"br i1 {inside}, label %inside, label %clipped")
    candidate = _Candidate(**splats)
    _loop(candidate, sums, "inside", False, "candidate_end")
    _loop(candidate, sums, "clipped", True, "candidate_end")
    w.label("candidate_end")
    totals = {f"{name}_end": f"%{name}_total" for name in ("inside", "clipped")}
    Value.phi(w, "double", lanes, "%total", **totals).store("%line")
    w.named("%r_next", "add i64 %r, 1")
    w.loop("candidate", "%r_next", "%count", "block_end")
    w.label("block_end")
    w.named("%b_next", "add i64 %b, 1")
    w.loop("block", "%b_next", "%blocks", "done")
    w.label("done")
    w.do("ret void")
    return w.text()
