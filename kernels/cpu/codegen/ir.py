"""Text of LLVM functions: a writer that names values, and the few phrases used often."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Writer", "vector"]


def vector(count: int, kind: str) -> str:
    """Return the type of a vector."""
    return f"<{count} x {kind}>"


class Writer:
    """Collects the lines of one function.

    Parameters
    ----------
    name : str
    parameters : sequence of (type, name)
    """

    def __init__(self, name: str, parameters: Sequence[tuple[str, str]]) -> None:
        self.name = name
        self._head = ", ".join(f"{kind} %{label}" for kind, label in parameters)
        self._lines: list[str] = []
        self._declarations: dict[str, None] = {}
        self._count = 0

    def value(self, instruction: str) -> str:
        """Add an instruction and return the name of what it computes."""
        self._count += 1
        name = f"%v{self._count}"
        self._lines.append(f"  {name} = {instruction}")
        return name

    def named(self, name: str, instruction: str) -> None:
        """Add an instruction whose value has a name chosen beforehand, as a loop needs."""
        self._lines.append(f"  {name} = {instruction}")

    def do(self, instruction: str) -> None:
        """Add an instruction without a value."""
        self._lines.append(f"  {instruction}")

    def label(self, name: str) -> None:
        """Begin a block."""
        self._lines.append(f"{name}:")

    def phi(self, name: str, kind: str, **sources: str) -> None:
        """Add a variable of a loop: its value by the block it is entered from."""
        pairs = ", ".join(f"[ {value}, %{block} ]" for block, value in sources.items())
        self.named(name, f"phi {kind} {pairs}")

    def loop(self, name: str, following: str, end: str, after: str) -> None:
        """Go back to block `name` while ``following < end``, else on to block `after`."""
        more = self.value(f"icmp slt i64 {following}, {end}")
        self.do(f"br i1 {more}, label %{name}, label %{after}")

    def at(self, pointer: str, offset: str) -> str:
        """Return the address so many bytes behind a pointer."""
        return self.value(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    def load(self, kind: str, pointer: str) -> str:
        """Load from anywhere: no address is taken to be aligned."""
        return self.value(f"load {kind}, ptr {pointer}, align 1")

    def store(self, kind: str, value: str, pointer: str) -> None:
        """Store to anywhere."""
        self.do(f"store {kind} {value}, ptr {pointer}, align 1")

    def prefetch(self, pointer: str) -> None:
        """Call for memory that is soon read; it need not exist."""
        self.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.do(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 2, i32 1)")

    def masked_store(self, lanes: int, kind: str, value: str, pointer: str, mask: str) -> None:
        """Store those elements of a vector that a mask names."""
        whole, bits = vector(lanes, kind), vector(lanes, "i1")
        name = f"llvm.masked.store.v{lanes}{'f32' if kind == 'float' else kind}.p0"
        self.declare(f"declare void @{name}({whole}, ptr, i32, {bits})")
        self.do(f"call void @{name}({whole} {value}, ptr {pointer}, i32 1, {bits} {mask})")

    def store_first(self, lanes: int, kind: str, value: str, pointer: str, count: int) -> None:
        """Store the first elements of a vector, in pieces of 8, 4, 2 and 1."""
        begin = 0
        for size in (8, 4, 2, 1):
            if count & size:
                piece = self.shuffle(lanes, kind, value, "poison", range(begin, begin + size))
                place = self.value(f"getelementptr {kind}, ptr {pointer}, i64 {begin}")
                self.store(vector(size, kind), piece, place)
                begin += size

    def call(self, result: str, function: str, *arguments: tuple[str, str]) -> str:
        """Call an intrinsic of LLVM, by operands as (type, value)."""
        kinds = ", ".join(kind for kind, _ in arguments)
        self.declare(f"declare {result} @{function}({kinds})")
        given = ", ".join(f"{kind} {value}" for kind, value in arguments)
        return self.value(f"call {result} @{function}({given})")

    def declare(self, line: str) -> None:
        """Name an intrinsic that the function uses."""
        self._declarations[line] = None

    def splat(self, count: int, kind: str, value: str) -> str:
        """Repeat a scalar through a vector."""
        whole = vector(count, kind)
        first = self.value(f"insertelement {whole} poison, {kind} {value}, i64 0")
        return self.shuffle(count, kind, first, "poison", [0] * count)

    def shuffle(self, count: int, kind: str, a: str, b: str, places: Sequence[int]) -> str:
        """Pick elements of two vectors of `count`; a place below 0 may hold anything."""
        whole = vector(count, kind)
        mask = ", ".join(f"i32 {p if p >= 0 else 'poison'}" for p in places)
        picked = vector(len(places), "i32")
        return self.value(f"shufflevector {whole} {a}, {whole} {b}, {picked} <{mask}>")

    def multiply_add(
        self, lines: Sequence[tuple[str, str]], sums: str, data: str, weights: str
    ) -> str:
        """Add the lines of a micro-kernel and return its new sums."""
        names = {"sums": sums, "data": data, "weights": weights}
        result = sums
        for name, line in lines:
            result = names[name] = self.value(line.format(**names))
        return result

    def text(self) -> str:
        """Return the function with what it declares."""
        # without these attributes LLVM may split 512-bit vectors where it deems them slow
        width = '"min-legal-vector-width"="512" "prefer-vector-width"="512"'
        body = "\n".join(self._lines)
        function = f"define void @{self.name}({self._head}) nounwind {width} {{\n{body}\n}}\n"
        rarely = '!0 = !{!"branch_weights", i32 1, i32 1000}\n'  # for a branch marked so
        return "\n".join((*self._declarations, function, rarely))
