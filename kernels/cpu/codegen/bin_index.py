"""Where values are counted in a histogram, and their extremes, as machine code.

``place(x, n, factor, half, out, lows, highs, kept)`` writes where each float32 is counted:
``half + trunc(x * factor)``, one less for negative ones. Zeros, which may be half of the data,
are left out or, where leaving out is slow, spread over `TURNS` counters from ``2 * half`` on:
increments of a single counter would each wait for the one before. `factor` is a float32 by
its bits; `kept` becomes the number of places written. `out` needs room for `TURNS` more.

``lows`` and ``highs`` become the extreme keys of every run of `RUN` values. Keys are integers in
the order of the floats; the key of -x is -1 minus that of x, that of a NaN lies beyond infinity's.
A place means nothing where the product is beyond an int32.
"""

from __future__ import annotations

from functools import lru_cache

from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.microkernels import choose
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Operand, Value, where

__all__ = ["RUN", "TURNS", "compiled", "place_text"]

#: Values whose extremes are noted together.
RUN = 1 << 9
#: Counters that zeros are spread over.
TURNS = 16

#: Prefetch distance, in values: without it memory idles while values are counted.
_AHEAD = 1 << 12
_MOST = (1 << 31) - 1
#: LLVM's functions that collect extremes.
_EXTREMES = ("smin", "smax")


@lru_cache(maxsize=1)
def compiled() -> tuple[int, bool]:
    """Return the address of ``place`` for the instruction set that nets run on.

    And whether it leaves all zeros out.
    """
    kernel = choose("float")
    address = compile_text(place_text(kernel.lanes, kernel.compress), "place")
    return address, bool(kernel.compress)


class _Loop:
    """A loop over values, a vector at a time: places are written and extremes collected.

    Creating it writes its constants, so it is created in the entry block.

    Parameters
    ----------
    name : str
        Of its blocks and values.
    lanes : int
    compress : str
        LLVM's function that leaves zeros out, or empty.
    factor, half : Value
        Scalars, float32 and int32.
    """

    def __init__(self, name: str, lanes: int, compress: str, factor: Value, half: Value) -> None:
        self.w, self.name, self.lanes = factor.w, name, lanes
        self.factor = factor.splat(lanes)
        self.half = half.splat(lanes)
        behind = (half << 1).splat(lanes)
        self.turns = behind + behind.iota()
        self.compress = compress
        self.store_places = self._compressed if compress else self._all
        if lanes == 1:
            self.store_places = self._alone

    def write(self, before: str, first: dict[str, Value], end: Value) -> dict[str, Value]:
        """Write the loop, from a block on; it runs on to the block ``{name}_after``.

        Its variables, whose first values are given and whose last ones returned, are the
        position "i", the number of places kept "k" and the extreme keys by `_EXTREMES`.
        """
        w, n, lanes = self.w, self.name, self.lanes
        w.do(f"br i1 {first['i'] < end}, label %{n}, label %{n}_after")
        w.label(n)
        now = self._variables("", before, first)
        x = Value.load(w, "float", lanes, w.element("float", "%x", str(now["i"])))
        if lanes > 1:
            w.prefetch(w.element("float", "%x", str(now["i"] + _AHEAD)))
        bits = x.bits("i32")
        sign = bits >> 31  # -1 of negative floats, else 0
        key = bits ^ (sign & _MOST)  # in the order of the floats
        place = (x * self.factor).to("i32") + sign + self.half
        nothing = x.equals(0)
        out = w.element("i32", "%out", str(now["k"]))
        (now["k"] + self.store_places(place, nothing, out)).alias(f"%{n}_k_next")
        for function in _EXTREMES:
            now[function].call(function, key).alias(f"%{n}_{function}_next")
        (now["i"] + lanes).alias(f"%{n}_i_next")
        w.loop(n, f"%{n}_i_next", str(end), f"{n}_after")
        w.label(f"{n}_after")
        return self._variables("_end", before, first)

    def _variables(self, suffix: str, before: str, first: dict[str, Value]) -> dict[str, Value]:
        """Return the variables in a block that is entered from `before` and from the loop."""
        variables = {}
        for v, x in first.items():
            sources = {before: x.name, self.name: f"%{self.name}_{v}_next"}
            name = f"%{self.name}_{v}{suffix}"
            variables[v] = Value.phi(self.w, x.kind, x.lanes, name, **sources)
        return variables

    def _all(self, place: Value, nothing: Value, out: str) -> Operand:
        """Store all places and return how many; zeros go to their own counters."""
        where(nothing, self.turns, place).store(out)
        return self.lanes

    def _alone(self, place: Value, nothing: Value, out: str) -> Operand:
        """Store a place; if it is that of a zero, the next one overwrites it."""
        place.store(out)
        return (~nothing).zext("i64").reduce("add")

    def _compressed(self, place: Value, nothing: Value, out: str) -> Operand:
        """Store the places of values that are not zero and return how many."""
        nonzero = ~nothing
        operands = ((v.type, str(v)) for v in (place, place.constant(0), nonzero))
        self.w.store(place.type, self.w.call(place.type, self.compress, *operands), out)
        return nonzero.flags().zext("i64").call("ctpop")


def place_text(lanes: int, compress: str) -> str:
    """Return the LLVM text of ``place`` for vectors of a micro-kernel, see `MicroKernel`."""
    names = ("x", "n", "factor", "half", "out", "lows", "highs", "kept")
    w = Writer("place", [("i64" if n in ("n", "factor", "half") else "ptr", n) for n in names])
    n, factor, half = (Value(w, "i64", 0, f"%{name}") for name in ("n", "factor", "half"))
    w.label("entry")
    numbers = factor.to("i32").bits("float"), half.to("i32")
    many, rest = _Loop("many", lanes, compress, *numbers), _Loop("rest", 1, "", *numbers)
    w.do("br label %run")
    w.label("run")
    r = Value.phi(w, "i64", 0, "%r", entry="0", rest_after="%r_next")
    filled = Value.phi(w, "i64", 0, "%filled", entry="0", rest_after="%rest_k_end")
    begin = r * RUN
    here = (n - begin).call("smin", RUN)
    end = begin + here
    middle = begin + (here & -lanes)
    ends = {"smin": _MOST, "smax": -_MOST - 1}
    none = {f: Value.number(w, "i32", lanes, key) for f, key in ends.items()}
    last = many.write("run", {"i": begin, "k": filled, **none}, middle)
    best = {f: last[f].reduce(f).splat(1) for f in _EXTREMES}
    last = rest.write("many_after", {"i": middle, "k": last["k"], **best}, end)
    for table, function in (("lows", "smin"), ("highs", "smax")):
        place = w.element("i32", f"%{table}", str(r))
        last[function].reduce(function).store(place)
    (r + 1).alias("%r_next")
    w.loop("run", str(end), str(n), "done")
    w.label("done")
    last["k"].store("%kept")
    w.do("ret void")
    return w.text()
