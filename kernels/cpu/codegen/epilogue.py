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

from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Operand, Value, where

__all__ = [
    "CONSTANTS",
    "FIELDS",
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
#: Places in the float32 array of constants; integers are exact in it. Those with ``_units`` are
#: in units of 1/4096 of a step; ``first`` and ``last`` are the lowest and highest integer stored.
CONSTANTS = (
    "low", "high", "divisor", "q_scale", "q_low", "q_high", "q_stored", "reciprocal_units",
    "low_units", "high_units", "stored_units", "first", "last",
)  # fmt: skip
#: Parts of a step that a fast result is rounded to; a power of two.
UNITS = 4096

_BYTES = {"uint8": 1, "int16": 2}


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


@cache
def compiled(form: Form) -> int:
    """Return the address of ``store`` of that form."""
    return compile_text(store_text(form), "store")


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
    """Writes an output stage into a function; holds the values that its vectors share.

    Parameters
    ----------
    form : Form
    writer : Writer
        Of a function with the parameters ``stage``, ``channel`` and ``position``.
    """

    def __init__(self, form: Form, writer: Writer) -> None:
        self.form = form
        self.w = writer
        self.constants: dict[str, Value] = {}
        self.lines: dict[str, str] = {}
        self.images: dict[str, tuple[str, str]] = {}
        self.ties = 0

    def _field(self, name: str) -> str:
        return self.w.load("ptr", self.w.at("%stage", str(8 * FIELDS.index(name))))

    def _line(self, table: str, column: str) -> Value:
        """Load a vector of float32 from a table of the channels or from an image's row."""
        place = self.w.element("float", self.lines[table], column)
        return Value.load(self.w, "float", self.form.lanes, place)

    def _real(self, y: Value, column: str) -> Value:
        """Return y, by the lines of the formula, of sums as float32."""
        form, c = self.form, self.constants
        if form.divided:
            y = y / c["divisor"]
        if form.shift:
            y = _step_of_16_bits(y, self._line("power", column))
        if form.scaled:
            y = y * self._line("scale", column)
        if form.slope:
            y = where(y < 0, y * self._line("slope", column), y)
        if form.other:
            y = y + self._line("other", column)
        if form.clamp:
            y = _clip(y, c["low"], c["high"])
        return y

    def _quantized(self, y: Value, column: str, mask: Value | None) -> Value:
        """Return the integers of a vector: by the reciprocal, or by division if one is near a tie.

        `y` are bare sums if the form is bounded.
        """
        form, c = self.form, self.constants
        if form.careful:
            return self._by_division(y, mask)
        if form.bounded:  # few enough units for an int32: the limits can wait for the integers
            fast, near_tie = self._from_units(y * self._line("factor", column))
            fast = fast.call("smax", c["first"])
        else:
            units = _clip(y * c["reciprocal_units"], c["low_units"], c["high_units"])
            fast, near_tie = self._from_units(units)
            if not form.scaled or form.slope or form.other:  # int32 sums themselves are never NaN
                near_tie = near_tie | y.is_nan()
        q = self._unless_near(fast, near_tie, y, column, mask)
        if not form.bounded:
            return q
        if form.full and form.integers == "uint8":  # saturates as it is stored
            return q.call("umin", 255)
        return q.call("smin", c["last"])

    def _from_units(self, units: Value) -> tuple[Value, Value]:
        """Return the integer that a value in units rounds to, and where that is near a tie.

        ``floor(u / UNITS + 1/2) + q_stored`` of the nearest whole unit u is a shift of
        ``u + UNITS * (q_stored + 1/2)``, whose low bits are 0 at a tie. Two are added
        (``stored_units``), so that those within -2..1 units of a tie are known by low bits 0..3.
        """
        moved = units.lrint("i32") + self.constants["stored_units"]
        return moved >> (UNITS.bit_length() - 1), (moved & (UNITS - 4)).equals(0)

    def _unless_near(
        self, fast: Value, near_tie: Value, y: Value, column: str, mask: Value | None
    ) -> Value:
        """Return the fast result, unless a lane is near a tie: then that of the division."""
        w = self.w
        if mask is not None:  # behind the last channel lies anything
            near_tie = near_tie & mask
        any_near_tie = near_tie.any()
        self.ties += 1
        here, exact, after = (f"{n}{self.ties}" for n in ("fast", "exact", "after"))
        w.do(f"br label %{here}")
        w.label(here)
        w.do(f"br i1 {any_near_tie}, label %{exact}, label %{after}, !prof !0")
        w.label(exact)
        y = y * self._line("scale", column) if self.form.bounded else y
        divided = self._by_division(y, mask)
        w.do(f"br label %{after}")
        w.label(after)
        sources = {here: fast, exact: divided}
        return Value.phi(w, "i32", self.form.lanes, f"%q{self.ties}", **sources)

    def _by_division(self, y: Value, mask: Value | None) -> Value:
        """Return ``clip(round(y / q_scale), q_low, q_high) + q_stored``; a NaN is noted."""
        c = self.constants
        self._note_nans(y, mask)
        steps = _round(y / c["q_scale"])
        steps = where(steps.is_number(), steps, steps.constant(0))
        return (_clip(steps, c["q_low"], c["q_high"]) + c["q_stored"]).to("i32")

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

    def vector(self, sums: Value, column: str, lanes: Lanes | None = None) -> None:
        """Write what happens to one vector of sums, or to some of its lanes."""
        form, lanes = self.form, lanes or Lanes()
        y = sums.to("float") if form.scaled else sums.bits("float")
        if not form.bounded:
            y = self._real(y, column)
        if form.floats:
            self._put(y, "floats", column, lanes)
        if form.integers:
            q = self._quantized(y, column, lanes.mask)
            self._put(q.to(f"i{8 * _BYTES[form.integers]}"), "integers", column, lanes)

    def begin(self) -> None:
        """Load what is the same for all vectors."""
        w, form = self.w, self.form
        block = self._field("constants")
        for i, name in enumerate(CONSTANTS):
            number = Value.load(w, "float", 0, w.at(block, str(4 * i)))
            if name in ("stored_units", "first", "last"):
                number = number.to("i32")
            self.constants[name] = number.splat(form.lanes)
        tables = {
            "scale": form.scaled,
            "factor": form.bounded,
            "power": form.shift,
            "slope": form.slope,
        }
        for name in (name for name, used in tables.items() if used):
            self.lines[name] = w.element("float", self._field(name), "%channel")
        sizes = {"other": 4 * form.other, "floats": 4 * form.floats}
        for name, size in {**sizes, "integers": _BYTES.get(form.integers, 0)}.items():
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
    out.vector(sums, "%n")
    w.do("br label %column_end")
    w.label("column_end")
    w.named("%n_next", f"add i64 %n, {lanes}")
    w.loop("column", "%n_next", "%whole", "behind")
    w.label("behind")
    w.do("br i1 %ragged, label %tail, label %next_row")
    w.label("tail")
    sums = Value.load(w, "i32", lanes, w.element("i32", "%line", "%whole"))
    out.vector(sums, "%whole", Lanes(mask))
    w.do("br label %next_row")
    w.label("next_row")
    w.named("%m_next", "add i64 %m, 1")
    w.named("%line_next", "getelementptr i8, ptr %line, i64 %stride")
    w.loop("row", "%m_next", "%rows", "done")
    w.label("done")
    w.do("ret void")
    return w.text()
