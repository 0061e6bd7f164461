"""Measure the kernels and nets beside their peers, all sides in turns, and print a table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from bench.catalog import workloads
from bench.limits import foreign_cores, limits
from bench.peers import PEERS, missing, version
from bench.timing import Race, race
from bench.worker import Worker
from bench.workload import OURS, Mismatch, Workload, compare

_UNITS = {"read": "GB/s", "float": "GOP/s", "int8": "GOP/s"}

_NOTES = """\
ours/fastest: our time over the fastest peer's in the same round, median and [quartiles] of the \
rounds; below 1 we are faster.
of limit, GB/s: bytes read and written, of NumPy's fastest read ({read:.0f} GB/s); float conv: of \
a BLAS matrix product ({float:.0f} GOP/s); int8 conv: of four times that ({int8:.0f} GOP/s), \
which VNNI could reach at best. IFMR is bound by its arithmetic, 60 roundings a value; nets by \
their convolutions."""

_DISTURBED = """\
* other programs used the cores meanwhile. Sides whose threads spin while they wait (torch, ONNX \
Runtime) then lose most, so these ratios flatter the rest: repeat them on a quiet machine."""

#: With more cores than this in use by others a row is marked.
_QUIET = 0.2


def _parser(cores: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("only", nargs="*", help="run only titles that hold one of these")
    parser.add_argument("--threads", type=int, default=cores, help="of every side (default: all)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side (default: 9)")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default: 1)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the workloads asked for; return 0, 1 if a peer's numbers differ, 2 for wrong use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    parser = _parser(cores)
    options = parser.parse_args(arguments)
    if not 1 <= options.threads <= cores or options.rounds < 1 or options.batch < 1:
        parser.error(f"--threads must be 1 to {cores}, --rounds and --batch at least 1")
    chosen = [
        w
        for w in workloads(options.batch)
        if not options.only or any(word.lower() in w.title.lower() for word in options.only)
    ]
    if not chosen:
        parser.error(f"no workload's title holds {' or '.join(options.only)}")
    # a file or a pipe has no width of its own
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(_machine(options.threads), highlight=False)
    peers = dict.fromkeys(s.peer for w in chosen for s in w.sides)
    absent = {p: reason for p in peers if p != OURS and (reason := missing(p))}
    workers = {p: Worker(p, options.threads, options.batch) for p in peers if p not in absent}
    try:
        for worker in workers.values():
            worker.wait()
        return _measure(console, chosen, workers, absent, options)
    finally:
        for worker in workers.values():
            worker.close()


def _machine(threads: int) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    versions = dict.fromkeys(version(name) for name in PEERS if not missing(name))
    ours = f"numba {metadata.version('numba')}"
    cpu = models[0] if models else platform.processor() or platform.machine()
    return f"{cpu}, threads: {threads}; {', '.join((ours, *versions))}"


def _measure(
    console: Console,
    chosen: Sequence[Workload],
    workers: Mapping[str, Worker],
    absent: Mapping[str, str],
    options: argparse.Namespace,
) -> int:
    before = limits(options.threads)
    results: list[tuple[Workload, Race, bool]] = []
    left_out = [f"{peer} {reason}" for peer, reason in absent.items()]
    wrong = 0
    for workload in chosen:
        if reason := workload.missing():
            left_out.append(f"{workload.title} {reason}")
            continue
        try:
            with console.status(workload.title):
                busy = foreign_cores()
                result = _contest(workload, workers, options.rounds)
                busy = max(busy, foreign_cores())
            results.append((workload, result, busy > _QUIET))
        except (Mismatch, RuntimeError) as error:
            console.print(f"not timed: {error}", style="red", markup=False)
            wrong = 1
    after = limits(options.threads)
    best = {bound: max(rate, after[bound]) for bound, rate in before.items()}
    table = Table("workload", *_right("ours ms", "rate", "of limit"), "others ms", "ours/fastest")
    for workload, result, disturbed in results:
        title = f"{'* ' if disturbed else ''}{workload.title}"
        table.add_row(title, *_cells(workload, result, best.get(workload.bound)))
    console.print(table)
    if any(disturbed for *_, disturbed in results):
        console.print(_DISTURBED, style="yellow", markup=False)
    for reason in left_out:
        console.print(f"left out: {reason}", markup=False, highlight=False)
    console.print(_NOTES.format(**{k: v / 1e9 for k, v in best.items()}), markup=False)
    return wrong


def _contest(workload: Workload, workers: Mapping[str, Worker], rounds: int) -> Race:
    """Set every side up, compare the numbers, then let them take turns."""
    sides = [side for side in workload.sides if side.peer in workers]
    inputs = workload.inputs()
    ours = workers[OURS].load(workload.title, sides[0].name)
    for side in sides[1:]:
        compare(workload, side, inputs, ours, workers[side.peer].load(workload.title, side.name))
    return race({s.name: partial(workers[s.peer].turn, s.name) for s in sides}, rounds)


def _right(*headers: str) -> list[Column]:
    return [Column(header, justify="right") for header in headers]


def _cells(workload: Workload, result: Race, limit: float | None) -> tuple[str, ...]:
    """Return the row of a workload, after its title."""
    first, *others = result.seconds
    peers = [s.name for s in workload.sides if s.peer != OURS and s.name in result.seconds]
    rate = workload.work / result.median(first)
    unit = _UNITS.get(workload.bound)
    ratio = "no peer"
    if peers:
        fastest = min(peers, key=result.median)
        low, middle, high = result.ratio(first, fastest)
        ratio = f"{middle:.2f} \\[{low:.2f}, {high:.2f}] {fastest}"
    return (
        f"{result.median(first) * 1e3:.3f}",
        f"{rate / 1e9:.1f} {unit}" if unit else "",
        f"{rate / limit:.0%}" if limit else "",
        ", ".join(f"{name} {result.median(name) * 1e3:.3f}" for name in others),
        ratio,
    )


if __name__ == "__main__":
    sys.exit(main())
