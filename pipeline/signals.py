"""Ctrl-C and SIGTERM, where they are to be something else than the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["signals_taken", "terminated_is_interrupted"]

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def signals_taken(
    handler: Handler, numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    """Let a function take signals; nothing happens outside of the main thread, which gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with signals_taken(interrupt, (signal.SIGTERM,)):
        yield
