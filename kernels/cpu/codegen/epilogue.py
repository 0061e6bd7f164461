"""The output stage as machine code: what becomes of a tile of sums on its way to memory.

``store(acc, stride, rows, columns, stage, channel, position)`` takes sums ``acc[m, n]`` of
output channels `channel` + n at output positions `position` + m. `stage` is a table of
int64, by `FIELDS`: addresses of one float32 for each channel (scale, power, slope), of the
constants (`CONSTANTS`), and for each image it reads or writes the address of its first
channel and of the offsets of its positions from there, in bytes. The last entry is a mark
that is set where a NaN should become an integer.

With a sum ``a`` of channel c, and of the following lines those that the form asks for::

    y = a / divisor                                                      float32 sums
    y = clip(round(y / power_c), -2**15, 2**15 - 1) * power_c  where power_c > 0
    y = y * scale_c                                                      int32 sums
    y = slope_c * y  where y < 0
    y = y + other
    y = clip(y, low, high)                                               stored as float32
    q = clip(round(y / q_scale), q_low, q_high) + q_stored               stored as an integer

Each operation is that of `kernels.output` in float32, ``round`` is half away from zero, and
``q_low`` and ``q_high`` are the limits less the offset, which ``q_stored`` adds. One thing is done
otherwise, and does not show: instead of a division, y is multiplied by the reciprocal
``UNITS / q_scale``, which gives units of 1/4096 of a step. Product and quotient differ by less
than half a unit; so they can round to different steps only within two units of a tie, half-way
between two steps. There, and only there, the division is done after all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Operand, Value, where

__all__ = [
    "CONSTANTS",
    "FIELDS",
    "FLOATS",
    "INTEGERS",
    "UNITS",
    "Form",
    "Lanes",
    "OutputWriter",
    "compiled",
    "store_text",
]

#: Places in the table `stage`.
FIELDS = (
    "scale", "factor", "power", "slope", "constants", "other", "other_at", "floats",
    "floats_at", "integers", "integers_at", "nans",
)  # fmt: skip
#: Places in the array of constants, float32. ``_units`` are in units of 1/4096 of a step.
FLOATS = (
    "low", "high", "divisor", "q_scale", "q_low", "q_high", "q_stored", "reciprocal_units",
    "low_units", "high_units",
)  # fmt: skip
#: Behind them int32: ``first`` and ``last`` are the lowest and highest integer stored; a pair has
#: it in both halves.
INTEGERS = ("stored_units", "first", "last", "first_pair", "last_pair")
CONSTANTS = (*FLOATS, *INTEGERS)
#: Parts of a step that a fast result is rounded to; a power of two.
UNITS = 4096


@dataclass(frozen=True)
class Form:
    """Which parts of the output stage a layer needs.

    Attributes
    ----------
    lanes : int
        Of a vector of sums.
    scaled : bool
        Sums are int32; others are float32, or int32 copied as they are.
    shift, slope, other, clamp, divided : bool
        The steps above.
    floats : bool
        Whether float32 (or the bare int32) is stored.
    integers : str
        dtype of the integers stored, or empty.
    bounded : bool
        Integers alone are stored, of no more than scaled sums, whose magnitude is known to
        be below 2**18 steps: scale and reciprocal are one factor.
    full : bool
        The highest integer stored is the greatest of its type.
    careful : bool
        Always divide: the reciprocal is out of range.
    """

    lanes: int
    scaled: bool = False
    shift: bool = False
    slope: bool = False
    other: bool = False
    clamp: bool = False
    floats: bool = False
    integers: str = ""
    divided: bool = False
    bounded: bool = False
    full: bool = False
    careful: bool = False

    @property
    def integer_bytes(self) -> int:
        """Bytes of an integer stored; 0 if none is."""
        return np.dtype(self.integers).itemsize if self.integers else 0


@cache
def compiled(form: Form, excluded: tuple[str, ...] = ()) -> int:
    """Return the address of ``store`` of that form, without some features of the processor."""
    return compile_text(store_text(form), "store", excluded)


@dataclass(frozen=True)
class Lanes:
    """Which lanes of a vector are stored: those of a mask, the first `count`, or else all."""

    mask: Value | None = None
    count: int = 0

    @classmethod
    def first(cls, w: Writer, lanes: int, count: int) -> Lanes:
        """Return the first `count` of so many lanes."""
        if count >= lanes:
            return cls()
        bits = ", ".join(f"i1 {int(i < count)}" for i in range(lanes))
        return cls(Value(w, "i1", lanes, f"<{bits}>"), count)


def _round(x: Value) -> Value:
    """Return ``trunc(x) + sign(x) * [|x - trunc(x)| >= 1/2]``: half away from zero."""
    truncated = x.trunc()
    up = abs(x - truncated) >= 0.5
    return truncated + where(up, 1, x.constant(0)).copysign(x)


def _clip(x: Value, low: Operand, high: Operand) -> Value:
    """Return ``min(max(x, low), high)``; NaN stays NaN."""
    x = where(x < low, low, x)
    return where(x > high, high, x)


def _step_of_16_bits(y: Value, power: Value) -> Value:
    """Return ``clip(round(y / power), -2**15, 2**15 - 1) * power`` where power > 0, else y."""
    stepped = _clip(_round(y / power), -(2**15), 2**15 - 1) * power
    return where(power > 0, stepped, y)


class OutputWriter:
    """Writes an output stage into a function; holds the addresses that its vectors share.

    Parameters
    ----------
    form : Form
    writer : Writer
        Of a function with the parameters ``stage``, ``channel`` and ``position``.
    """

    def __init__(self, form: Form, writer: Writer) -> None:
        self.form = form
        self.w = writer
        self.block = ""
        self.lines: dict[str, str] = {}
        self.images: dict[str, tuple[str, str]] = {}
        self.ties = 0

    def _field(self, name: str) -> str:
        return self.w.load("ptr", self.w.at("%stage", str(8 * FIELDS.index(name))))

    def _constant(self, name: str) -> Value:
        """Load a constant where it is used: registers are full of sums, memory serves as well."""
        kind, place = "i32" if name in INTEGERS else "float", str(4 * CONSTANTS.index(name))
        return Value.load(self.w, kind, 0, self.w.at(self.block, place)).splat(self.form.lanes)

    def _line(self, table: str, column: str) -> Value:
        """Load a vector of float32 from a table of the channels or from an image's row."""
        place = self.w.element("float", self.lines[table], column)
        return Value.load(self.w, "float", self.form.lanes, place)

    def _real(self, y: Value, column: str) -> Value:
        """Return y, by the lines of the formula, of sums as float32."""
        form, c = self.form, self._constant
        if form.divided:
            y = y / c("divisor")
        if form.shift:
            y = _step_of_16_bits(y, self._line("power", column))
        if form.scaled:
            y = y * self._line("scale", column)
        if form.slope:
            y = where(y < 0, y * self._line("slope", column), y)
        if form.other:
            y = y + self._line("other", column)
        if form.clamp:
            y = _clip(y, c("low"), c("high"))
        return y

    def _quantized(self, ys: list[Value], columns: list[str], lanes: list[Lanes]) -> list[Value]:
        """Return the integers of vectors: by the reciprocal, or by division if one is near a tie.

        `ys` are bare sums if the form is bounded, and the integers are not yet clipped.
        """
        form, c = self.form, self._constant
        masks = [some.mask for some in lanes]
        if form.careful:
            return [self._by_division(y, mask) for y, mask in zip(ys, masks, strict=True)]
        fast, near = [], None
        for y, column, mask in zip(ys, columns, masks, strict=True):
            if form.bounded:  # few enough units for an int32: the limits can wait
                step, near_tie = self._from_units(y * self._line("factor", column))
            else:
                units = _clip(y * c("reciprocal_units"), c("low_units"), c("high_units"))
                step, near_tie = self._from_units(units)
                if not form.scaled or form.slope or form.other:  # int32 sums are never NaN
                    near_tie = near_tie | y.is_nan()
            if mask is not None:  # behind the last channel lies anything
                near_tie = near_tie & mask
            fast.append(step)
            near = near_tie if near is None else near | near_tie
        assert near is not None
        return self._unless(near, fast, ys, columns, masks)

    def _from_units(self, units: Value) -> tuple[Value, Value]:
        """Return the integer that a value in units rounds to, and where that is near a tie.

        ``floor(u / UNITS + 1/2) + q_stored`` of the nearest whole unit u is a shift of
        ``u + UNITS * (q_stored + 1/2)``, whose low bits are 0 at a tie. Two are added
        (``stored_units``), so that those within -2..1 units of a tie are known by low bits 0..3.
        """
        moved = units.lrint("i32") + self._constant("stored_units")
        return moved >> (UNITS.bit_length() - 1), (moved & (UNITS - 4)).equals(0)

    def _unless(
        self,
        near_tie: Value,
        fast: list[Value],
        ys: list[Value],
        columns: list[str],
        masks: list[Value | None],
    ) -> list[Value]:
        """Return the fast results, unless a lane is near a tie: then those of the division."""
        w = self.w
        any_near_tie = near_tie.any()
        self.ties += 1
        here, exact, after = (f"{n}{self.ties}" for n in ("fast", "exact", "after"))
        w.do(f"br label %{here}")
        w.label(here)
        w.do(f"br i1 {any_near_tie}, label %{exact}, label %{after}, !prof !0")
        w.label(exact)
        if self.form.bounded:
            ys = [y * self._line("scale", column) for y, column in zip(ys, columns, strict=True)]
        divided = [self._by_division(y, mask) for y, mask in zip(ys, masks, strict=True)]
        w.do(f"br label %{after}")
        w.label(after)
        return [
            Value.phi(w, "i32", self.form.lanes, f"%q{self.ties}_{i}", **{here: one, exact: other})
            for i, (one, other) in enumerate(zip(fast, divided, strict=True))
        ]

    def _by_division(self, y: Value, mask: Value | None) -> Value:
        """Return ``clip(round(y / q_scale), q_low, q_high) + q_stored``; a NaN is noted."""
        c = self._constant
        self._note_nans(y, mask)
        steps = _round(y / c("q_scale"))
        steps = where(steps.is_number(), steps, steps.constant(0))
        return (_clip(steps, c("q_low"), c("q_high")) + c("q_stored")).to("i32")

    def _note_nans(self, y: Value, mask: Value | None) -> None:
        """Set the mark of the table if a value is NaN: it has no integer."""
        nans = y.is_nan()
        if mask is not None:
            nans = nans & mask
        flags, mark = nans.flags(), self.w.at("%stage", str(8 * FIELDS.index("nans")))
        nan_bits = flags.zext("i64")
        (Value.load(self.w, "i64", 0, mark) | nan_bits).store(mark)

    def _put(self, value: Value, table: str, column: str, lanes: Lanes) -> None:
        """Store the lanes of a vector at a column."""
        place = self.w.element(value.kind, self.lines[table], column)
        if lanes.count:
            value.store_first(lanes.count, place)
        elif lanes.mask is not None:
            value.store_where(lanes.mask, place)
        else:
            value.store(place)

    def _clipped(self, q: Value) -> Value:
        """Return integers of a bounded form within the limits, of others as they are."""
        form, c = self.form, self._constant
        if not form.bounded:
            return q
        q = q.call("smax", c("first"))
        if form.full and form.integers == "uint8":  # saturates as it is stored
            return q.call("umin", 255)
        return q.call("smin", c("last"))

    def _put_integers(self, qs: list[Value], columns: list[str], lanes: list[Lanes]) -> None:
        """Store integers; two whole vectors of 16 bits become one."""
        c = self._constant
        whole = all(some.mask is None for some in lanes)
        if len(qs) == 2 and whole and self.form.integers == "int16":
            # what is beyond 16 bits is beyond the limits: a processor packs and saturates at once
            both = qs[0].shuffle(range(2 * self.form.lanes), qs[1])
            q = both.call("smax", -(2**15)).call("smin", 2**15 - 1).to("i16")
            if self.form.bounded:
                first, last = (c(f"{n}_pair").bits("i16", q.lanes) for n in ("first", "last"))
                q = q.call("smax", first).call("smin", last)
            self._put(q, "integers", columns[0], lanes[0])
            return
        for q, column, some in zip(qs, columns, lanes, strict=True):
            narrow = self._clipped(q).to(f"i{8 * self.form.integer_bytes}")
            self._put(narrow, "integers", column, some)

    def vectors(self, sums: list[Value], columns: list[str], lanes: list[Lanes]) -> None:
        """Write what happens to one or two vectors of sums side by side, or some of their lanes."""
        form = self.form
        ys = [one.to("float") if form.scaled else one.bits("float") for one in sums]
        if not form.bounded:
            ys = [self._real(y, column) for y, column in zip(ys, columns, strict=True)]
        if form.floats:
            for y, column, some in zip(ys, columns, lanes, strict=True):
                self._put(y, "floats", column, some)
        if form.integers:
            self._put_integers(self._quantized(ys, columns, lanes), columns, lanes)

    def begin(self) -> None:
        """Load the addresses that are the same for all vectors."""
        w, form = self.w, self.form
        self.block = self._field("constants")
        tables = {
            "scale": form.scaled,
            "factor": form.bounded,
            "power": form.shift,
            "slope": form.slope,
        }
        for name in (name for name, used in tables.items() if used):
            self.lines[name] = w.element("float", self._field(name), "%channel")
        sizes = {"other": 4 * form.other, "floats": 4 * form.floats}
        for name, size in {**sizes, "integers": form.integer_bytes}.items():
            if size:
                first = w.element(f"i{8 * size}", self._field(name), "%channel")
                at = w.element("i64", self._field(f"{name}_at"), "%position")
                self.images[name] = first, at

    def row(self, m: str) -> None:
        """Go to a row: find where its position lies in the images."""
        w = self.w
        for name, (first, offsets) in self.images.items():
            self.lines[name] = w.at(first, w.load("i64", w.element("i64", offsets, m)))


