"""What calibration costs beside the plain float pass: seconds and peak memory of one of them.

``python -m bench.calibration config.toml --batches 4`` calibrates on so many batches of the
config's size; with ``--float`` the net only runs. One of them a process, as the peak of memory
is the process's; compare runs in turns.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Mapping

import numpy as np
from rich.console import Console

import caffeio
from pipeline.config.load import load_config
from pipeline.quantize.assign import layer_plan
from pipeline.quantize.calibrate import search
from pipeline.quantize.eligibility import judge
from pipeline.quantize.feed import open_feed
from pipeline.quantize.fuse import fuse
from pipeline.quantize.observe import observe
from pipeline.runtime.executor import FloatNet


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibration", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--float", action="store_true", help="run the float net, observe nothing")
    options = parser.parse_args()
    config = load_config(options.config)
    read = caffeio.read_net(config.model.prototxt, config.model.caffemodel, config.model.phase)
    net = FloatNet(fuse(read).net)
    quantized_names = {v.layer for v in judge(net.net) if v.quantize}
    plans = {
        x.name: layer_plan(x, config.calibrate) for x in net.net.layers if x.name in quantized_names
    }
    feed = open_feed(read, config.calibrate.data, config.transform, "calibrate.data")
    size = config.calibrate.batch_size

    def calibrate(count: int) -> None:
        batches = (feed.for_net(b) for b in feed.batches(size, count))
        search(net.net, plans, observe(net, plans, batches, count), net.device)

    def run(count: int) -> None:
        for batch in feed.batches(size, count):
            inputs: Mapping[str, np.ndarray] = feed.for_net(batch)
            net.forward(inputs)

    work = run if options.float else calibrate
    work(1)  # loads the kernels
    start = time.perf_counter()
    work(options.batches)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = "float pass" if options.float else "calibration"
    Console(highlight=False).print(
        f"{name}: {options.batches * size} samples, {seconds:.2f} s, peak memory {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
