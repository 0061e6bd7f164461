"""ULQ and ARQ as torch expressions, for tensors that this project's kernels do not reach.

The same results as `kernels.ulq_forward`, `kernels.ulq_backward` and
`kernels.arq_fake_quantize`, to which the tests hold them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import UlqGrid
from kernels.affine import MIN_SCALE

__all__ = ["arq_fake_quantize", "ulq_backward", "ulq_forward"]


def _round_half_away(v: Tensor) -> Tensor:
    t = v.trunc()
    return t + torch.copysign(((v - t).abs() >= 0.5).to(v.dtype), v)


def ulq_forward(x: Tensor, grid: UlqGrid) -> Tensor:
    """Return ``rint(clip(x) / scale) * scale``."""
    clipped = x.clamp(float(grid.low), float(grid.high))
    return clipped.div_(grid.scale).round_().mul_(grid.scale)


def ulq_backward(x: Tensor, gradient: Tensor, grid: UlqGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, clip_max and clip_min; the last two hold one value."""
    above, below = x > float(grid.high), x < float(grid.low)
    outside = above | below
    v = x / grid.scale
    d = ((_round_half_away(v) - v) / grid.steps).masked_fill_(outside, grid.edge)
    by_max = (gradient * (d + above)).sum(dtype=torch.float64)
    by_min = (gradient * (below.to(x.dtype) - d)).sum(dtype=torch.float64)
    dx = gradient.masked_fill(outside, 0)
    return dx, by_max.to(x.dtype).reshape(1), by_min.to(x.dtype).reshape(1)


def arq_fake_quantize(w: Tensor, channel_axis: int | None, bits: int) -> Tensor:
    """Return weights quantized by their own ARQ scales and dequantized."""
    half = 1 << (bits - 1)
    axes = [a for a in range(w.ndim) if a != channel_axis]
    low, high = w.amin(axes, keepdim=True), w.amax(axes, keepdim=True)
    scales = torch.where(high > -low, high / (half - 1), low / -half)
    scales = torch.where(scales < MIN_SCALE, torch.ones_like(scales), scales)
    return _round_half_away(w / scales).clamp_(-half, half - 1).mul_(scales)
