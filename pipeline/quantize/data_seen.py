"""The data as the net sees it: range, mean and deviation of each channel, and which samples."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from caffeio import Net, Value
from caffeio.data import Batch
from kernels import Histogram
from pipeline.errors import PipelineError
from pipeline.layers import Shape

__all__ = ["ChannelSeen", "DataSeen", "DataWatch", "InputSeen", "constant_inputs"]


#: Images that a report shows, and their longer side.
_IMAGES, _SIDE = 4, 96


@dataclass(frozen=True)
class ChannelSeen:
    """The values of one channel of an input.

    Attributes
    ----------
    low, high, mean, deviation : float
    """

    low: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class InputSeen:
    """What one input of the net was given.

    Attributes
    ----------
    blob : str
    shape : tuple of int
        Of one sample.
    declared : tuple of int or None
        What the prototxt says of it.
    channels : tuple of ChannelSeen
        Of images one for each channel; of anything else one for all values.
    """

    blob: str
    shape: Shape
    declared: Shape | None
    channels: tuple[ChannelSeen, ...]


@dataclass(frozen=True)
class DataSeen:
    """The samples that were observed.

    Attributes
    ----------
    choice : str
        ``"first"``, ``"spread"`` or ``"shuffle"``.
    names : tuple of str
        In the order in which they were read.
    places : tuple of int
        Their numbers in the source.
    inputs : tuple of InputSeen
    thumbnails : tuple of str
        The first few images as the net is given them, small PNG files in base64.
    """

    choice: str
    names: tuple[str, ...]
    places: tuple[int, ...]
    inputs: tuple[InputSeen, ...]
    thumbnails: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say which inputs hold nothing: image channels of one value, or nothing but zeros."""
        return tuple(line for seen in self.inputs for line in _empty(seen, len(self.names)))


def _empty(seen: InputSeen, samples: int) -> Iterator[str]:
    images = len(seen.shape) >= 3
    for i, c in enumerate(seen.channels):
        if c.low != c.high or (c.low and not images):  # an input of ones, such as 'cont', is right
            continue
        what = f"channel {i} of input" if len(seen.channels) > 1 else "input"
        yield (
            f"{what} '{seen.blob}' is {c.low:g} everywhere in all {samples} calibration samples: "
            "is the data read as it was in training?"
        )


