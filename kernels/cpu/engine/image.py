"""Images as the compiled steps see them: channels last, a border around, in shared memory.

A position's channels lie together, so that the product reads windows without copying them
and the output stage stores whole vectors. The border holds real zeros: a layer with padding
needs no test for it. Channels may be a slice of a wider image, so that layers whose outputs
are concatenated write into one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernels.cpu.codegen.microkernels import Operands
from kernels.cpu.lines import SHORT

__all__ = ["SLACK", "Image"]

#: Bytes behind every buffer that vector loads may touch.
SLACK = 512


@dataclass(frozen=True)
class Image:
    """Where the values of a blob (N, C, H, W) lie.

    Attributes
    ----------
    buffer : int
        Number of the memory that holds it.
    operands : Operands
        How a value is stored.
    batch, channels, height, width : int
    border : (int, int)
        Rows above and below, columns left and right.
    offset : int
        Zero point of integers; of float32 0.
    pixel : int
        Values from one position to the next, at least `channels`.
    first : int
        Where the channels begin in a position.
    """

    buffer: int
    operands: Operands
    batch: int
    channels: int
    height: int
    width: int
    border: tuple[int, int]
    offset: int
    pixel: int
    first: int = 0

    @property
    def rows(self) -> int:
        """Rows with the border."""
        return self.height + 2 * self.border[0]

    @property
    def columns(self) -> int:
        """Columns with the border."""
        return self.width + 2 * self.border[1]

    @property
    def step(self) -> int:
        """Bytes from one position to the next."""
        return self.pixel * self.operands.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the memory it lies in."""
        return self.batch * self.rows * self.columns * self.step

    @property
    def zero(self) -> int:
        """How a real zero is stored."""
        return self.operands.zero(self.offset)

    @property
    def origin(self) -> int:
        """Bytes from the begin of the memory to the first channel of position (0, 0)."""
        inside = self.border[0] * self.columns + self.border[1]
        return inside * self.step + self.first * self.operands.itemsize

    def byte_offset(self, n: Any, i: Any, j: Any) -> np.ndarray:
        """Return the bytes from `origin` to positions; in the border they may be negative."""
        rows = np.multiply(n, self.rows, dtype=np.int64) + i
        return (rows * self.columns + j) * self.step

    def byte_offsets(self) -> np.ndarray:
        """Return the bytes from `origin` to every position, int64 (N*H*W,)."""
        grid = np.ogrid[: self.batch, : self.height, : self.width]
        return np.ascontiguousarray(self.byte_offset(*grid)).reshape(-1)

    def lines(self) -> tuple[np.ndarray, int] | None:
        """Return where its lines begin, in values from `origin`, and their length in values.

        None if they are short.
        """
        if self.pixel != self.channels:
            return None
        row = self.columns * self.pixel
        if any(self.border):
            per_image, length = (self.height, self.width) if self.border[1] else (1, self.height)
            length *= self.pixel if self.border[1] else row
            images = np.arange(self.batch, dtype=np.int64)[:, None] * (self.rows * row)
            starts = (images + np.arange(per_image, dtype=np.int64) * row).reshape(-1)
        else:
            starts, length = np.zeros(1, np.int64), self.batch * self.rows * row
        return (starts, length) if length >= SHORT else None

    def part(self, first: int, channels: int) -> Image:
        """Return the image of some of its channels."""
        return replace(self, first=self.first + first, channels=channels)

    def view(self, memory: np.ndarray) -> np.ndarray:
        """Return its values (N, H, W, C) in the bytes that hold it."""
        (bh, bw), kind = self.border, np.dtype(self.operands.data)
        values = memory[: self.nbytes].view(kind)
        grid = values.reshape(self.batch, self.rows, self.columns, self.pixel)
        inner = grid[:, bh : bh + self.height, bw : bw + self.width]
        return inner[..., self.first : self.first + self.channels]
