"""A process for each peer, so that none runs under another's settings.

In one process the first to load OpenMP decides for all how waiting threads behave: torch
lets them spin and our kernels let them sleep, and either slows the other down.
"""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from bench.catalog import workloads
from bench.peers import set_threads
from bench.timing import turn
from bench.workload import Run

__all__ = ["Worker"]


class Worker:
    """Runs the sides of one peer, one workload at a time, in a fresh process."""

    def __init__(self, peer: str, threads: int, batch: int) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, peer, threads, batch), daemon=True
        )
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Return when the process has started: until then it takes cores from others."""
        self._answer()

    def load(self, title: str, side: str) -> Any:
        """Set a side of a workload up, run it once and return what it computed."""
        return self._ask(title, side)

    def turn(self, side: str) -> float:
        """Return the seconds of one run of a side of the workload loaded last."""
        return self._ask(None, side)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def _ask(self, *order: object) -> Any:
        self._pipe.send(order)
        return self._answer()

    def _answer(self) -> Any:
        done, value = self._pipe.recv()
        if not done:
            raise RuntimeError(value)
        return value


def _serve(pipe: Connection, peer: str, threads: int, batch: int) -> None:
    table = {w.title: w for w in workloads(batch)}
    runs: dict[str, Run] = {}
    loaded, inputs = "", None
    set_threads(peer, threads)
    pipe.send((True, None))
    while True:
        try:
            title, name = pipe.recv()
        except EOFError:
            return
        try:
            if title is None:
                pipe.send((True, turn(runs[name])))
                continue
            if title != loaded:
                runs, loaded, inputs = {}, title, table[title].inputs()
            side = next(s for s in table[title].sides if s.name == name)
            runs[name] = side.start(inputs, threads)
            pipe.send((True, runs[name]()))
        except Exception as error:  # whatever a peer raises belongs to the one who asked
            pipe.send((False, f"{title or loaded}, {name}: {type(error).__name__}: {error}"))
