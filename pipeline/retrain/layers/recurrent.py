"""LSTM and RNN over sequences (T, N, ...), with Caffe's sequence markers.

Every call starts from a zero state, or from the exposed hidden bottoms, as in the NumPy form.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from caffeio.graph import Layer
from pipeline.layers.recurrent import RecurrentForm, recurrent_form
from pipeline.retrain.layers.base import BlobSpec, Context, Shape, TorchLayer

__all__ = ["TYPES"]


def _blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    p, form = layer.param.recurrent_param, recurrent_form(layer, len(shapes))
    n = p.num_output
    rows = 4 * n if layer.type == "LSTM" else n
    wanted: list[Shape] = [(rows, prod(shapes[0][2:])), (rows,)]
    if form.static:
        wanted.append((rows, prod(shapes[2][1:])))
    wanted.append((rows, n))
    if layer.type == "RNN":
        wanted += [(n, n), (n,)]
    return tuple(
        BlobSpec(shape, p.bias_filler if len(shape) == 1 else p.weight_filler) for shape in wanted
    )


def _driven(bottoms: Sequence[Tensor], blobs: Sequence[Tensor], form: RecurrentForm) -> Tensor:
    """Return what the inputs add at each step: (T, N, rows)."""
    drive = functional.linear(bottoms[0].flatten(2), blobs[0], blobs[1].reshape(-1))
    if form.static:
        drive = drive + functional.linear(bottoms[2].flatten(1), blobs[2])
    return drive


def _states(layer: Layer, bottoms: Sequence[Tensor], form: RecurrentForm) -> list[Tensor]:
    if form.exposed:
        return [b[0] for b in bottoms[2 + form.static :]]
    streams, outputs = bottoms[0].shape[1], layer.param.recurrent_param.num_output
    return [bottoms[0].new_zeros(streams, outputs) for _ in range(form.states)]


def _finish(form: RecurrentForm, steps: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (steps, *(s[None] for s in states)) if form.exposed else (steps,)


def _lstm(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    form = recurrent_form(layer, len(bottoms))
    h, c = _states(layer, bottoms, form)
    recurrent, size = blobs[2 + form.static].T, h.shape[1]
    steps = []
    for drive, cont in zip(
        _driven(bottoms, blobs, form), bottoms[1].detach()[..., None], strict=True
    ):
        gates = torch.addmm(drive, cont * h, recurrent)
        i, f, o = torch.sigmoid(gates[:, : 3 * size]).chunk(3, 1)
        c = cont * f * c + i * torch.tanh(gates[:, 3 * size :])
        h = o * torch.tanh(c)
        steps.append(h)
    return _finish(form, torch.stack(steps), [h, c])


def _rnn(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
) -> tuple[Tensor, ...]:
    form = recurrent_form(layer, len(bottoms))
    (h,) = _states(layer, bottoms, form)
    recurrent, weights, bias = blobs[2 + form.static :]
    steps = []
    for drive, cont in zip(
        _driven(bottoms, blobs, form), bottoms[1].detach()[..., None], strict=True
    ):
        h = torch.tanh(torch.addmm(drive, cont * h, recurrent.T))
        steps.append(h)
    outputs = torch.tanh(functional.linear(torch.stack(steps), weights, bias.reshape(-1)))
    return _finish(form, outputs, [h])


TYPES: dict[str, TorchLayer] = {
    "LSTM": TorchLayer(_lstm, _blobs),
    "RNN": TorchLayer(_rnn, _blobs),
}
