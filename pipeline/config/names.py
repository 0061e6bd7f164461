"""Layers by name or pattern: ``"conv4_*/expand"`` means every layer that it matches."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

__all__ = ["is_named", "is_pattern", "missing_hint", "named_layers"]


def is_pattern(name: str) -> bool:
    """Whether a name has the signs of a pattern: ``*``, ``?`` or ``[``."""
    return any(sign in name for sign in "*?[")


def is_named(layer: str, names: Iterable[str]) -> bool:
    """Whether a layer is among names and patterns, as of a shell's files; case matters.

    Examples
    --------
    >>> is_named("conv4_2/expand", ["conv1", "conv4_*/expand"])
    True
    """
    return any(layer == name or (is_pattern(name) and fnmatchcase(layer, name)) for name in names)


def named_layers(name: str, layers: Iterable[str]) -> tuple[str, ...]:
    """Return the layers that a name or pattern means."""
    return tuple(layer for layer in layers if is_named(layer, (name,)))


def missing_hint(name: str, known: Collection[str]) -> str:
    """Return what a name that is not known may have been meant to be, for the end of an error."""
    near = get_close_matches(name, sorted(known), n=3 if is_pattern(name) else 1, cutoff=0.5)
    if not near:
        return ""
    return f"; did you mean {' or '.join(repr(n) for n in near)}?"
