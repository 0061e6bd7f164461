"""Text from files on a terminal: names are data, whatever stands in them."""

from __future__ import annotations

from typing import Any
from unicodedata import category

from rich.console import Console
from rich.text import Text

__all__ = ["PlainConsole", "printable"]


#: Line ends and tabs, and what joins or parts the letters of a word.
_KEPT = "\n\t\u200c\u200d"


def printable(text: str) -> str:
    r"""Return a text in which nothing can steer a terminal: such characters as their escapes.

    Line ends and tabs stay; so does every letter, sign and symbol of any script.

    Examples
    --------
    >>> print(printable("conv\x1b[31m/ü"))
    conv\x1b[31m/ü
    """
    if text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable() or c in _KEPT or category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in text
    )


class PlainConsole(Console):
    """A console that takes every text as it is: no markup in it, and no control characters."""

    def render_str(self, text: str, *arguments: Any, **options: Any) -> Text:
        """Return a text to be shown; see `rich.console.Console.render_str`."""
        return super().render_str(printable(text), *arguments, **{**options, "markup": False})
