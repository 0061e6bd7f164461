"""Signals at random moments of whole runs: ``python -m tests.fuzz.kills JOB --count N``.

What lies in the folder afterwards must be all of the run before or all of the new one, or be
noticed by the manifest; what was said of it must be true; and a run that goes on must end as one
that was never stopped.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

import pipeline
from pipeline.manifest import changed_since

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path(pipeline.__file__).resolve().parent / "demo"
#: Files that say how long a run took, or belong to one that is not over.
_OTHERS = ("report.json", "report.csv", "report.html", "net_training.csv", "net_training.png")
_SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


#: A run that keeps what it observes after every batch, which else it does after some seconds.
_KEEPING = """
import sys
import pipeline.jobs.keeper as keeper
from pipeline.run import main
keeper._FIRST = keeper._COPY = keeper._SAVE = keeper._SHARE = 0
sys.exit(main(sys.argv[1:]))
"""


def _run(config: Path, *arguments: str, keeping: bool = False) -> subprocess.Popen:
    command = ["-c", _KEEPING] if keeping else ["-m", "pipeline.run"]
    return subprocess.Popen(
        [sys.executable, *command, str(config), *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _stopped(
    process: subprocess.Popen, within: float, rng: random.Random, seen: Counter[str]
) -> tuple[int, str]:
    """Send a signal within some seconds; return the exit code, and what was said."""
    number = rng.choice(_SIGNALS)
    time.sleep(rng.uniform(0, within))
    process.send_signal(number)
    _, said = process.communicate()
    if "init_import_site" in said:  # Python itself was starting, and ends with 1
        seen[f"{number.name}: before the start"] += 1
        return -number, ""
    seen[f"{number.name}: exit {process.returncode}"] += 1
    if process.returncode not in (0, 130, *(-s for s in _SIGNALS)):
        raise SystemExit(f"exit {process.returncode}: {said}")
    return process.returncode, said


def _models(folder: Path) -> dict[str, bytes]:
    names = (p for p in folder.glob("[!.]*") if p.name not in _OTHERS and "_snapshot" not in p.name)
    return {p.name: p.read_bytes() for p in names if p.is_file()}


def _whole(config: Path, out: Path) -> tuple[dict[str, bytes], float]:
    """Run to the end; return the files, and the seconds it took."""
    start = time.monotonic()
    process = _run(config, "--output", str(out))
    _, said = process.communicate()
    if process.returncode != 0:
        raise SystemExit(said)
    return _models(out), time.monotonic() - start


def _configs(folder: Path) -> list[Path]:
    """Write two configs of the demo whose results differ."""
    paths = []
    for i, scale in enumerate(("0.00390625", "0.0045")):
        text = (DEMO / "config.toml").read_text(encoding="utf-8")
        text = text.replace("scale = 0.00390625", f"scale = {scale}")
        for key in ("deploy.prototxt", "digits.caffemodel", "calibration", "test.npz"):
            text = text.replace(f'"{key}', f'"{DEMO / key}')
        paths.append(folder / f"{i}.toml")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def calibrate(folder: Path, count: int, rng: random.Random) -> Counter[str]:
    """Stop calibrations into one folder, of two configs in turn."""
    configs, out = _configs(folder), folder / "out"
    wholes = [_whole(c, folder / f"whole{i}") for i, c in enumerate(configs)]
    seconds = max(s for _, s in wholes)
    seen: Counter[str] = Counter()
    for i in range(count):
        before, new = _models(out), wholes[i % 2][0]
        process = _run(configs[i % 2], "--output", str(out))
        _check(out, before, new, *_stopped(process, 1.1 * seconds, rng, seen), seen)
    files, _ = _whole(configs[0], out)
    if files != wholes[0][0] or any(p.name.startswith(".") for p in out.iterdir()):
        raise SystemExit(f"the last run left {sorted(p.name for p in out.iterdir())}")
    return seen


def _check(
    out: Path,
    before: dict[str, bytes],
    new: dict[str, bytes],
    code: int,
    said: str,
    seen: Counter[str],
) -> None:
    after = _models(out) if out.exists() else {}
    last = said.strip().split("\n")[-1]
    if after not in (before, new):
        if not any(changed_since(out / name) for name in after):
            raise SystemExit(f"mixed, and not noticed: {sorted(after)}")
        seen["mixed, and noticed"] += 1
    elif code == 0 or "had been written" in last:
        if after != new:
            raise SystemExit(f"not written, though it says: {last}")
        seen["new"] += 1
    elif "nothing was written" in last and after != before:
        raise SystemExit("written, though it says that nothing was")
    else:
        seen["as before" if after == before else "new"] += 1


def retrain(folder: Path, count: int, rng: random.Random) -> Counter[str]:
    """Stop one training again and again until it ends; then begin anew."""
    sys.path.insert(0, str(ROOT / "tests"))
    from training_jobs import SOLVER, write_training

    config = write_training(
        folder,
        solver=SOLVER.replace("max_iter: 60", "max_iter: 400"),
        retrain="snapshot_interval = 20",
        output="overwrite = true",
    )
    whole, seconds = _whole(config, folder / "whole")
    seen: Counter[str] = Counter()
    out = folder / "out"
    while sum(n for k, n in seen.items() if k.startswith("SIG")) < count:
        going_on = ["--resume"] if (out / "net_snapshot.pt").exists() else []
        process = _run(config, "--output", str(out), *going_on)
        code, _ = _stopped(process, 1.1 * seconds, rng, seen)
        if code == 0:
            if _models(out) != whole:
                raise SystemExit("a training that was stopped ended in another net")
            seen["ended as one that was never stopped"] += 1
    return seen


def resume(folder: Path, count: int, rng: random.Random) -> Counter[str]:
    """Stop one calibration again and again until it ends; then begin anew."""
    data = np.random.default_rng(1).random((600, 1, 16, 16), np.float32) * 255
    np.savez(folder / "data.npz", data=data)
    (config, _) = _configs(folder)
    text = config.read_text(encoding="utf-8").replace("batch_num = 4", "batch_num = 600")
    text = text.replace("batch_size = 8 ", "batch_size = 1 ")
    text = text.replace(f'source = "{DEMO / "calibration"}"', f'source = "{folder / "data.npz"}"')
    config.write_text(text.replace("color = false", ""), encoding="utf-8")
    whole, seconds = _whole(config, folder / "whole")
    out, seen = folder / "out", Counter[str]()
    state = out / ".digits_calibration.state"
    while sum(n for k, n in seen.items() if k.startswith("SIG")) < count:
        before = state.read_bytes() if state.exists() else b""
        going_on = ["--resume"] if before else []
        process = _run(config, "--output", str(out), *going_on, keeping=True)
        code, said = _stopped(process, 1.5 * seconds, rng, seen)
        kept = state.read_bytes() if state.exists() else b""
        if "--resume goes on" in said and not kept:
            raise SystemExit(f"nothing is kept, and yet: {said}")
        if "nothing was written" in said and kept != before:
            raise SystemExit(f"something is kept, and yet: {said}")
        if code == 0:
            if _models(out) != whole:
                raise SystemExit("a calibration that was stopped ended in other numbers")
            seen["ended as one that was never stopped"] += 1
            seen["of these resumed"] += bool(going_on)
    return seen


JOBS: dict[str, Callable[[Path, int, random.Random], Counter[str]]] = {
    "calibrate": calibrate,
    "resume": resume,
    "retrain": retrain,
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("--count", type=int, default=100, help="signals")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = JOBS[options.job](Path(folder), options.count, random.Random(options.seed))
    for what, number in sorted(seen.items()):
        print(f"{number:5d} {what}")


if __name__ == "__main__":
    main()
