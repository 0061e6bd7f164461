"""Pooling as a fork has it: padding of its own on each side, and averages that leave it out."""

from __future__ import annotations

import numpy as np

import kernels

__all__ = ["Margins", "padded_pool"]

#: Rows above and below, columns left and right.
Margins = tuple[int, int, int, int]


def padded_pool(
    x: np.ndarray,
    method: str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    margins: Margins,
    ceil_mode: bool,
    device: str,
) -> np.ndarray:
    """Pool an image (N, C, H, W) with these margins around it.

    ``"MAX"`` never takes a margin; ``"AVE"`` counts it as zeros; ``"AVE_EXC_PAD"`` divides the sum
    by the number of pixels of the image itself.
    """
    top, bottom, left, right = margins
    around = ((0, 0), (0, 0), (top, bottom), (left, right))
    if method == "MAX":
        padded = np.pad(x, around, constant_values=np.finfo(np.float32).min)
        y = kernels.max_pool2d(padded, kernel, stride=stride, ceil_mode=ceil_mode, device=device)
        assert isinstance(y, np.ndarray)
        return y

    def mean(image: np.ndarray) -> np.ndarray:
        return kernels.avg_pool2d(
            np.pad(image, around), kernel, stride=stride, ceil_mode=ceil_mode, device=device
        )

    if method == "AVE":
        return mean(x)
    return mean(x) / mean(np.ones((1, 1, *x.shape[2:]), np.float32))
