"""Everything on a CUDA device in one call: each kernel checked against the reference, then timed.

``python -m bench.cuda`` prints a short table; ``--quick`` takes smaller arrays. Peers, where they
are installed: PyTorch's ``_int_mm`` (cuBLASLt) on the same products, and its float pass.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import kernels
from bench.models import read_model
from bench.shapes import CONVS, NETS, ConvShape
from kernels import Histogram, OutputStage, QuantParams
from pipeline import FloatNet, Int8Net

__all__ = ["main"]

_BATCH = 64
_ROUNDS = 9


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    right: str
    milliseconds: float
    rate: str = ""
    peer: str = ""


def _median(run: Callable[[], Any], cuda: Any) -> float:
    """Return the median time of a run on the device, in milliseconds."""
    run()
    times = []
    for _ in range(_ROUNDS):
        begin, end = cuda.event(), cuda.event()
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(cuda.event_elapsed_time(begin, end))
    return statistics.median(times)


def _right(got: Any, want: np.ndarray, relative: float = 0.0) -> str:
    """Say whether a result is the reference's."""
    result = got if isinstance(got, np.ndarray) else got.copy_to_host()
    if relative:
        error = float(np.abs(result - want).max() / max(np.abs(want).max(), 1e-30))
        return "yes" if error <= relative else f"NO: off by {error:.1e}"
    wrong = float((result != want).mean())
    return "yes" if not wrong else f"NO: {wrong:.2%}"


def _copy_bandwidth(cuda: Any, values: int) -> float:
    """Return GB/s of a copy on the device, reading and writing counted."""
    one, other = cuda.device_array(values, np.float32), cuda.device_array(values, np.float32)
    return 8 * values / _median(lambda: other.copy_to_device(one), cuda) / 1e6


def _memory(cuda: Any, values: int, rng: np.random.Generator) -> list[Row]:
    """Check and time what is bound by memory."""
    copy = _copy_bandwidth(cuda, values)
    rows = [Row("copy", "", 8 * values / copy / 1e6, f"{copy:.0f} GB/s")]
    x = rng.normal(size=values).astype(np.float32)
    params = QuantParams(0.03, -11)
    few = x[: 1 << 16]
    device_x, little = cuda.to_device(x), cuda.to_device(few)
    want = kernels.quantize(few, params, device="reference")
    q = kernels.quantize(device_x, params, device="cuda")
    sums = rng.integers(-(2**24), 2**24, 1 << 16).astype(np.int32)
    acc = cuda.to_device(np.resize(sums, values))
    grid = kernels.ulq_grid(2.0, -1.5)

    def row(name: str, bytes_each: int, right: str, run: Callable[[], Any]) -> None:
        took = _median(run, cuda)
        rate = bytes_each * values / took / 1e6
        rows.append(Row(name, right, took, f"{rate:.0f} GB/s, {rate / copy:.0%} of the copy"))

    for name, data in (("normal", x), ("after ReLU", np.maximum(x, 0))):
        device_data = cuda.to_device(data)
        hist, reference = Histogram(), Histogram()
        hist.update(cuda.to_device(data[: 1 << 20]), device="cuda")
        reference.update(data[: 1 << 20], device="reference")
        same = (hist.counts == reference.counts).all() and hist.exponent == reference.exponent
        right = "yes" if same and (hist.largest == reference.largest).all() else "NO"
        row(f"histogram, {name}", 4, right,
            lambda a=device_data: Histogram().update(a, device="cuda"))  # type: ignore[misc]  # fmt: skip
    row("quantize", 5, _right(kernels.quantize(little, params, device="cuda"), want),
        lambda: kernels.quantize(device_x, params, device="cuda"))  # fmt: skip
    row("dequantize", 5, "", lambda: kernels.dequantize(q, params, device="cuda"))
    fake = kernels.fake_quantize(few, params, device="reference")
    row("fake_quantize", 8, _right(kernels.fake_quantize(little, params, device="cuda"), fake),
        lambda: kernels.fake_quantize(device_x, params, device="cuda"))  # fmt: skip
    small = kernels.requantize(sums, 0.001, params, device="reference")
    row("requantize", 5,
        _right(kernels.requantize(cuda.to_device(sums), 0.001, params, device="cuda"), small),
        lambda: kernels.requantize(acc, 0.001, params, device="cuda"))  # fmt: skip
    forward = kernels.ulq_forward(few, grid, device="reference")
    row("ulq forward", 8, _right(kernels.ulq_forward(little, grid, device="cuda"), forward),
        lambda: kernels.ulq_forward(device_x, grid, device="cuda"))  # fmt: skip
    row(
        "ulq backward",
        12,
        "",
        lambda: kernels.ulq_backward(device_x, device_x, grid, device="cuda"),
    )
    candidates = kernels.ifmr_candidates(-3.0, 3.0, kernels.Ifmr())
    second = kernels.IfmrPass(candidates)
    row("exact IFMR", 4, "", lambda: second.update(device_x, device="cuda"))
    return rows


