"""Objects as dictionary keys, compared by identity."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Same"]

T = TypeVar("T")


class Same(Generic[T]):
    """An object as part of a key: equal to itself alone, and kept alive by the key.

    It must not be changed while the key is in use. Names would not do: a net may hold several
    layers of one name, and one layer several arrays.

    Parameters
    ----------
    value : object
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
