"""Fields of a layer that the schema lacks: kept as written, and named where they may matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caffeio.graph import Net

__all__ = ["UnknownField", "unknown_notes"]

#: Parts of a layer that say when it is there and how it is trained, not what it computes.
_OTHER_PARTS = ("include", "exclude", "param")
#: Places of one field that are noted one by one.
_APART = 3
#: Where data comes from and how it is made ready: a config says that here.
_DATA_PARTS = ("data_param", "transform_param")


@dataclass(frozen=True)
class UnknownField:
    """A field of a layer that the schema lacks.

    Attributes
    ----------
    path : str
        The message within the layer that has it: ``"dropout_param"``, ``"param[1]"``, or ``""``
        for the layer itself.
    name : str
        E.g. ``"scale_train"``.
    text : str
        As written, the name included: ``"scale_train: false"``.
    message : str
        The schema's name of the message that has it: ``"DropoutParameter"``.
    file : str
    line : int
    """

    path: str
    name: str
    text: str
    message: str = ""
    file: str = ""
    line: int = 0

    def matters(self) -> bool:
        """Whether the layer's result may depend on it: the one place where this is decided."""
        parts = [part.partition("[")[0] for part in (self.path or self.name).split(".")]
        if parts[0] in _OTHER_PARTS or parts[0].endswith(_DATA_PARTS):
            return False
        return self.name != "engine" and not any(p.endswith("_filler") for p in (*parts, self.name))

    def note(self, layer: str) -> str:
        """Return a sentence that says where it stands and what becomes of it."""
        begin = f"{self.file}:{self.line}: field '{self.name}' of {self.message} is not known"
        if not self.matters():
            return f"{begin}; it is carried into the exported models"
        return (
            f"{begin}; it may change what layer '{layer}' computes, but is not acted on here; it "
            "is carried into the exported models"
        )


def unknown_notes(net: Net, *, matters: bool = False) -> tuple[str, ...]:
    """Return a sentence for each unknown field of a net's layers.

    Parameters
    ----------
    net : Net
    matters : bool
        Only of fields that a result may depend on.
    """
    places: dict[tuple[str, str], list[tuple[UnknownField, str]]] = {}
    for layer in net.layers:
        for field in layer.unknown:
            if field.matters() or not matters:
                places.setdefault((field.message, field.name), []).append((field, layer.name))
    return tuple(note for same in places.values() for note in _notes(same))


def _notes(places: Sequence[tuple[UnknownField, str]]) -> Iterator[str]:
    """Yield a sentence for each of a field's places; from the fourth on one for all of them."""
    apart = len(places) if len(places) <= _APART + 1 else _APART
    for field, layer in places[:apart]:
        yield field.note(layer)
    if rest := places[apart:]:
        (first, layer), (last, last_layer) = rest[0], rest[-1]
        yield (
            f"{first.file}:{first.line}: the same field '{first.name}' stands in {len(rest)} more "
            f"places, from layer '{layer}' to line {last.line}, layer '{last_layer}'"
        )