def store_text(form: Form) -> str:
    """Return the LLVM text of ``store`` of that form."""
    names = ("acc", "stride", "rows", "columns", "stage", "channel", "position")
    w = Writer("store", [("ptr" if n in ("acc", "stage") else "i64", n) for n in names])
    out, lanes = OutputWriter(form, w), form.lanes
    w.label("entry")
    out.begin()
    w.named("%whole", f"and i64 %columns, {-lanes}")
    w.named("%rest", "sub i64 %columns, %whole")
    rest = Value(w, "i64", 0, "%rest").splat(lanes)
    mask = rest.iota() < rest
    w.named("%any", f"icmp sge i64 %columns, {lanes}")
    w.named("%ragged", "icmp ne i64 %rest, 0")
    w.do("br label %row")
    w.label("row")
    w.phi("%m", "i64", entry="0", next_row="%m_next")
    w.phi("%line", "ptr", entry="%acc", next_row="%line_next")
    out.row("%m")
    w.do("br i1 %any, label %before, label %behind")
    w.label("before")
    w.do("br label %column")
    w.label("column")
    w.phi("%n", "i64", before="0", column_end="%n_next")
    sums = Value.load(w, "i32", lanes, w.element("i32", "%line", "%n"))
    out.vectors([sums], ["%n"], [Lanes()])
    w.do("br label %column_end")
    w.label("column_end")
    w.named("%n_next", f"add i64 %n, {lanes}")
    w.loop("column", "%n_next", "%whole", "behind")
    w.label("behind")
    w.do("br i1 %ragged, label %tail, label %next_row")
    w.label("tail")
    sums = Value.load(w, "i32", lanes, w.element("i32", "%line", "%whole"))
    out.vectors([sums], ["%whole"], [Lanes(mask)])
    w.do("br label %next_row")
    w.label("next_row")
    w.named("%m_next", "add i64 %m, 1")
    w.named("%line_next", "getelementptr i8, ptr %line, i64 %stride")
    w.loop("row", "%m_next", "%rows", "done")
    w.label("done")
    w.do("ret void")
    return w.text()
