"""Fake quantization inside training: this project's kernels as torch functions.

Data passes through `Ulq`, whose range is learned; weights through ARQ with a straight-through
gradient, their scales taken from the float weights at each forward. The kernels work on the
tensors' own memory, on the CPU and, with numba-cuda, on a CUDA device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import kernels
from kernels import ClipRange, QuantParams, UlqGrid
from pipeline.errors import PipelineError
from pipeline.qat.plan import DataPlan, WeightPlan
from pipeline.retrain import formula

__all__ = ["Ulq", "clips_by_layer", "fake_weights"]


class Ulq(nn.Module):
    """Fake quantization of data with a learned range.

    Parameters
    ----------
    plan : DataPlan
    bits : int
    """

    clip_max: nn.Parameter
    clip_min: nn.Parameter
    previous: Tensor
    ready: Tensor

    def __init__(self, plan: DataPlan, bits: int) -> None:
        super().__init__()
        high, low = plan.clips or (1.0, -1.0)
        self.plan = plan
        self.bits = bits
        self.clip_max = nn.Parameter(torch.tensor([high], dtype=torch.float32))
        self.clip_min = nn.Parameter(torch.tensor([low], dtype=torch.float32))
        self.register_buffer("previous", torch.tensor([high, low], dtype=torch.float32))
        self.register_buffer("ready", torch.tensor(plan.clips is not None))

    def forward(self, x: Tensor, gather: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        """Return the data fake-quantized; the first batch sets a range that was not given."""
        if not self.ready:
            self._begin(gather(x.detach().cpu().numpy()))
        return _UlqFunction.apply(x, self.clip_max, self.clip_min, self._grid())

    @torch.no_grad()
    def _begin(self, x: np.ndarray) -> None:
        """Take the range that IFMR finds."""
        try:
            params = kernels.ifmr(x, bits=self.bits)
        except ValueError as error:
            raise PipelineError(
                f"blob '{self.plan.value.blob}', read by layer '{self.plan.layers[0]}': "
                f"no range can be searched on the first batch: {error}"
            ) from None
        half = 1 << (self.bits - 1)
        high = params.scale * (half - 1 - params.offset)
        low = params.scale * (-half - params.offset)
        self.clip_max.fill_(high)
        self.clip_min.fill_(min(low, 0.0))
        self.previous.copy_(torch.tensor([high, min(low, 0.0)]))
        self.ready.fill_(True)

    @torch.no_grad()
    def _grid(self) -> UlqGrid:
        """Guard the range after the solver's step, and return its steps."""
        high, low = self.clip_max.item(), self.clip_min.item()
        before = ClipRange(high, low, *self.previous.tolist())
        clips = kernels.guard_clips(before, fixed_min=self.plan.fixed_min)
        if clips != before:
            self.clip_max.fill_(clips.high)
            self.clip_min.fill_(clips.low)
            self.previous.copy_(torch.tensor([clips.previous_high, clips.previous_low]))
        try:
            return kernels.ulq_grid(clips.high, clips.low, bits=self.bits)
        except ValueError as error:
            raise PipelineError(
                f"the range of blob '{self.plan.value.blob}', read by layer "
                f"'{self.plan.layers[0]}', is lost: {error}; lower base_lr"
            ) from None

    def params(self) -> QuantParams:
        """Return scale and offset of the learned range."""
        return self._grid().params()


def clips_by_layer(ranges: Iterable[nn.Module]) -> dict[str, tuple[float, float]]:
    """Return the learned clip_max and clip_min of the data that each layer reads."""
    return {
        name: (ulq.clip_max.item(), ulq.clip_min.item())
        for ulq in ranges
        if isinstance(ulq, Ulq)
        for name in ulq.plan.layers
    }


@cache
def _with_kernels() -> bool:
    """Whether this project's CUDA kernels are at hand."""
    return importlib.util.find_spec("numba_cuda") is not None


def _reached(x: Tensor) -> bool:
    """Whether the CUDA kernels work on a tensor: else `formula` does."""
    return x.device.type == "cuda" and _with_kernels()


def _shared(x: Tensor) -> np.ndarray:
    """Return a CUDA tensor as the kernels take it: the same memory, in C order."""
    kernels.select_device("cuda", x.device.index or 0)
    return x.detach().contiguous()  # type: ignore[return-value]


def _one(value: float) -> np.ndarray:
    return np.array([value], np.float32)


class _UlqFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clip_max: Tensor, clip_min: Tensor, grid: UlqGrid) -> Tensor:
        ctx.save_for_backward(x)
        ctx.grid = grid
        if x.device.type != "cpu":
            return formula.ulq_forward(x, grid)
        return torch.from_numpy(kernels.ulq_forward(x.numpy(), grid))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if _reached(x):
            grads = kernels.ulq_backward(_shared(x), _shared(gradient), ctx.grid, device="cuda")
            device_grads = (
                torch.as_tensor(v, device=x.device) for v in (grads[0], *map(_one, grads[1:]))
            )
            return (*device_grads, None)
        if x.device.type != "cpu":
            return (*formula.ulq_backward(x, gradient, ctx.grid), None)
        dx, by_max, by_min = kernels.ulq_backward(x.numpy(), gradient.numpy(), ctx.grid)
        return torch.from_numpy(dx), torch.tensor([by_max]), torch.tensor([by_min]), None


class _ArqFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, axis: int | None, bits: int) -> Tensor:
        if w.device.type != "cpu":
            return formula.arq_fake_quantize(w, axis, bits)
        fake, _ = kernels.arq_fake_quantize(w.numpy(), axis, bits=bits)
        return torch.from_numpy(fake)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None


class _FoldedArqFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, k: Tensor, axis: int | None, bits: int) -> Tensor:
        folded = (w.double() * k).float()
        fake = (_ArqFunction.apply(folded, axis, bits).double() / k).float()
        # BatchNorm and Scale multiply a channel with k = 0 by 0, so its weights do not matter
        # now: left as they are, it can recover when k changes
        return torch.where(k == 0, w, fake)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, None, None


def fake_weights(w: Tensor, plan: WeightPlan, bits: int, k: Tensor | None = None) -> Tensor:
    """Return a layer's fake-quantized weights; the gradient is passed straight through.

    Parameters
    ----------
    w : float32 tensor
        Master weights.
    plan : WeightPlan
    bits : int
    k : float64 tensor, broadcast to the weights, optional
        What folding multiplies each output channel by: then w·k is quantized, and divided by
        k again, as BatchNorm and Scale still follow.
    """
    if k is None:
        return _ArqFunction.apply(w, plan.scale_axis, bits)
    return _FoldedArqFunction.apply(w, k, plan.scale_axis, bits)
