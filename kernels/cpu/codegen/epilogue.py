"""The output stage as machine code: what becomes of a tile of sums on its way to memory.

``store(acc, stride, rows, columns, stage, channel, position)`` takes sums ``acc[m, n]`` of
output channels `channel` + n at output positions `position` + m. `stage` is a table of
int64, by `FIELDS`: addresses of one float32 for each channel (scale, power, slope), of the
constants (`CONSTANTS`), and for each image it reads or writes the address of its first
channel and of the distances of its positions from there, in bytes. The last entry is a mark
that is set where a NaN should become an integer.

``y = sum * scale`` or, for float32 sums, ``y = sum / divisor``; before that the 16-bit step where
``power > 0``; ``y = max(y, 0) + slope * min(y, 0)``, ``y = y + other``, ``y = clamp(y)``, stored
as float32; and ``round(y / q_scale) + q_offset``, saturated, stored as an integer. Each is the
float32 operation of `kernels.output`, with one exception that does not show: instead of a
division the value is multiplied by the reciprocal, in units of 1/4096 of a step, and rounded as
an integer. Products differ from the quotient by less than half a unit; so where the result lies
within two units of half-way between two steps, and only there, the division is done after all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from kernels.cpu.codegen.ir import Writer, vector
from kernels.cpu.codegen.native import compile_text

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
#: Parts of a step that a fast result is rounded to.
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


def compiled(form: Form) -> int:
    """Return the address of ``store`` of that form."""
    return compile_text(store_text(form), "store")


@dataclass(frozen=True)
class Lanes:
    """Which lanes of a vector count: those of a mask, by a number known to be the first ones."""

    mask: str = ""
    count: int = 0

    @classmethod
    def first(cls, lanes: int, count: int) -> Lanes:
        """Return the first `count` of so many lanes."""
        if count >= lanes:
            return cls()
        return cls(f"<{', '.join(f'i1 {int(i < count)}' for i in range(lanes))}>", count)


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
        self.real = vector(form.lanes, "float")
        self.whole = vector(form.lanes, "i32")
        self.mask = vector(form.lanes, "i1")
        self.constants: dict[str, str] = {}
        self.lines: dict[str, str] = {}
        self.images: dict[str, tuple[str, str]] = {}
        self.ties = 0

    def _each(self, value: float) -> str:
        """Return a constant vector."""
        # LLVM writes a float as the bits of the double of the same value
        bits = struct.pack(">d", np.float32(value)).hex()
        return f"splat (float 0x{bits})"

    def _field(self, name: str) -> str:
        return self.w.load("ptr", self.w.at("%stage", str(8 * FIELDS.index(name))))

    def _float_call(self, function: str, *values: str) -> str:
        name = f"llvm.{function}.v{self.form.lanes}f32"
        return self.w.call(self.real, name, *((self.real, v) for v in values))

    def _floats_at(self, table: str, column: str) -> str:
        place = self.w.value(f"getelementptr float, ptr {self.lines[table]}, i64 {column}")
        return self.w.load(self.real, place)

    def _away(self, value: str) -> str:
        """Round half away from zero, as `kernels.rounding` does."""
        w = self.w
        cut = self._float_call("trunc", value)
        rest = self._float_call("fabs", w.value(f"fsub {self.real} {value}, {cut}"))
        up = w.value(f"fcmp oge {self.real} {rest}, {self._each(0.5)}")
        one = w.value(
            f"select {self.mask} {up}, {self.real} {self._each(1)}, {self.real} {self._each(0)}"
        )
        return w.value(f"fadd {self.real} {cut}, {self._float_call('copysign', one, value)}")

    def _limited(self, value: str, low: str, high: str) -> str:
        """Clamp; NaN stays NaN."""
        w = self.w
        below = w.value(f"fcmp olt {self.real} {value}, {low}")
        value = w.value(f"select {self.mask} {below}, {self.real} {low}, {self.real} {value}")
        above = w.value(f"fcmp ogt {self.real} {value}, {high}")
        return w.value(f"select {self.mask} {above}, {self.real} {high}, {self.real} {value}")

    def _scaled(self, y: str, column: str) -> str:
        return self.w.value(f"fmul {self.real} {y}, {self._floats_at('scale', column)}")

    def _real_value(self, y: str, column: str) -> str:
        """Write the steps up to the float32 result for sums as float32."""
        w, form = self.w, self.form
        if form.divided:
            y = w.value(f"fdiv {self.real} {y}, {self.constants['divisor']}")
        if form.shift:
            y = self._shifted(y, self._floats_at("power", column))
        if form.scaled:
            y = self._scaled(y, column)
        if form.slope:
            falls = w.value(f"fcmp olt {self.real} {y}, {self._each(0)}")
            less = w.value(f"fmul {self.real} {y}, {self._floats_at('slope', column)}")
            y = w.value(f"select {self.mask} {falls}, {self.real} {less}, {self.real} {y}")
        if form.other:
            y = w.value(f"fadd {self.real} {y}, {self._floats_at('other', column)}")
        if form.clamp:
            y = self._limited(y, self.constants["low"], self.constants["high"])
        return y

    def _shifted(self, y: str, power: str) -> str:
        w = self.w
        stepped = self._away(w.value(f"fdiv {self.real} {y}, {power}"))
        kept = self._limited(stepped, self._each(-32768), self._each(32767))
        back = w.value(f"fmul {self.real} {kept}, {power}")
        some = w.value(f"fcmp ogt {self.real} {power}, {self._each(0)}")
        return w.value(f"select {self.mask} {some}, {self.real} {back}, {self.real} {y}")

    def _cut(self, value: str, function: str, limit: str) -> str:
        """Return the smaller or greater of two vectors of integers."""
        name = f"llvm.{function}.v{self.form.lanes}i32"
        return self.w.call(self.whole, name, (self.whole, value), (self.whole, limit))

    def _any(self, bits: str, mask: str) -> str:
        """Return whether any lane of a mask, or of two, is set."""
        w, lanes = self.w, self.form.lanes
        if mask:  # behind the last channel lies anything
            bits = w.value(f"and {self.mask} {bits}, {mask}")
        as_one = w.value(f"bitcast {self.mask} {bits} to i{lanes}")
        return w.value(f"icmp ne i{lanes} {as_one}, 0")

    def _units(self, value: str) -> tuple[str, str]:
        """Return the step a value in units lies in, and where it is near the border of two."""
        w, whole = self.w, self.whole
        name = f"llvm.lrint.v{self.form.lanes}i32.v{self.form.lanes}f32"
        near = w.call(whole, name, (self.real, value))
        moved = w.value(f"add {whole} {near}, {self.constants['stored_units']}")
        step = w.value(f"ashr {whole} {moved}, splat (i32 {UNITS.bit_length() - 1})")
        low_bits = w.value(f"and {whole} {moved}, splat (i32 {UNITS - 4})")
        return step, w.value(f"icmp eq {whole} {low_bits}, splat (i32 0)")

    def _divided(self, y: str, mask: str) -> str:
        """Write quantization by the division, for any value."""
        w, c = self.w, self.constants
        self._note_nans(y, mask)
        steps = self._away(w.value(f"fdiv {self.real} {y}, {c['q_scale']}"))
        known = w.value(f"fcmp ord {self.real} {steps}, {steps}")
        number = w.value(
            f"select {self.mask} {known}, {self.real} {steps}, {self.real} {self._each(0)}"
        )
        kept = self._limited(number, c["q_low"], c["q_high"])
        stored = w.value(f"fadd {self.real} {kept}, {c['q_stored']}")
        return w.value(f"fptosi {self.real} {stored} to {self.whole}")

    def _integer_value(self, y: str, column: str, mask: str) -> str:
        """Write quantization of a vector: quickly, and once more where it is near a tie.

        `y` are bare sums if the form is bounded.
        """
        w, c, form = self.w, self.constants, self.form
        if form.careful:
            return self._divided(y, mask)
        if form.bounded:
            factor = self._floats_at("factor", column)
            fast, near = self._units(w.value(f"fmul {self.real} {y}, {factor}"))
            fast = self._cut(fast, "smax", c["first"])
        else:
            product = w.value(f"fmul {self.real} {y}, {c['reciprocal_units']}")
            fast, near = self._units(self._limited(product, c["low_units"], c["high_units"]))
            if not form.scaled:  # sums of float32 may be NaN
                unknown = w.value(f"fcmp uno {self.real} {y}, {y}")
                near = w.value(f"or {self.mask} {near}, {unknown}")
        some = self._any(near, mask)
        self.ties += 1
        here, exact, after = (f"{n}{self.ties}" for n in ("fast", "exact", "after"))
        w.do(f"br label %{here}")
        w.label(here)
        w.do(f"br i1 {some}, label %{exact}, label %{after}, !prof !0")
        w.label(exact)
        careful = self._divided(self._scaled(y, column) if form.bounded else y, mask)
        w.do(f"br label %{after}")
        w.label(after)
        result = f"%q{self.ties}"
        w.phi(result, self.whole, **{here: fast, exact: careful})
        if not form.bounded:
            return result
        if form.full and form.integers == "uint8":  # saturates as it is stored
            return self._cut(result, "umin", "splat (i32 255)")
        return self._cut(result, "smin", c["last"])

    def _note_nans(self, y: str, mask: str) -> None:
        """Set the mark of the table if a value is NaN: it has no integer."""
        w, lanes = self.w, self.form.lanes
        nans = w.value(f"fcmp uno {self.real} {y}, {y}")
        if mask:
            nans = w.value(f"and {self.mask} {nans}, {mask}")
        bits = w.value(f"bitcast {self.mask} {nans} to i{lanes}")
        here = w.at("%stage", str(8 * FIELDS.index("nans")))
        some = w.value(f"zext i{lanes} {bits} to i64")
        w.store("i64", w.value(f"or i64 {w.load('i64', here)}, {some}"), here)

    def _put(self, kind: str, value: str, table: str, column: str, lanes: Lanes) -> None:
        """Store a vector at a column, or those lanes of it that count."""
        w, size = self.w, self.form.lanes
        place = w.value(f"getelementptr {kind}, ptr {self.lines[table]}, i64 {column}")
        if lanes.count:
            w.store_first(size, kind, value, place, lanes.count)
        elif lanes.mask:
            w.masked_store(size, kind, value, place, lanes.mask)
        else:
            w.store(vector(size, kind), value, place)

    def vector(self, kind: str, sums: str, column: str, lanes: Lanes | None = None) -> None:
        """Write what happens to one vector of sums of a type, or to some of its lanes."""
        lanes = lanes or Lanes()
        how = "sitofp" if self.form.scaled else "bitcast"
        y = self.w.value(f"{how} {kind} {sums} to {self.real}")
        if not self.form.bounded:
            y = self._real_value(y, column)
        if self.form.floats:
            self._put("float", y, "floats", column, lanes)
        if self.form.integers:
            kind = f"i{8 * _BYTES[self.form.integers]}"
            q = self._integer_value(y, column, lanes.mask)
            small = self.w.value(f"trunc {self.whole} {q} to {vector(self.form.lanes, kind)}")
            self._put(kind, small, "integers", column, lanes)

    def begin(self) -> None:
        """Load what is the same for all vectors."""
        w, form = self.w, self.form
        block = self._field("constants")
        for i, name in enumerate(CONSTANTS):
            number = w.load("float", w.at(block, str(4 * i)))
            if name in ("stored_units", "first", "last"):
                number = w.value(f"fptosi float {number} to i32")
                self.constants[name] = w.splat(form.lanes, "i32", number)
            else:
                self.constants[name] = w.splat(form.lanes, "float", number)
        tables = {
            "scale": form.scaled,
            "factor": form.bounded,
            "power": form.shift,
            "slope": form.slope,
        }
        for name in (name for name, used in tables.items() if used):
            place = w.value(f"getelementptr float, ptr {self._field(name)}, i64 %channel")
            self.lines[name] = place
        sizes = {"other": 4 * form.other, "floats": 4 * form.floats}
        for name, size in {**sizes, "integers": _BYTES.get(form.integers, 0)}.items():
            if size:
                kind = f"i{8 * size}"
                first = w.value(f"getelementptr {kind}, ptr {self._field(name)}, i64 %channel")
                table = self._field(f"{name}_at")
                at = w.value(f"getelementptr i64, ptr {table}, i64 %position")
                self.images[name] = first, at

    def row(self, m: str) -> None:
        """Go to a row: find where its position lies in the images."""
        w = self.w
        for name, (first, distances) in self.images.items():
            distance = w.load("i64", w.value(f"getelementptr i64, ptr {distances}, i64 {m}"))
            self.lines[name] = w.at(first, distance)


def store_text(form: Form) -> str:
    """Return the LLVM text of ``store`` of that form."""
    names = ("acc", "stride", "rows", "columns", "stage", "channel", "position")
    w = Writer("store", [("ptr" if n in ("acc", "stage") else "i64", n) for n in names])
    out, lanes = OutputWriter(form, w), form.lanes
    w.label("entry")
    out.begin()
    w.named("%whole", f"and i64 %columns, {-lanes}")
    w.named("%rest", "sub i64 %columns, %whole")
    places = ", ".join(f"i64 {i}" for i in range(lanes))
    many = w.splat(lanes, "i64", "%rest")
    w.named("%mask", f"icmp slt {vector(lanes, 'i64')} <{places}>, {many}")
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
    place = w.value("getelementptr i32, ptr %line, i64 %n")
    out.vector(out.whole, w.load(out.whole, place), "%n")
    w.do("br label %column_end")
    w.label("column_end")
    w.named("%n_next", f"add i64 %n, {lanes}")
    w.loop("column", "%n_next", "%whole", "behind")
    w.label("behind")
    w.do("br i1 %ragged, label %tail, label %next_row")
    w.label("tail")
    place = w.value("getelementptr i32, ptr %line, i64 %whole")
    out.vector(out.whole, w.load(out.whole, place), "%whole", Lanes("%mask"))
    w.do("br label %next_row")
    w.label("next_row")
    w.named("%m_next", "add i64 %m, 1")
    w.named("%line_next", "getelementptr i8, ptr %line, i64 %stride")
    w.loop("row", "%m_next", "%rows", "done")
    w.label("done")
    w.do("ret void")
    return w.text()
