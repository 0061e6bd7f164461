"""What the tests of the kernels share: devices, random layers, output stages."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import naive
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kernels import OutputStage, QuantParams

#: Devices that every operation is tested on; ``cuda`` in a process of its own, in the simulator.
DEVICES = os.environ.get("CAFFE_QUANT_TEST_DEVICES", "reference,cpu").split(",")
#: A simulated device runs a Python thread for each of its own: few examples must do.
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
FLOAT_MAX = float(np.finfo(np.float32).max)


def examples(count: int) -> settings:
    """The same examples in every run, and no limit on the first, which compiles."""
    return settings(
        max_examples=min(count, 3) if SIMULATED else count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def floats32(low: float = -FLOAT_MAX, high: float = FLOAT_MAX) -> st.SearchStrategy[float]:
    """Any finite float32, denormals and negative zero among them."""
    return st.floats(naive.f32(low), naive.f32(high), width=32)


def int8s(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Full-range int8 values in which the ends are frequent."""
    values = rng.integers(-128, 128, shape)
    ends = rng.random(shape)
    return np.where(ends < 0.1, -128, np.where(ends > 0.9, 127, values)).astype(np.int8)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@dataclass(frozen=True)
class Stages:
    """One output stage, for the package and, one a channel, for the oracle."""

    output: OutputStage | None
    naive: list[naive.Stage | None]

    @property
    def dtype(self) -> type:
        if self.output is None:
            return np.int32
        return np.float32 if self.output.params is None else np.int8


@st.composite
def stages(draw: Any, channels: int, shifts: bool = True, sums: bool = True) -> Stages:
    """Sums as they are, or scaled, shifted, clamped and requantized."""
    kind = draw(st.sampled_from(["sums", "float", "int8"] if sums else ["float", "int8"]))
    if kind == "sums":
        return Stages(None, [None] * channels)
    count = draw(st.sampled_from([1, channels]))
    unit = np.array(draw(st.lists(floats32(1e-6, 2.0), min_size=count, max_size=count)), np.float32)
    shift = None
    if shifts and draw(st.booleans()):
        shift = np.array(draw(st.lists(st.integers(0, 16), min_size=channels, max_size=channels)))
    clamp = draw(st.sampled_from([(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-1.5, 2)]))
    params = None
    if kind == "int8":
        bits = draw(st.integers(2, 8))
        offset = draw(st.integers(*naive.limits(bits)))
        params = QuantParams(draw(floats32(1e-3, 1e3)), offset, bits)
    output = OutputStage(unit if count > 1 else float(unit[0]), shift, clamp, params)
    triple = None if params is None else (params.scale, params.offset, params.bits)
    each = [
        naive.Stage(float(unit[c % count]), 0 if shift is None else int(shift[c]), clamp, triple)
        for c in range(channels)
    ]
    return Stages(output, each)


def stored(sums: Any, case: Stages) -> np.ndarray:
    """Sums [n][c]... of the oracle after its output stage."""
    flat = np.array(sums, dtype=object)
    out = np.empty(flat.shape, case.dtype)
    for index in np.ndindex(*flat.shape):
        out[index] = naive.stored(int(flat[index]), case.naive[index[1]])
    return out
