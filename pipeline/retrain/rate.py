"""The learning rate of an iteration: Caffe's policies."""

from __future__ import annotations

import math
from collections.abc import Callable

from caffeio.proto.caffe_pb2 import SolverParameter

__all__ = ["learning_rate"]


def learning_rate(param: SolverParameter, iteration: int) -> float:
    """Return the learning rate of an iteration, counted from 0.

    Parameters
    ----------
    param : SolverParameter
        Checked by `caffeio.read_solver`.
    iteration : int

    Notes
    -----
    fixed: base_lr; step: base_lr · gamma^floor(iter / stepsize); exp: base_lr · gamma^iter;
    inv: base_lr · (1 + gamma · iter)^-power; multistep: base_lr · gamma^(steps passed);
    poly: base_lr · (1 - iter / max_iter)^power;
    sigmoid: base_lr / (1 + exp(-gamma · (iter - stepsize))).
    """
    return param.base_lr * _share(param, iteration)


def _share(p: SolverParameter, i: int) -> float:
    """Return the learning rate as a share of base_lr."""
    shares: dict[str, Callable[[], float]] = {
        "fixed": lambda: 1.0,
        "step": lambda: p.gamma ** (i // p.stepsize),
        "exp": lambda: p.gamma**i,
        "inv": lambda: (1 + p.gamma * i) ** -p.power,
        "multistep": lambda: p.gamma ** sum(i >= step for step in p.stepvalue),
        "poly": lambda: (1 - i / p.max_iter) ** p.power,
        # 1 / (1 + exp(-t)), in a form that cannot overflow
        "sigmoid": lambda: 0.5 + 0.5 * math.tanh(0.5 * p.gamma * (i - p.stepsize)),
    }
    return shares[p.lr_policy]()
