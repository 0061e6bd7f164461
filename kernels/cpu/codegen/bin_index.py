"""Where values are counted in a histogram, and their extremes, as machine code.

``place(x, n, factor, half, out, lows, highs, kept)`` writes where each float32 is counted:
``half + trunc(x * factor)``, one less for negative ones. Zeros, which may be half of the data,
are left out or, where leaving out is slow, take turns in `TURNS` places from ``2 * half`` on:
one counter incremented again and again would have to wait for itself. `factor` is a float32 by
its bits; `kept` becomes the number of places written. `out` needs room for `TURNS` more.

``lows`` and ``highs`` become the extreme keys of every run of `RUN` values. Keys are integers in
the order of the floats; the key of -x is -1 minus that of x, that of a NaN lies beyond infinity's.
A place means nothing where the product is beyond an int32.
"""

from __future__ import annotations

from functools import lru_cache

from kernels.cpu.codegen.ir import Writer, vector
from kernels.cpu.codegen.microkernels import choose
from kernels.cpu.codegen.native import compile_text

__all__ = ["RUN", "TURNS", "compiled", "place_text"]

#: Values whose extremes are noted together.
RUN = 1 << 9
#: Places that zeros take turns in.
TURNS = 16

#: So many values ahead memory is called for, which else would idle while values are counted.
_AHEAD = 1 << 12
_MOST = (1 << 31) - 1
#: Variables of a loop by the function that collects them.
_EXTREMES = {"smin": "l", "smax": "h"}


@lru_cache(maxsize=1)
def compiled() -> int:
    """Return the address of ``place`` for the instruction set that nets run on."""
    kernel = choose("float")
    return compile_text(place_text(kernel.isa, kernel.lanes), "place")


class _Loop:
    """A loop over values, a vector at a time: places are written and extremes collected.

    Parameters
    ----------
    writer : Writer
        At the function's entry: constants are made there.
    name : str
        Of its blocks and values. It leaves the number of places as ``{name}_k_end``.
    lanes : int
    isa : str
        An instruction set that leaves zeros out, or any other.
    """

    def __init__(self, writer: Writer, name: str, lanes: int, isa: str) -> None:
        self.w, self.name, self.lanes = writer, name, lanes
        self.real, self.whole = vector(lanes, "float"), vector(lanes, "i32")
        self.factor = writer.splat(lanes, "float", "%scale")
        self.half = writer.splat(lanes, "i32", "%middle")
        turn = writer.splat(lanes, "i32", writer.value("shl i32 %middle, 1"))
        steps = ", ".join(f"i32 {i}" for i in range(lanes))
        self.turns = writer.value(f"add {self.whole} {turn}, <{steps}>")
        self.put = {"avx512": self._compressed}.get(isa, self._all)

    def write(self, before: str, begin: str, end: str, kept: str, low: str, high: str) -> None:
        """Write the loop, from a block on; it runs on to the block ``{name}_after``."""
        w, n, whole = self.w, self.name, self.whole
        some = w.value(f"icmp slt i64 {begin}, {end}")
        w.do(f"br i1 {some}, label %{n}, label %{n}_after")
        w.label(n)
        first = {"i": ("i64", begin), "k": ("i64", kept), "l": (whole, low), "h": (whole, high)}
        for v, (kind, value) in first.items():
            w.phi(f"%{n}_{v}", kind, **{before: value, n: f"%{n}_{v}_next"})
        x = w.load(self.real, w.value(f"getelementptr float, ptr %x, i64 %{n}_i"))
        if self.lanes > 1:
            ahead = w.value(f"add i64 %{n}_i, {_AHEAD}")
            w.prefetch(w.value(f"getelementptr float, ptr %x, i64 {ahead}"))
        bits = w.value(f"bitcast {self.real} {x} to {whole}")
        sign = w.value(f"ashr {whole} {bits}, splat (i32 31)")
        flip = w.value(f"and {whole} {sign}, splat (i32 {_MOST})")
        key = w.value(f"xor {whole} {bits}, {flip}")
        product = w.value(f"fmul {self.real} {x}, {self.factor}")
        index = w.value(f"fptosi {self.real} {product} to {whole}")
        signed = w.value(f"add {whole} {index}, {sign}")
        place = w.value(f"add {whole} {signed}, {self.half}")
        nothing = w.value(f"fcmp oeq {self.real} {x}, zeroinitializer")
        out = w.value(f"getelementptr i32, ptr %out, i64 %{n}_k")
        w.named(f"%{n}_k_next", f"add i64 %{n}_k, {self.put(place, nothing, out)}")
        for function, v in _EXTREMES.items():
            name, found = f"llvm.{function}.v{self.lanes}i32", f"%{n}_{v}"
            best = w.call(whole, name, (whole, found), (whole, key))
            w.named(f"%{n}_{v}_next", f"bitcast {whole} {best} to {whole}")
        w.named(f"%{n}_i_next", f"add i64 %{n}_i, {self.lanes}")
        w.loop(n, f"%{n}_i_next", end, f"{n}_after")
        w.label(f"{n}_after")
        for v, (kind, value) in first.items():
            w.phi(f"%{n}_{v}_end", kind, **{before: value, n: f"%{n}_{v}_next"})

    def extreme(self, function: str) -> str:
        """Return the least or greatest key that the loop has met, as one element."""
        keys = f"%{self.name}_{_EXTREMES[function]}_end"
        name = f"llvm.vector.reduce.{function}.v{self.lanes}i32"
        return self.w.call("i32", name, (self.whole, keys))

    def _all(self, place: str, nothing: str, out: str) -> str:
        """Store all places and return how many; zeros take their turn."""
        w, mask = self.w, vector(self.lanes, "i1")
        place = w.value(f"select {mask} {nothing}, {self.whole} {self.turns}, {self.whole} {place}")
        w.store(self.whole, place, out)
        return str(self.lanes)

    def _compressed(self, place: str, nothing: str, out: str) -> str:
        """Store the places of values that are not zero and return how many."""
        w, mask = self.w, vector(self.lanes, "i1")
        some = w.value(f"xor {mask} {nothing}, splat (i1 true)")
        name = f"llvm.x86.avx512.mask.compress.v{self.lanes}i32"
        given = (self.whole, place), (self.whole, "zeroinitializer"), (mask, some)
        w.store(self.whole, w.call(self.whole, name, *given), out)
        bits = w.value(f"bitcast {mask} {some} to i{self.lanes}")
        wide = w.value(f"zext i{self.lanes} {bits} to i64")
        return w.call("i64", "llvm.ctpop.i64", ("i64", wide))


