"""What observations belong to: whatever a single one of their bits may depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

import caffeio
from caffeio import Net
from caffeio.data import Transform
from pipeline import __version__
from pipeline.config.load import Config
from pipeline.jobs.data import chosen_how
from pipeline.quantize.data_print import DataPrint, data_prints
from pipeline.quantize.feed import Feed
from pipeline.quantize.prepare import Prepared
from pipeline.report.about import instructions, processor, version_of

__all__ = ["Fingerprint", "fingerprint_of"]

#: numpy and numba compute, OpenCV decodes and resizes.
_PACKAGES = ("numpy", "numba", "opencv-python-headless")


@dataclass(frozen=True)
class Fingerprint:
    """What a pass over the samples depends on; what is searched afterwards is no part of it.

    Attributes
    ----------
    version, packages, device : str
    processor : str
        Its name and instructions: the order of float sums depends on them.
    net, weights : str
        Digests of the net as it is run: BatchNorm and Scale are folded.
    layers : str
        Digest of the file of layer types of one's own; empty without one.
    transform : str
        A digest, mean files with their contents.
    batches, samples : str
        How many batches of how many samples, and how these are chosen.
    data : dict of blob name to DataPrint
    """

    version: str
    packages: str
    device: str
    processor: str
    net: str
    weights: str
    layers: str
    transform: str
    batches: str
    samples: str
    data: dict[str, DataPrint]

    def differences(self, before: Fingerprint) -> tuple[str, ...]:
        """Return in words what is other now than it was `before`."""
        return (*self._settings(before), *self._data(before))

    def _settings(self, before: Fingerprint) -> list[str]:
        out = []
        for name in (f.name for f in fields(self) if f.name != "data"):
            now, then = getattr(self, name), getattr(before, name)
            if now != then:
                out.append(_DIGESTS.get(name, f"{name} ({now}, not {then})"))
        return out

    def _data(self, before: Fingerprint) -> list[str]:
        if self.data.keys() != before.data.keys():
            return [f"data (for {', '.join(self.data)}, not for {', '.join(before.data)})"]
        found = (now.difference(before.data[blob]) for blob, now in self.data.items())
        return [f"data ({words})" for words in found if words]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Fingerprint:
        """Return what `to_json` was called on."""
        data = {
            blob: DataPrint(**{**d, "contents": tuple((i, digest) for i, digest in d["contents"])})
            for blob, d in values["data"].items()
        }
        return cls(**{**values, "data": data})


#: What is said of parts that are digests.
_DIGESTS = {
    "net": "net (layers, outputs or folding)",
    "weights": "weights",
    "layers": "layer types (model.layers)",
    "transform": "transform",
}


def fingerprint_of(config: Config, work: Prepared, feed: Feed, device: str) -> Fingerprint:
    """Return what the observations of a run belong to.

    Parameters
    ----------
    config : Config
    work : Prepared
    feed : Feed
        Of the calibration samples, chosen.
    device : str
    """
    c, own = work.calibrate, config.model.layers
    how = chosen_how(work)
    return Fingerprint(
        version=f"caffe-quant {__version__}",
        packages=", ".join(f"{name} {version_of(name)}" for name in _PACKAGES),
        device=device,
        processor=f"{processor()}, instructions {instructions()}",
        net=_digest(caffeio.to_prototxt(work.fused.net).encode()),
        weights=_weights(work.fused.net),
        layers="" if own is None else _digest(own.read_bytes()),
        transform=_digest(*(_transform(blob, t) for blob, (_, t) in sorted(feed.inputs.items()))),
        batches=f"{c.batch_num} of {c.batch_size}",
        samples=f"{how}, seed {c.seed or 0}" if how == "shuffle" else how,
        data=data_prints(feed),
    )


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _weights(net: Net) -> str:
    digest = hashlib.sha256()
    for layer in net.layers:
        for blob in layer.blobs:
            digest.update(repr((layer.name, blob.shape)).encode())
            digest.update(np.ascontiguousarray(blob).tobytes())
    return digest.hexdigest()


def _transform(blob: str, transform: Transform) -> bytes:
    """Return what a transform does, as bytes; large means are arrays, whose repr is cut."""
    values = {**vars(transform), "mean": None}
    mean = None if transform.mean is None else np.asarray(transform.mean, np.float64)
    shape = None if mean is None else mean.shape
    return repr((blob, values, shape)).encode() + (b"" if mean is None else mean.tobytes())
