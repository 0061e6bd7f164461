"""Measure the kernels and nets beside their peers, all sides in turns, and print tables."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from rich.console import Console

from bench.catalog import workloads
from bench.contest import Result, contest
from bench.limits import foreign_cores, limits
from bench.peers import PEERS, missing, version
from bench.picture import draw, no_picture
from bench.report import show, summary, times, wrong
from bench.worker import Worker
from bench.workload import OURS, Mismatch, Workload
from kernels.cpu.codegen.microkernels import choose

_NOTES = """\
ours/fastest: our time over the fastest peer's in the same round, median and [quartiles] of the \
rounds; below 1 we are faster. A share of wrong outputs stands beside the time of a side that has \
any. int8 conv: ours, nhwc, torch and OpenVINO keep channels last, "ours nchw" and onnxruntime \
take and return channels first; weights are packed before.
of limit, GB/s: bytes read and written, of NumPy's fastest read ({read:.0f} GB/s); float conv: of \
a BLAS matrix product ({float:.0f} GOP/s); int8 conv: of our multiply-add instruction alone in \
a loop or, where that is not measured, of four times the BLAS product ({int8:.0f} GOP/s). IFMR is \
bound by its arithmetic, 60 roundings a value; nets by their convolutions."""

_SCORES = """\
wrong: outputs that are not the exact value rounded (either way within 0.001 step of a tie), on \
data and weights over all of int8. off: root mean square distance to the float net's output, \
relative to it; every side has a calibration of its own."""

_DISTURBED = """\
* other programs used the cores meanwhile. Sides whose threads spin while they wait (torch, ONNX \
Runtime) then lose most, so these ratios flatter the rest: repeat them on a quiet machine."""

#: With more cores than this in use by others a row is measured again, so often, and then marked.
_QUIET, _TRIES = 0.2, 3


def _parser(cores: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("only", nargs="*", help="run only titles that hold one of these")
    parser.add_argument("--short", action="store_true", help="the short list of layers")
    parser.add_argument("--threads", type=int, default=cores, help="of every side (default: all)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side (default: 9)")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default: 1)")
    parser.add_argument("--wrong", action="store_true", help="time nothing, score the outputs")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument("--picture", type=Path, help="draw the ratios, to a .png or .svg file")
    return parser


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[Workload]]:
    """Return what was asked for and the workloads chosen, or exit saying what is wrong."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    parser = _parser(cores)
    options = parser.parse_args(arguments)
    if not 1 <= options.threads <= cores or options.rounds < 1 or options.batch < 1:
        parser.error(f"--threads must be 1 to {cores}, --rounds and --batch at least 1")
    if options.picture and options.wrong:
        parser.error("--picture draws times, --wrong measures none: choose one")
    if options.picture and (reason := no_picture(options.picture)):
        parser.error(f"--picture {reason}")
    chosen = [
        w
        for w in workloads(options.batch)
        if (not options.only or any(_holds(w.title, word) for word in options.only))
        and (w.short or not options.short)
        and (w.score or not options.wrong)
    ]
    if not chosen:
        what = " or ".join(options.only) or "that"
        parser.error(f"no workload's title holds {what} (with --short or --wrong: fewer do)")
    return options, chosen


def _holds(title: str, word: str) -> bool:
    """Say whether a word stands in a title, not within another: LeNet is not in MobileNet."""
    inside = "(?<![a-z])" if word[:1].isalpha() else ""
    return re.search(inside + re.escape(word), title, re.IGNORECASE) is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the workloads asked for; return 0, 1 if a side failed or is wrong, 2 for wrong use."""
    options, chosen = _options(arguments)
    # a file or a pipe has no width of its own
    console = Console(width=None if sys.stdout.isatty() else 200)
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
    sets = ", ".join(f"{kind} {choose(kind).isa}" for kind in ("int8", "float"))
    return f"{cpu}, threads: {threads}; ours by {sets}; {', '.join((ours, *versions))}"


def _measure(
    console: Console,
    chosen: Sequence[Workload],
    workers: Mapping[str, Worker],
    absent: Mapping[str, str],
    options: argparse.Namespace,
) -> int:
    left_out = [f"{peer} {reason}" for peer, reason in absent.items()]
    left_out += [f"{w.title} {reason}" for w in chosen if (reason := w.missing())]
    present = [w for w in chosen if not w.missing()]
    before = {} if options.wrong else limits(options.threads)
    results, broken = _contests(console, present, workers, 0 if options.wrong else options.rounds)
    if options.wrong:
        show(console, wrong(results), markdown=options.markdown)
    else:
        after = limits(options.threads)
        best = {bound: max(rate, after[bound]) for bound, rate in before.items()}
        show(console, times(results, best), markdown=options.markdown)
        if grid := summary(results):
            show(console, [grid], markdown=options.markdown)
        if any(result.disturbed for result in results):
            console.print(_DISTURBED, style="yellow", markup=False)
        console.print(_NOTES.format(**{k: v / 1e9 for k, v in best.items()}), markup=False)
    for reason in left_out:
        console.print(f"left out: {reason}", markup=False, highlight=False)
    if any(result.scores for result in results):
        console.print(_SCORES, markup=False)
    if options.picture and results:
        draw(results, options.picture)
    return int(broken)


def _contests(
    console: Console, chosen: Sequence[Workload], workers: Mapping[str, Worker], rounds: int
) -> tuple[list[Result], bool]:
    """Measure the workloads; return what was found and whether anything went wrong."""
    results, broken = [], False
    for workload in chosen:
        try:
            with console.status(workload.title):
                result = _quiet_contest(workload, workers, rounds)
        except (Mismatch, RuntimeError) as error:
            console.print(f"not timed: {error}", style="red", markup=False)
            broken = True
            continue
        for failure in result.failed:
            console.print(f"side left out: {failure}", style="red", markup=False)
            broken = True
        results.append(result)
    return results, broken


def _quiet_contest(workload: Workload, workers: Mapping[str, Worker], rounds: int) -> Result:
    """Measure a workload, again if others used the cores meanwhile."""
    if not rounds:
        return contest(workload, workers, rounds)
    for _ in range(_TRIES):
        busy = foreign_cores()
        result = contest(workload, workers, rounds)
        if max(busy, foreign_cores()) <= _QUIET:
            return result
    return replace(result, disturbed=True)


if __name__ == "__main__":
    sys.exit(main())
