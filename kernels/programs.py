"""What a whole net is compiled with: images with channels last, packed weights, steps.

A layer's public function takes arrays with channels first, and packs weights at every call.
A program of many layers keeps its data in the layout that is fastest and packs weights
once: see `pipeline.runtime.compiler`, which is made of these parts. The classes here are their
typed face; a backend's own have the same names and methods, which a test compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Protocol, TypeAlias, cast

import numpy as np

from kernels.conv import ConvGeometry
from kernels.dispatch import Device, backend
from kernels.histogram import Seen
from kernels.output import CheckedStage
from kernels.pool import PoolGeometry

__all__ = [
    "Builder",
    "Counter",
    "Engine",
    "Image",
    "Instance",
    "MicroKernel",
    "PackedLayer",
    "Program",
    "StepError",
    "Writes",
    "packed",
    "resident",
]

Pair = tuple[int, int]


class MicroKernel(Protocol):
    """One way to multiply and add: it decides how values and weights are stored."""

    @property
    def name(self) -> str:
        """Operands, tile, instruction set."""
        ...  # pragma: no cover


class Image(Protocol):
    """Where the values of a blob (N, C, H, W) lie.

    Attributes
    ----------
    channels : int
    pixel : int
        Values from one position to the next: more than `channels` in a slice of another image.
    """

    @property
    def channels(self) -> int:  # noqa: D102
        ...  # pragma: no cover

    @property
    def pixel(self) -> int:  # noqa: D102
        ...  # pragma: no cover

    def part(self, first: int, channels: int) -> Image:
        """Return the image of some of its channels."""
        ...  # pragma: no cover


class Writes(Protocol):
    """What becomes of the sums of a step: scale, slope, residual sum, clamp, images to fill."""


class StepError(ValueError):
    """What went wrong in a step of a program.

    Attributes
    ----------
    step : int
    """

    step: int


class Counter(Protocol):
    """Counts what steps show it, for a histogram; see `kernels.Histogram.counter`."""

    @property
    def total(self) -> int:
        """How many values were counted."""
        ...  # pragma: no cover

    @property
    def full(self) -> bool:
        """Whether it must be taken before more is counted."""
        ...  # pragma: no cover

    def settle(self, counts: np.ndarray, exponent: int) -> Seen:
        """Add all to the counts of a histogram, and begin anew."""
        ...  # pragma: no cover


class Instance(Protocol):
    """Buffers of one run, and the steps with their addresses."""

    def view(self, image: Image) -> np.ndarray:
        """Return the values (N, H, W, C) of an image."""
        ...  # pragma: no cover

    def count(self, steps: Sequence[int], counters: Sequence[Counter | None]) -> None:
        """Let steps of `Builder.count` count in counters from now on, or not at all."""
        ...  # pragma: no cover

    def run(self, begin: int, end: int, threads: int) -> None:
        """Run steps [begin, end)."""
        ...  # pragma: no cover


class Program(Protocol):
    """Steps that never change, and the memory that they need."""

    def instance(self) -> AbstractContextManager[Instance]:
        """Take buffers for one run, and give them back."""
        ...  # pragma: no cover


class Builder(Protocol):
    """Collects steps."""

    def image(
        self,
        kind: MicroKernel,
        shape: tuple[int, int, int, int],
        border: Pair = (0, 0),
        offset: int = 0,
    ) -> Image:
        """Return a new image (N, C, H, W) in a buffer of its own."""
        ...  # pragma: no cover

    def now(self) -> int:
        """Return how many steps there are yet."""
        ...  # pragma: no cover

    def touch(self, *images: Image) -> None:
        """Keep the buffers of images alive until now: they are accessed between steps."""
        ...  # pragma: no cover

    def fill(self, image: Image) -> None:
        """Fill the border of an image."""
        ...  # pragma: no cover

    def apply(self, source: Image, writes: Writes) -> None:
        """Add a pass of a float32 image through the output stage."""
        ...  # pragma: no cover

    def count(self, source: Image) -> int | None:
        """Add a step that counts a float32 image; return its number, None if it cannot."""
        ...  # pragma: no cover

    def program(self) -> Program:
        """Finish."""
        ...  # pragma: no cover


class PackedLayer(Protocol):
    """A layer's weights, packed once."""

    def over(self, g: ConvGeometry) -> PackedLayer:
        """Return the same weights for images of another size."""
        ...  # pragma: no cover

    def add(self, to: Builder, source: Image, writes: Writes) -> None:
        """Add the layer's steps."""
        ...  # pragma: no cover


