"""Standard output and error of a command: what happens to them does not end the work."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

__all__ = ["SafeStream", "cache_notes", "safe_streams"]


class SafeStream:
    """A stream whose reader may go (``| head``), or that may be full; then it is silent.

    Parameters
    ----------
    stream : file

    Attributes
    ----------
    failed : OSError or None
        Why it is silent.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failed: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, if that is still possible."""
        if self.failed is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Hand over what has been written."""
        if self.failed is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failed = error
        with suppress(OSError, ValueError):  # what is left in buffers goes nowhere, in silence
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make standard output and error safe; say at the end if output could not be written.

    A reader that has gone is no news: it has seen what it wanted.
    """
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        out, errors = (stack.enter_context(_safe(stream)) for stream in before)
        sys.stdout, sys.stderr = out, errors
        try:
            yield
        finally:
            out.flush()
            if out.failed is not None and not isinstance(out.failed, BrokenPipeError):
                print(f"note: not all could be printed: {out.failed.strerror}", file=sys.stderr)
            errors.flush()
            sys.stdout, sys.stderr = before


@contextmanager
def _safe(stream: TextIO | None) -> Iterator[SafeStream]:
    """Make one stream safe, that of a process that was started without it, too.

    A sign that its encoding has not appears as its escape.
    """
    if stream is None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            safe = SafeStream(nowhere)
            safe.failed = BrokenPipeError()
            yield safe
        return
    strict = getattr(stream, "errors", None) if hasattr(stream, "reconfigure") else None
    if strict is not None:
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    try:
        yield SafeStream(stream)
    finally:
        if strict is not None:
            with suppress(OSError, ValueError):  # it may be closed by now
                stream.reconfigure(errors=strict)  # type: ignore[attr-defined]


@contextmanager
def cache_notes(say: Callable[[str], None] | None) -> Iterator[None]:
    """Say in a line that compiled kernels are not kept, which for programs is a warning.

    Parameters
    ----------
    say : callable or None
        Shows a line; None: nothing is said.
    """
    from kernels import CacheWarning

    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_note(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, CacheWarning):
                show(message, category, *place)
            elif say is not None:
                say(f"note: {message}")

        warnings.showwarning = show_note  # type: ignore[assignment]
        yield