def place_text(isa: str, lanes: int) -> str:
    """Return the LLVM text of ``place`` for vectors of an instruction set."""
    names = ("x", "n", "factor", "half", "out", "lows", "highs", "kept")
    w = Writer("place", [("i64" if n in ("n", "factor", "half") else "ptr", n) for n in names])
    w.label("entry")
    w.named("%factor_bits", "trunc i64 %factor to i32")
    w.named("%scale", "bitcast i32 %factor_bits to float")
    w.named("%middle", "trunc i64 %half to i32")
    many, rest = _Loop(w, "many", lanes, isa), _Loop(w, "rest", 1, "")
    w.do("br label %run")
    w.label("run")
    w.phi("%r", "i64", entry="0", rest_after="%r_next")
    w.phi("%filled", "i64", entry="0", rest_after="%rest_k_end")
    w.named("%begin", f"mul i64 %r, {RUN}")
    left = w.value("sub i64 %n, %begin")
    here = w.call("i64", "llvm.smin.i64", ("i64", left), ("i64", str(RUN)))
    w.named("%end", f"add i64 %begin, {here}")
    w.named("%middle_end", f"add i64 %begin, {w.value(f'and i64 {here}, {-lanes}')}")
    none = f"splat (i32 {_MOST})", f"splat (i32 {-_MOST - 1})"
    many.write("run", "%begin", "%middle_end", "%filled", *none)
    ends = (w.splat(1, "i32", many.extreme(function)) for function in ("smin", "smax"))
    rest.write("many_after", "%middle_end", "%end", "%many_k_end", *ends)
    for table, function in (("lows", "smin"), ("highs", "smax")):
        place = w.value(f"getelementptr i32, ptr %{table}, i64 %r")
        w.store("i32", rest.extreme(function), place)
    w.named("%r_next", "add i64 %r, 1")
    w.loop("run", "%end", "%n", "done")
    w.label("done")
    w.store("i64", "%rest_k_end", "%kept")
    w.do("ret void")
    return w.text()