@dataclass
class _Sums:
    """Sums of one input, in float64: deviations merge without loss (Chan et al. 1983)."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    shape: Shape
    values: int = 0

    def add(self, rows: np.ndarray) -> None:
        """Add one sample (channels, values)."""
        self.low = np.minimum(self.low, rows.min(axis=1))
        self.high = np.maximum(self.high, rows.max(axis=1))
        count = rows.shape[1]
        exact = rows.astype(np.float64)
        mean = exact.mean(axis=1)
        exact -= mean[:, None]
        whole = self.values + count
        distance = mean - self.mean
        self.squares += np.einsum("ij,ij->i", exact, exact)
        self.squares += distance**2 * (self.values * count / whole)
        self.mean += distance * (count / whole)
        self.values = whole

    def channels(self) -> tuple[ChannelSeen, ...]:
        deviation = np.sqrt(self.squares / max(self.values, 1))
        columns = (self.low, self.high, self.mean, deviation)
        return tuple(ChannelSeen(*row) for row in np.stack(columns, axis=1).tolist())


@dataclass
class DataWatch:
    """Sums up batches while they go by.

    All samples of an input have one shape; the reader sees to that, but it does not know of those
    that were read before a run was interrupted.
    """

    _sums: dict[str, _Sums] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)
    _places: list[int] = field(default_factory=list)
    _images: list[np.ndarray] = field(default_factory=list)

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, having looked at each."""
        for batch in batches:
            self._names += batch.names
            self._places += batch.places
            for blob, x in batch.inputs.items():
                self._add(blob, x, batch.names[0])
            yield batch

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all that was summed up as arrays of its own, to be kept; see `from_arrays`."""
        about = {
            "names": self._names,
            "places": [int(place) for place in self._places],
            "sums": [(blob, s.shape, s.values) for blob, s in self._sums.items()],
            "images": len(self._images),
        }
        arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        for i, s in enumerate(self._sums.values()):
            arrays[f"sums{i}"] = np.stack([s.low, s.high, s.mean, s.squares])
        return {**arrays, **{f"image{i}": x.copy() for i, x in enumerate(self._images)}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> DataWatch:
        """Return what `to_arrays` was called on."""
        about = json.loads(arrays["about"].tobytes())
        sums = {}
        for i, (blob, shape, values) in enumerate(about["sums"]):
            low, high, mean, squares = np.array(arrays[f"sums{i}"])
            sums[blob] = _Sums(low, high, mean, squares, tuple(shape), values)
        images = [np.array(arrays[f"image{i}"]) for i in range(about["images"])]
        return cls(sums, about["names"], about["places"], images)

    def _add(self, blob: str, x: np.ndarray, name: str) -> None:
        if not x.size:
            return
        channels = x.shape[1] if x.ndim >= 4 else 1
        if blob not in self._sums:
            low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
            nothing = np.zeros((2, channels))
            self._sums[blob] = _Sums(low, high, nothing[0], nothing[1], x.shape[1:])
        elif x.shape[1:] != self._sums[blob].shape:
            raise PipelineError(
                f"'{name}' gives the shape {x.shape[1:]} for '{blob}', but the samples before it "
                f"gave {self._sums[blob].shape}; resize or crop them to one size"
            )
        if x.ndim == 4 and x.shape[1] in (1, 3):
            self._images += [np.array(image) for image in x[: _IMAGES - len(self._images)]]
        for sample in x:
            self._sums[blob].add(sample.reshape(channels, -1))

    def seen(
        self, choice: str, declared: Mapping[str, Shape | None], order: str = "BGR"
    ) -> DataSeen:
        """Return what went by.

        Parameters
        ----------
        choice : str
            How the samples were chosen.
        declared : mapping of blob name to shape
            What the prototxt says of the inputs, batch first.
        order : "BGR", "RGB" or "GRAY"
            What the channels are meant to be.
        """
        inputs = tuple(
            InputSeen(blob, sums.shape, _sample(declared.get(blob)), sums.channels())
            for blob, sums in self._sums.items()
        )
        thumbnails = tuple(_thumbnail(image, order) for image in self._images)
        return DataSeen(choice, tuple(self._names), tuple(self._places), inputs, thumbnails)


def _thumbnail(image: np.ndarray, order: str) -> str:
    """Return an image (C, H, W) as a small PNG in base64, its least value black."""
    import cv2

    low, high = float(np.nanmin(image)), float(np.nanmax(image))
    pixels = np.nan_to_num((image - low) * (255 / (high - low or 1.0)))
    rows: np.ndarray = pixels.astype(np.uint8).transpose(1, 2, 0)
    rows = rows[:, :, ::-1] if order == "RGB" else rows
    scale = _SIDE / max(rows.shape[:2])
    if scale < 1:
        size = (max(1, round(rows.shape[1] * scale)), max(1, round(rows.shape[0] * scale)))
        rows = cv2.resize(np.ascontiguousarray(rows), size, interpolation=cv2.INTER_AREA)
    _, png = cv2.imencode(".png", np.ascontiguousarray(rows))
    return base64.b64encode(png.tobytes()).decode("ascii")


def _sample(shape: Shape | None) -> Shape | None:
    return None if shape is None else tuple(shape[1:])


def constant_inputs(
    net: Net, planned: Iterable[str], histograms: Mapping[Value, Histogram]
) -> Iterator[str]:
    """Say which layers to quantize have read one value only: their scale means nothing."""
    names = set(planned)
    for layer, link in zip(net.layers, net.links, strict=True):
        if layer.name not in names:
            continue
        hist = histograms[link.reads[0]]
        if hist.total and hist.low == hist.high:
            yield (
                f"layer '{layer.name}' reads blob '{link.reads[0].blob}', which is {hist.low:g} "
                "everywhere in all calibration samples: its scale means nothing"
            )
