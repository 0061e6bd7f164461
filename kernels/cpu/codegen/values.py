"""Values of a function being written, with operators, so that its text is made by formulas.

``where(y < 0, y * slope, y)`` adds a comparison, a product and a choice between two vectors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from kernels.cpu.codegen.ir import Writer, vector

__all__ = ["Operand", "Value", "where"]

#: How names of LLVM's functions spell types that are not spelled alike.
_FLOATS = {"float": "f32", "double": "f64"}


def _arithmetic(name: str) -> Callable[[Value, Operand], Value]:
    def operator(a: Value, b: Operand) -> Value:
        prefix = "f" if a.is_float else ""
        return a.made(a.kind, f"{prefix}{name} {a.type} {a}, {a.operand(b)}")

    return operator


def _comparison(floats: str, integers: str) -> Callable[[Value, Operand], Value]:
    def operator(a: Value, b: Operand) -> Value:
        how = f"fcmp {floats}" if a.is_float else f"icmp {integers}"
        return a.made("i1", f"{how} {a.type} {a}, {a.operand(b)}")

    return operator


@dataclass(frozen=True)
class Value:
    """A scalar or vector in a function; an operator adds the instruction that computes it.

    A Python number beside it is that constant in every lane. Integers are signed. A comparison
    makes a mask, false where a float is NaN.

    Attributes
    ----------
    w : Writer
        Of the function.
    kind : str
        Type of an element by LLVM's name: float, double, i32, ..., or i1 of a mask.
    lanes : int
        Elements of a vector; 0 for a scalar.
    name : str
        What the text calls it: the name of a value, or a constant.
    """

    w: Writer
    kind: str
    lanes: int
    name: str

    __add__ = _arithmetic("add")
    __sub__ = _arithmetic("sub")
    __mul__ = _arithmetic("mul")
    __truediv__ = _arithmetic("div")
    __and__ = _arithmetic("and")
    __or__ = _arithmetic("or")
    __xor__ = _arithmetic("xor")
    __lshift__ = _arithmetic("shl")
    __rshift__ = _arithmetic("ashr")
    __lt__ = _comparison("olt", "slt")
    __le__ = _comparison("ole", "sle")
    __gt__ = _comparison("ogt", "sgt")
    __ge__ = _comparison("oge", "sge")
    equals = _comparison("oeq", "eq")  # == compares names

    def __str__(self) -> str:
        return self.name

    @classmethod
    def load(cls, w: Writer, kind: str, lanes: int, pointer: str) -> Value:
        """Load a scalar or vector; the address needs no alignment."""
        return cls(w, kind, lanes, w.load(vector(lanes, kind) if lanes else kind, pointer))

    @classmethod
    def number(cls, w: Writer, kind: str, lanes: int, number: float) -> Value:
        """Return a constant, the same in every lane."""
        text = str(number)
        if kind == "float":  # LLVM writes the bits of the double of the same value
            text = f"0x{struct.pack('>d', np.float32(number)).hex()}"
        return cls(w, kind, lanes, f"splat ({kind} {text})" if lanes else text)

    @classmethod
    def phi(cls, w: Writer, kind: str, lanes: int, name: str, **sources: str | Value) -> Value:
        """Add a variable: its value by the block from which its own is entered."""
        variable = cls(w, kind, lanes, name)
        w.phi(name, variable.type, **{block: str(value) for block, value in sources.items()})
        return variable

    def alias(self, name: str) -> Value:
        """Return it under the name that the `phi` of a loop refers to."""
        self.w.alias(name, self.type, self.name)
        return Value(self.w, self.kind, self.lanes, name)

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return self.kind in _FLOATS

    @property
    def type(self) -> str:
        """The type in LLVM's text."""
        return vector(self.lanes, self.kind) if self.lanes else self.kind

    def made(self, kind: str, instruction: str) -> Value:
        """Add an instruction that computes as many elements of a type."""
        return Value(self.w, kind, self.lanes, self.w.value(instruction))

    def constant(self, number: float) -> Value:
        """Return a constant of this type."""
        return Value.number(self.w, self.kind, self.lanes, number)

    def iota(self) -> Value:
        """Return the constant 0, 1, 2, ... of this type."""
        numbers = ", ".join(f"{self.kind} {i}" for i in range(self.lanes))
        return Value(self.w, self.kind, self.lanes, f"<{numbers}>")

    def operand(self, other: Operand) -> Value:
        """Return a value as it is, a number as a constant of this type."""
        return other if isinstance(other, Value) else self.constant(other)

    def call(self, function: str, *others: Operand) -> Value:
        """Call a function of LLVM whose operands and result are all of this type."""
        operands = [(self.type, str(self.operand(v))) for v in (self, *others)]
        result = self.w.call(self.type, f"llvm.{function}.{self._suffix}", *operands)
        return Value(self.w, self.kind, self.lanes, result)

    def reduce(self, function: str) -> Value:
        """Return what a function of LLVM makes of all lanes: a scalar."""
        name = f"llvm.vector.reduce.{function}.{self._suffix}"
        return Value(self.w, self.kind, 0, self.w.call(self.kind, name, (self.type, self.name)))

    @property
    def _suffix(self) -> str:
        kind = _FLOATS.get(self.kind, self.kind)
        return f"v{self.lanes}{kind}" if self.lanes else kind

    def __invert__(self) -> Value:
        return self ^ -1

    def __abs__(self) -> Value:
        return self.call("fabs")

    def trunc(self) -> Value:
        """Round floats towards zero."""
        return self.call("trunc")

    def lrint(self, kind: str) -> Value:
        """Round floats to the nearest integers, of a type; ties go to even ones."""
        result = vector(self.lanes, kind)
        name = f"llvm.lrint.v{self.lanes}{kind}.{self._suffix}"
        operand = self.type, self.name
        return Value(self.w, kind, self.lanes, self.w.call(result, name, operand))

    def copysign(self, sign: Value) -> Value:
        """Return these floats with the signs of others."""
        return self.call("copysign", sign)

    def is_nan(self) -> Value:
        """Return the mask of floats that are NaN."""
        return self.made("i1", f"fcmp uno {self.type} {self}, {self}")

    def is_number(self) -> Value:
        """Return the mask of floats that are not NaN."""
        return self.made("i1", f"fcmp ord {self.type} {self}, {self}")

    def above(self, other: Operand) -> Value:
        """Compare as integers without a sign."""
        return self.made("i1", f"icmp ugt {self.type} {self}, {self.operand(other)}")

    def flags(self) -> Value:
        """Return a mask as one integer, a bit a lane."""
        return self.bits(f"i{self.lanes}", 0)

    def any(self) -> Value:
        """Return whether a lane of a mask is set."""
        flags = self.flags()
        return flags.made("i1", f"icmp ne {flags.type} {flags}, 0")

    def to(self, kind: str) -> Value:
        """Convert numbers; floats become integers towards zero, integers wrap."""
        if kind == self.kind:
            return self
        if self.is_float:
            how = "fpext" if kind in _FLOATS else "fptosi"
        elif kind in _FLOATS:
            how = "sitofp"
        else:
            how = "sext" if int(kind[1:]) > int(self.kind[1:]) else "trunc"
        return self._converted(how, kind)

    def zext(self, kind: str) -> Value:
        """Convert integers without a sign to a wider type."""
        return self._converted("zext", kind)

    def _converted(self, how: str, kind: str, lanes: int | None = None) -> Value:
        lanes = self.lanes if lanes is None else lanes
        result = vector(lanes, kind) if lanes else kind
        return Value(self.w, kind, lanes, self.w.value(f"{how} {self.type} {self} to {result}"))

    def bits(self, kind: str, lanes: int | None = None) -> Value:
        """Return the same bits as another type, of as many lanes unless told."""
        return self if kind == self.kind else self._converted("bitcast", kind, lanes)

    def splat(self, lanes: int) -> Value:
        """Repeat a scalar through a vector."""
        first = Value(self.w, self.kind, lanes, "poison")
        instruction = f"insertelement {first.type} poison, {self.kind} {self}, i64 0"
        return first.made(self.kind, instruction).shuffle([0] * lanes)

    def shuffle(self, places: Sequence[int], other: Value | None = None) -> Value:
        """Pick lanes of this vector and another behind it; a place below 0 may hold anything."""
        mask = ", ".join(f"i32 {p if p >= 0 else 'poison'}" for p in places)
        two = f"{self.type} {self}, {self.type} {other or 'poison'}"
        instruction = f"shufflevector {two}, {vector(len(places), 'i32')} <{mask}>"
        return Value(self.w, self.kind, len(places), self.w.value(instruction))

    def store(self, pointer: str) -> None:
        """Store it; the address needs no alignment."""
        self.w.store(self.type, self.name, pointer)

    def store_where(self, mask: Value, pointer: str) -> None:
        """Store the lanes that a mask names."""
        name = f"llvm.masked.store.{self._suffix}.p0"
        self.w.declare(f"declare void @{name}({self.type}, ptr, i32, {mask.type})")
        operands = f"{self.type} {self}, ptr {pointer}, i32 1, {mask.type} {mask}"
        self.w.do(f"call void @{name}({operands})")

    def store_first(self, count: int, pointer: str) -> None:
        """Store the first lanes, in pieces of 8, 4, 2 and 1."""
        begin = 0
        for size in (8, 4, 2, 1):
            if count & size:
                piece = self.shuffle(range(begin, begin + size))
                piece.store(self.w.element(self.kind, pointer, str(begin)))
                begin += size


#: What may stand on the right of an operator.
Operand: TypeAlias = Value | float


def where(mask: Value, yes: Operand, no: Value) -> Value:
    """Return `yes` in the lanes that a mask names and `no` in the others."""
    chosen = no.operand(yes)
    return no.made(no.kind, f"select {mask.type} {mask}, {no.type} {chosen}, {no.type} {no}")
