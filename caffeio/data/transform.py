"""From a stored sample to what a net reads: resize, crop, channel order, mean, scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from caffeio.data.decode import MOST_PIXELS, most_pixels
from caffeio.data.source import Sample

__all__ = ["ChannelOrder", "Transform"]

ChannelOrder = Literal["BGR", "RGB", "GRAY"]


@dataclass(frozen=True, eq=False)
class Transform:
    """The preprocessing of one input, in the order of the attributes.

    Attributes
    ----------
    resize : tuple of int or int, optional
        (height, width): to that size, whatever the shape becomes. One number: the shorter side
        to that length, the longer one keeping the aspect, rounded down. Bilinear, on the
        stored pixels.
    crop : tuple of int or int, optional
        (height, width), from the centre; offsets are floor((H - h) / 2), as in Caffe.
    channel_order : {"BGR", "RGB", "GRAY"}
        Of colour images, which are stored as BGR. Arrays whose channels are not known are
        taken as they are.
    mean : float, tuple of float or ndarray, optional
        Subtracted. One number, one for each channel, or C×H×W: of the crop's size, or a larger
        one, of which the centre is taken.
    scale : float or tuple of float
        Multiplied, after the mean. One number, or one for each channel.
    transpose_hw : bool
        Swap height and width at last, as MTCNN wants it.
    mirror : bool
        In training, half of the samples are mirrored, left to right.
    """

    resize: tuple[int, int] | int | None = None
    crop: tuple[int, int] | int | None = None
    channel_order: ChannelOrder = "BGR"
    mean: float | tuple[float, ...] | np.ndarray | None = None
    scale: float | tuple[float, ...] = 1.0
    transpose_hw: bool = False
    mirror: bool = False

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if size is not None and np.min(size) < 1:
                raise ValueError(f"{name} is {size}; sizes are 1 or more")
        if self.channel_order not in {"BGR", "RGB", "GRAY"}:
            raise ValueError(
                f"channel_order is '{self.channel_order}'; it must be BGR, RGB or GRAY"
            )
        if np.ndim(self.mean if self.mean is not None else 0) not in {0, 1, 3}:
            raise ValueError("mean is one number, one for each channel, or C×H×W")
        if np.ndim(self.scale) > 1 or not np.isfinite(self.scale).all():
            raise ValueError("scale is one finite number, or one for each channel")

    def apply(self, sample: Sample, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return what the net reads.

        Parameters
        ----------
        sample : Sample
        rng : numpy.random.Generator, optional
            For training: the crop is taken at a random place, and `mirror` holds.

        Returns
        -------
        ndarray
            float32, C×H×W, C-contiguous: (x - mean) · scale. An array that is not C×H×W keeps
            its shape.

        Raises
        ------
        ValueError
            If the sample is too small for the crop, or has not the channels that the order,
            mean or scale need.
        """
        if not sample.image and sample.data.ndim != 3:
            return self._apply_flat(sample.data)
        pixels = sample.data if sample.image else sample.data.transpose(1, 2, 0)
        pixels = self._resize(pixels)
        whole = pixels.shape[:2]
        begin = self._crop_begin(whole, rng)
        if self.crop is not None:
            height, width = self._crop_size()
            pixels = pixels[begin[0] : begin[0] + height, begin[1] : begin[1] + width]
        planes = self._reorder(pixels, sample).transpose(2, 0, 1)
        out = np.array(planes, np.float32, order="C")
        if self.mean is not None:
            out -= self._mean(out.shape, whole, begin)
        if self.mirror and rng is not None and rng.integers(2):
            out = np.ascontiguousarray(out[:, :, ::-1])
        if not np.array_equal(self.scale, 1.0):
            out *= self._per_channel("scale", self.scale, out.shape[0])
        return np.ascontiguousarray(out.transpose(0, 2, 1)) if self.transpose_hw else out

    def _apply_flat(self, data: np.ndarray) -> np.ndarray:
        """Subtract and multiply single numbers; nothing else has a meaning here."""
        if (self.resize, self.crop, self.transpose_hw) != (None, None, False) or any(
            np.ndim(v) for v in (self.mean, self.scale) if v is not None
        ):
            raise ValueError(
                f"has the shape {data.shape}; only C×H×W can be resized, cropped, "
                "transposed or scaled by channel"
            )
        out = np.array(data, np.float32, order="C")
        if self.mean is not None:
            out -= np.float32(self.mean)  # type: ignore[arg-type]
        out *= np.float32(self.scale)  # type: ignore[arg-type]
        return out

    def _resize(self, pixels: np.ndarray) -> np.ndarray:
        if self.resize is None:
            return pixels
        import cv2

        height, width = pixels.shape[:2]
        if isinstance(self.resize, tuple):
            new_height, new_width = self.resize
        else:
            short = min(height, width)
            new_height, new_width = height * self.resize // short, width * self.resize // short
        if (new_height, new_width) == (height, width):
            return pixels
        if new_height * new_width > most_pixels():
            raise ValueError(
                f"would be resized to {new_width}×{new_height} pixels; more than "
                f"{most_pixels():,} are refused unless {MOST_PIXELS} in the environment allows them"
            )
        resized = cv2.resize(
            np.ascontiguousarray(pixels), (new_width, new_height), interpolation=cv2.INTER_LINEAR
        )
        return resized.reshape(new_height, new_width, pixels.shape[2])

    def _crop_size(self) -> tuple[int, int]:
        assert self.crop is not None
        return self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)

    def _crop_begin(
        self, whole: tuple[int, int], rng: np.random.Generator | None
    ) -> tuple[int, int]:
        """Return where the crop begins: in the centre, offsets rounded down, or anywhere."""
        if self.crop is None:
            return 0, 0
        size = self._crop_size()
        height, width = _room(whole, size, "is")
        if rng is None:
            return height // 2, width // 2
        return int(rng.integers(height + 1)), int(rng.integers(width + 1))

    def _reorder(self, pixels: np.ndarray, sample: Sample) -> np.ndarray:
        channels = pixels.shape[2]
        if self.channel_order == "GRAY":
            if channels == 1:
                return pixels
            if sample.order is None or channels != 3:
                raise ValueError(
                    f"has {channels} channels whose order is not known; GRAY needs "
                    "one channel, or BGR or RGB"
                )
            import cv2

            code = cv2.COLOR_BGR2GRAY if sample.order == "BGR" else cv2.COLOR_RGB2GRAY
            return cv2.cvtColor(np.ascontiguousarray(pixels), code)[:, :, np.newaxis]
        if sample.image and channels == 4:
            raise ValueError("has four channels; decode it with color = true to drop alpha")
        if sample.order is not None and sample.order != self.channel_order and channels == 3:
            return pixels[:, :, ::-1]
        return pixels

    @staticmethod
    def _per_channel(name: str, value: object, channels: int) -> np.ndarray:
        array = np.asarray(value, np.float32).reshape(-1, 1, 1)
        if array.shape[0] not in {1, channels}:
            raise ValueError(f"has {channels} channels, but {name} has {array.shape[0]} values")
        return array

    def _mean(
        self, shape: tuple[int, ...], whole: tuple[int, int], begin: tuple[int, int]
    ) -> np.ndarray:
        if np.ndim(self.mean) < 3:  # type: ignore[arg-type]
            return self._per_channel("mean", self.mean, shape[0])
        mean = np.asarray(self.mean, np.float32)
        if mean.shape[0] not in {1, shape[0]}:
            raise ValueError(f"has {shape[0]} channels, but the mean image has {mean.shape[0]}")
        if mean.shape[1:] != whole:  # not an image as large as the samples: its centre
            height, width = _room(mean.shape[1:], shape[1:], "needs a mean image, but it is")
            begin = (height // 2, width // 2)
        return mean[:, begin[0] : begin[0] + shape[1], begin[1] : begin[1] + shape[2]]


def _room(whole: tuple[int, ...], size: tuple[int, ...], what: str) -> tuple[int, int]:
    """Return by how much an image is higher and wider than a part of it."""
    height, width = whole[0] - size[0], whole[1] - size[1]
    if min(height, width) < 0:
        have = f"{whole[0]}×{whole[1]}"
        raise ValueError(f"{what} {have}, smaller than the crop {size[0]}×{size[1]}")
    return height, width
