"""The processes that share a batch: one, or many under ``torchrun``."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Group", "join", "leads_here"]


@dataclass(frozen=True)
class Group:
    """Who shares the work.

    Attributes
    ----------
    rank, size : int
        This process among how many.
    device : torch.device
        Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, with its gradient."""
        if self.size == 1:
            return x
        return _Total.apply(x)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of a detached tensor over all processes."""
        if self.size == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        any_flag = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(any_flag, op=dist.ReduceOp.MAX)
        return bool(any_flag.item())

    def gather(self, x: np.ndarray) -> np.ndarray:
        """Return the arrays of all processes, flat, one after another; they are of one size."""
        if self.size == 1:
            return x.reshape(-1)
        own = torch.from_numpy(np.ascontiguousarray(x.reshape(-1))).to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return torch.cat(parts).cpu().numpy()


class _Total(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def leads_here() -> bool:
    """Whether this process will lead the group that ``torchrun`` has announced, or is alone."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join(device: str) -> Iterator[Group]:
    """Join the group that ``torchrun`` has announced; without it, be alone.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        On "cuda" each process of a machine takes a device of its own.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        torch.cuda.set_device(local)
    where = torch.device(device, local) if device == "cuda" else torch.device(device)
    if size == 1:
        yield Group(0, 1, where)
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), where)
        dist.barrier()  # no process leaves while others still communicate
    finally:
        gc.collect()  # reference cycles that hold the group must be freed before it
        dist.destroy_process_group()
