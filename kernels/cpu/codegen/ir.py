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

    def alias(self, name: str, kind: str, value: str) -> None:
        """Give a value the name that an earlier `phi` refers to.

        LLVM's text has no second names; a cast from a type to itself costs nothing.
        """
        self.named(name, f"bitcast {kind} {value} to {kind}")

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
        condition = self.value(f"icmp slt i64 {following}, {end}")
        self.do(f"br i1 {condition}, label %{name}, label %{after}")

    def at(self, pointer: str, offset: str) -> str:
        """Return the address so many bytes behind a pointer."""
        return self.value(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    def element(self, kind: str, pointer: str, index: str) -> str:
        """Return the address of an element of an array."""
        return self.value(f"getelementptr {kind}, ptr {pointer}, i64 {index}")

    def load(self, kind: str, pointer: str) -> str:
        """Load a value; the address needs no alignment."""
        return self.value(f"load {kind}, ptr {pointer}, align 1")

    def store(self, kind: str, value: str, pointer: str) -> None:
        """Store a value; the address needs no alignment."""
        self.do(f"store {kind} {value}, ptr {pointer}, align 1")

    def prefetch(self, pointer: str) -> None:
        """Prefetch memory that is soon read; the address may be invalid."""
        self.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.do(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 2, i32 1)")

    def call(self, result: str, function: str, *arguments: tuple[str, str]) -> str:
        """Call an intrinsic of LLVM, by operands as (type, value)."""
        kinds = ", ".join(kind for kind, _ in arguments)
        self.declare(f"declare {result} @{function}({kinds})")
        operands = ", ".join(f"{kind} {value}" for kind, value in arguments)
        return self.value(f"call {result} @{function}({operands})")

    def declare(self, line: str) -> None:
        """Name an intrinsic that the function uses."""
        self._declarations[line] = None

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
