"""Run targets for some minutes, each in a process of its own with a limit of memory."""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .harness import CORPUS, Finding, run_alone
from .targets import TARGETS, names


def fuzz(name: str, seed: int, minutes: float) -> int:
    """Fuzz one target; print each new kind of finding, and keep its input; return how many."""
    context = multiprocessing.get_context("spawn")
    kinds: Counter[str] = Counter()
    tried, end = 0, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            queue = context.Queue()
            left = (end - time.monotonic()) / 60
            child = context.Process(target=run_alone, args=(name, seed, left, folder, queue))
            child.start()
            done = False
            while child.is_alive() or not queue.empty():
                try:
                    found = queue.get(timeout=0.2)
                except Exception:  # nothing yet
                    continue
                if isinstance(found, Finding):
                    _keep(found, kinds)
                else:
                    tried, done = tried + found, True
            if child.exitcode == 1:  # an error of the harness itself, which has been printed
                return 1
            if not done:  # the process was killed: by the input that lies there
                data = (Path(folder) / "input" / TARGETS[name].file).read_bytes()
                _keep(Finding(name, data, f"process ended with {child.exitcode}"), kinds)
                seed += 1000
    print(f"{name}: {tried} inputs, {sum(kinds.values())} findings of {len(kinds)} kinds")
    return sum(kinds.values())


def _keep(found: Finding, kinds: Counter[str]) -> None:
    kind = re.sub(r"\d{2,} ", "", found.what.partition(": ")[0])
    kinds[kind] += 1
    if kinds[kind] > 1:
        return
    CORPUS.mkdir(exist_ok=True)
    path = CORPUS / f"{found.target}-{kind.replace(' ', '_').replace('/', '_')[:60]}"
    path.write_bytes(found.data)
    print(f"{found.target}: {found.what}\n  {path}", flush=True)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=", ".join(names()))
    parser.add_argument("--minutes", type=float, default=1.0, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.targets).difference(names()):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    return int(any([fuzz(t, options.seed, options.minutes) for t in options.targets or [*names()]]))


if __name__ == "__main__":
    sys.exit(main())
