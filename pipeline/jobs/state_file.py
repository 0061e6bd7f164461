"""The file that a calibration's observations are kept in: whole, or in the middle of the pass.

After a line that says what it is comes the SHA-256 of all the rest, an .npz without pickles.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caffeio import Value, atomic_write
from kernels import Histogram
from pipeline.errors import PipelineError
from pipeline.jobs.fingerprint import Fingerprint
from pipeline.quantize.data_seen import DataWatch
from pipeline.quantize.observe import Observations

__all__ = ["Observed", "StateError", "load_state", "packed", "save_state"]

_MAGIC = b"caffe-quant calibration 1\n"
_DIGEST_BYTES = 32


class StateError(PipelineError):
    """What was kept is damaged, or of another version: it is of no use, and nobody's else."""


@dataclass(frozen=True)
class Observed:
    """What a pass over the calibration samples has gathered so far.

    Attributes
    ----------
    batches : int
        Done.
    seen : Observations
    watch : DataWatch
        What the samples themselves were.
    """

    batches: int = 0
    seen: Observations = field(default_factory=lambda: Observations({}, {}, 0))
    watch: DataWatch = field(default_factory=DataWatch)


def packed(observed: Observed) -> dict[str, np.ndarray]:
    """Return all of it as arrays of their own: what is observed later leaves them as they are."""
    seen = observed.seen
    about = {
        "batches": observed.batches,
        "samples": seen.samples,
        "values": [(v.blob, v.version, seen.shapes[v]) for v in seen.histograms],
    }
    arrays = {"about": _json(about)}
    for i, histogram in enumerate(seen.histograms.values()):
        arrays |= {f"value{i}.{name}": x for name, x in histogram.to_arrays().items()}
    return arrays | {f"watch.{name}": x for name, x in observed.watch.to_arrays().items()}


def _unpacked(arrays: Mapping[str, np.ndarray]) -> Observed:
    about = json.loads(arrays["about"].tobytes())
    histograms, shapes = {}, {}
    for i, (blob, version, shape) in enumerate(about["values"]):
        value = Value(blob, version)
        histograms[value] = Histogram.from_arrays(_within(arrays, f"value{i}."))
        shapes[value] = tuple(shape)
    seen = Observations(histograms, shapes, about["samples"])
    return Observed(about["batches"], seen, DataWatch.from_arrays(_within(arrays, "watch.")))


def save_state(path: Path, fingerprint: Fingerprint, arrays: Mapping[str, np.ndarray]) -> None:
    """Write what `packed` gave, whole or not at all; an older file is replaced.

    Raises
    ------
    caffeio.CaffeFileError
        If it cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, fingerprint=_json(fingerprint.to_json()), **arrays)  # type: ignore[arg-type]
    with atomic_write(path, overwrite=True) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())


def load_state(path: Path) -> tuple[Fingerprint, Observed]:
    """Read what was kept, and what it belongs to.

    Raises
    ------
    StateError
        If the file is damaged, or of another version.
    PipelineError
        If it cannot be read, or is no such file.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(_MAGIC))
            content = file.read() if begin == _MAGIC else b""
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from None
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if begin != _MAGIC:
        raise PipelineError(
            f"{path}: is no calibration that was kept; remove it if nobody needs it, or name "
            "another file"
        )
    if hashlib.sha256(content).digest() != digest:
        raise StateError(f"{path}: is damaged; remove it to calibrate anew")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
        fingerprint = Fingerprint.from_json(json.loads(arrays["fingerprint"].tobytes()))
        return fingerprint, _unpacked(arrays)
    except Exception as error:  # whole, and yet not what is written here
        raise StateError(
            f"{path}: is of another version ({error}); remove it to calibrate anew"
        ) from None


def _json(values: object) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def _within(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