class _ConvWeights(Protocol):
    def pack(
        self,
        kernel: MicroKernel,
        w: np.ndarray,
        bias: np.ndarray,
        g: ConvGeometry,
        offset: int,
        whole: bool = True,
    ) -> PackedLayer: ...  # pragma: no cover


class _DeconvWeights(Protocol):
    def pack(
        self, kernel: MicroKernel, w: np.ndarray, bias: np.ndarray, g: ConvGeometry, offset: int
    ) -> PackedLayer: ...  # pragma: no cover


# within `Engine` these names are its own
_Builder: TypeAlias = Builder
_Writes: TypeAlias = Writes


class Engine(Protocol):
    """The parts of one device, a module.

    Attributes
    ----------
    ConvWeights, DeconvWeights
        Their `pack` packs weights (O, C/g, kh, kw), of a deconvolution (C, O/g, kh, kw), with a
        bias, for data of a zero point; `whole`: the image holds nothing but these channels.
    NanError : type
        A value to be quantized is NaN.
    """

    ConvWeights: _ConvWeights
    DeconvWeights: _DeconvWeights
    NanError: type[StepError]

    def Builder(self) -> _Builder:
        """Return a builder without steps."""
        ...  # pragma: no cover

    def Writes(
        self,
        stage: CheckedStage,
        floats: Image | None = None,
        integers: Image | None = None,
        other: Image | None = None,
        slope: np.ndarray | None = None,
        divisor: float = 1.0,
    ) -> _Writes:
        """Return what becomes of sums; see `kernels.cpu.engine.epilogue.Writes`."""
        ...  # pragma: no cover

    def choose(self, kind: str) -> MicroKernel:
        """Return the fastest micro-kernel for "float" or "int8"."""
        ...  # pragma: no cover

    def conv_border(self, g: ConvGeometry, size: Pair) -> Pair:
        """Return the border that a convolution needs around an image of that size."""
        ...  # pragma: no cover

    def deconv_border(self, g: ConvGeometry, size: Pair) -> Pair:
        """Return the border that a deconvolution needs."""
        ...  # pragma: no cover

    def pool_border(self, g: PoolGeometry, size: Pair) -> Pair:
        """Return the border that average pooling needs."""
        ...  # pragma: no cover

    def add_average(self, to: _Builder, source: Image, g: PoolGeometry, writes: _Writes) -> None:
        """Add average pooling."""
        ...  # pragma: no cover

    def add_largest(self, to: _Builder, source: Image, g: PoolGeometry, out: Image) -> None:
        """Add maximum pooling; both images hold the same kind of values."""
        ...  # pragma: no cover

    def enter(self, x: np.ndarray, view: np.ndarray, add: int = 0) -> None:
        """Copy (N, C, H, W) into the view (N, H, W, C) of an image."""
        ...  # pragma: no cover

    def leave(self, view: np.ndarray, out: np.ndarray, less: int = 0) -> None:
        """Copy the view of an image into an array (N, C, H, W)."""
        ...  # pragma: no cover

    def threads(self) -> int:
        """Return how many threads a run uses."""
        ...  # pragma: no cover


def packed(device: Device | str) -> Engine | None:
    """Return the parts for a device, or None if nets are not compiled for it.

    Parameters
    ----------
    device : str

    Returns
    -------
    Engine or None
    """
    return cast(Engine, backend(device, "programs")) if device == "cpu" else None


def resident(device: Device | str) -> ModuleType | None:
    """Return what nets that stay on a device need, or None for the host's own.

    Parameters
    ----------
    device : str

    Returns
    -------
    module or None
        With `on_device` and `on_host`, and the maps, sums and moves that are no operations of
        this package.
    """
    return backend(device, "elementwise") if device == "cuda" else None
