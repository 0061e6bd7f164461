"""Caffe's solvers: what a gradient does to a parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caffeio import Solver

__all__ = ["Learned", "Optimizer"]

#: How many numbers a solver keeps for each value of a parameter.
_HISTORY = {"SGD": 1, "Nesterov": 1, "AdaGrad": 1, "RMSProp": 1, "AdaDelta": 2, "Adam": 2}


@dataclass(frozen=True)
class Learned:
    """A parameter and its share of the solver's settings.

    Attributes
    ----------
    name : str
        E.g. ``"conv1/0"``.
    tensor : Tensor
        A parameter; one without a gradient only decays.
    lr_mult, decay_mult : float
    """

    name: str
    tensor: Tensor
    lr_mult: float
    decay_mult: float


class Optimizer:
    """Applies one of Caffe's solvers to parameters, in place.

    Parameters
    ----------
    solver : Solver
    learned : sequence of Learned

    Attributes
    ----------
    history : dict of parameter name to list of Tensor
        What the solver remembers.
    each : int
        How many numbers for each value.
    """

    def __init__(self, solver: Solver, learned: Sequence[Learned]) -> None:
        self._type = solver.type
        self._param = solver.param
        self._learned = tuple(learned)
        self.each = _HISTORY[solver.type]
        self.history = {
            p.name: [torch.zeros_like(p.tensor) for _ in range(self.each)] for p in self._learned
        }

    @torch.no_grad()
    def step(self, iteration: int, rate: float) -> None:
        """Update every parameter by its gradient, which is used up.

        Parameters
        ----------
        iteration : int
            From 0; Adam's correction depends on it.
        rate : float
            The learning rate, before each parameter's own factor.

        Notes
        -----
        As Caffe: clip the norm of all gradients, divide by iter_size, add the weight decay,
        then the solver's own rule.
        """
        used = [p for p in self._learned if p.tensor.grad is not None]
        factor = self._clipping(used) / self._param.iter_size
        for p in self._learned:
            g = p.tensor.grad
            if g is None:
                g = torch.zeros_like(p.tensor)
            elif factor != 1:
                g.mul_(factor)
            self._decay(p, g)
            p.tensor.sub_(self._update(g, self.history[p.name], rate * p.lr_mult, iteration))
            p.tensor.grad = None

    def _clipping(self, used: Sequence[Learned]) -> float:
        """Return what all gradients are multiplied by."""
        limit = self._param.clip_gradients
        if limit < 0 or not used:
            return 1.0
        norms = torch.stack([p.tensor.grad.norm() for p in used])  # type: ignore[union-attr]
        norm = float(norms.norm())
        return limit / norm if norm > limit else 1.0

    def _decay(self, p: Learned, g: Tensor) -> None:
        decay = self._param.weight_decay * p.decay_mult
        if decay:
            l1 = self._param.regularization_type == "L1"
            g.add_(p.tensor.sign() if l1 else p.tensor, alpha=decay)

    def _update(self, g: Tensor, history: list[Tensor], rate: float, iteration: int) -> Tensor:
        """Return what to subtract from the parameter, and update the history."""
        p, h = self._param, history[0]
        momentum, delta = p.momentum, p.delta
        match self._type:
            case "SGD":
                return h.mul_(momentum).add_(g, alpha=rate)
            case "Nesterov":
                before = h.clone()
                h.mul_(momentum).add_(g, alpha=rate)
                return h * (1 + momentum) - before.mul_(momentum)
            case "AdaGrad":
                h.addcmul_(g, g)
                return g.mul_(rate).div_(h.sqrt().add_(delta))
            case "RMSProp":
                h.mul_(p.rms_decay).addcmul_(g, g, value=1 - p.rms_decay)
                return g.mul_(rate).div_(h.sqrt().add_(delta))
            case "AdaDelta":
                h.mul_(momentum).addcmul_(g, g, value=1 - momentum)
                g.mul_(((history[1] + delta) / (h + delta)).sqrt_())
                history[1].mul_(momentum).addcmul_(g, g, value=1 - momentum)
                return g.mul_(rate)
        # Adam
        t, second = iteration + 1, p.momentum2
        h.mul_(momentum).add_(g, alpha=1 - momentum)
        history[1].mul_(second).addcmul_(g, g, value=1 - second)
        correction = math.sqrt(1 - second**t) / (1 - momentum**t)
        return (h * (rate * correction)).div_(history[1].sqrt().add_(delta))
