"""Repeated calibration and INT8 passes in one process: ``python -m tests.fuzz.soak --minutes 60``.

Prints memory and open files now and then; both should stay as they are after the first minute.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import pipeline

DEMO = Path(pipeline.__file__).resolve().parent / "demo"


def _held() -> tuple[float, int]:
    """Return MiB resident and open descriptors of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), len(os.listdir("/proc/self/fd"))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    start = told = time.monotonic()
    calibrations = passes = 0
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() - start < 60 * options.minutes:
            report = pipeline.quantize_model(DEMO / "config.toml", output=folder)
            calibrations += 1
            net = report.int8_net()
            for _ in range(100):  # of changing batch sizes, as a service has them
                x = rng.random((int(rng.integers(1, 9)), 1, 16, 16), np.float32)
                net.forward({net.net.inputs[0]: x})
                passes += 1
            if time.monotonic() - told > 30 or calibrations == 1:
                told = time.monotonic()
                memory, files = _held()
                print(
                    f"{told - start:6.0f} s  {calibrations} calibrations, {passes} passes  "
                    f"{memory:.1f} MiB, {files} descriptors",
                    flush=True,
                )


if __name__ == "__main__":
    main()