def _conv(cuda: Any, shape: ConvShape, batch: int, rng: np.random.Generator) -> Row:
    """Check a convolution on one image, time it on a batch; beside it the product alone."""
    per = shape.channels // shape.group
    w = rng.integers(-128, 128, (shape.outs, per, shape.kernel, shape.kernel)).astype(np.int8)
    x = rng.integers(-128, 128, (batch, shape.channels, shape.size, shape.size)).astype(np.int8)
    settings: dict[str, Any] = {
        "stride": shape.stride, "pad": shape.pad, "group": shape.group, "x_offset": -7,
        "output": OutputStage(1e-4, params=QuantParams(0.05, 3)),
    }  # fmt: skip
    got = kernels.conv2d_int8(x[:1], w, None, device="cuda", **settings)
    want = kernels.conv2d_int8(x[:1], w, None, device="cpu", **settings)
    device_x, weights = cuda.to_device(x), cuda.to_device(w)
    took = _median(
        lambda: kernels.conv2d_int8(device_x, weights, None, device="cuda", **settings), cuda
    )
    rate = shape.operations(batch) / took / 1e9
    peer = _int_mm(shape, batch) if shape.group == 1 else ""
    return Row(shape.name, _right(got, want), took, f"{rate:.1f} TOP/s", peer)


def _int_mm(shape: ConvShape, batch: int) -> str:
    """Return the rate of cuBLASLt on the same product, where torch is there."""
    if find_spec("torch") is None:
        return ""
    import torch

    rows = batch * shape.out_size**2
    depth = shape.channels * shape.kernel**2
    if depth % 8 or shape.outs % 8 or not torch.cuda.is_available():
        return ""
    a = torch.randint(-128, 127, (rows, depth), dtype=torch.int8, device="cuda")
    weights = torch.randint(-128, 127, (shape.outs, depth), dtype=torch.int8, device="cuda")
    b = weights.T  # cuBLASLt takes int8 with the depth of both sides together
    times = []
    for _ in range(_ROUNDS + 1):
        begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
        begin.record()
        try:
            torch._int_mm(a, b)
        except RuntimeError as error:
            return f"_int_mm: {str(error).splitlines()[0][:60]}"
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    took = statistics.median(times[1:])
    return f"_int_mm {shape.operations(batch) / took / 1e9:.1f} TOP/s"


def _nets(batch: int) -> list[Row]:
    """Check whole nets against the CPU, and time calibration's pass over them."""
    import time

    from bench.quantizers import our_record

    rows = []
    for files in NETS:
        if files.missing():
            continue
        model = read_model(files, 2)
        want = FloatNet(model.net).forward({model.blob: model.x})
        device_net = FloatNet(model.net, device="cuda")
        got = device_net.forward({model.blob: model.x})
        (output,) = model.net.outputs
        right = _right(got[output], want[output], 1e-4)
        record = our_record(model.net, [model.x])
        int8 = Int8Net(model.net, record, device="cuda").forward({model.blob: model.x})[output]
        exact = _right(
            int8, Int8Net(model.net, record).forward({model.blob: model.x})[output], 1e-4
        )
        (images,) = model.noise(batch, batch)
        device_net.forward({model.blob: images})
        begin = time.perf_counter()
        device_net.forward({model.blob: images})
        took = 1e3 * (time.perf_counter() - begin)
        rows.append(
            Row(f"{files.name}, float / int8", f"{right} / {exact}", took,
                f"{1e3 * batch / took:.0f} images/s")
        )  # fmt: skip
    return rows


def main() -> int:
    """Run the command; 1 if a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller arrays and batches")
    options = parser.parse_args()
    console = Console(width=140, highlight=False)
    device, name = kernels.best_device()
    if device != "cuda":
        console.print("no CUDA device, or numba-cuda is not installed: pip install '.[cuda]'")
        return 1
    from numba import cuda

    rng = np.random.default_rng(7)
    batch = 4 if options.quick else _BATCH
    rows = _memory(cuda, 1 << (22 if options.quick else 26), rng)
    rows += [_conv(cuda, s, batch, rng) for s in CONVS if s.short or s.net == "ResNet-50"]
    rows += _nets(batch)
    table = Table(title=f"{name}, batch {batch}")
    for column in ("", "equals the reference", "ms", "rate", "peer"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    for row in rows:
        table.add_row(row.name, row.right, f"{row.milliseconds:.3f}", row.rate, row.peer)
    console.print(table)
    return int(any("NO" in row.right for row in rows))


if __name__ == "__main__":
    sys.exit(main())
