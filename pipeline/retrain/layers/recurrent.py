"""LSTM and RNN over sequences (T, N, ...), with Caffe's sequence markers.

A batch goes on from the state that the batch before left, as in the NumPy form. As in Caffe no
gradient flows back into that batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from caffeio.graph import Layer
from pipeline.layers.recurrent import RecurrentForm, recurrent_form
from pipeline.retrain.layers.base import BlobSpec, Context, Kept, Shape, TorchLayer

__all__ = ["TYPES"]


def _blobs(layer: Layer, shapes: Sequence[Shape]) -> tuple[BlobSpec, ...]:
    p, form = layer.param.recurrent_param, recurrent_form(layer, len(shapes))
    n = p.num_output
    rows = 4 * n if layer.type == "LSTM" else n
    blob_shapes: list[Shape] = [(rows, prod(shapes[0][2:])), (rows,)]
    if form.static:
        blob_shapes.append((rows, prod(shapes[2][1:])))
    blob_shapes.append((rows, n))
    if layer.type == "RNN":
        blob_shapes += [(n, n), (n,)]
    return tuple(
        BlobSpec(shape, p.bias_filler if len(shape) == 1 else p.weight_filler)
        for shape in blob_shapes
    )


def _driven(bottoms: Sequence[Tensor], blobs: Sequence[Tensor], form: RecurrentForm) -> Tensor:
    """Return what the inputs add at each step: (T, N, rows)."""
    x = bottoms[0].reshape(*bottoms[0].shape[:2], -1)
    drive = functional.linear(x, blobs[0], blobs[1].reshape(-1))
    if form.static:
        drive = drive + functional.linear(bottoms[2].reshape(len(bottoms[2]), -1), blobs[2])
    return drive


def _states(
    layer: Layer, bottoms: Sequence[Tensor], form: RecurrentForm, previous_states: Kept
) -> list[Tensor]:
    """Return the states (N, outputs) before the first step; see the NumPy form."""
    if form.exposed:
        return [b[0] for b in bottoms[2 + form.static :]]
    streams, outputs = bottoms[0].shape[1], layer.param.recurrent_param.num_output
    if previous_states and len(previous_states[0]) >= streams:
        return [state[:streams].to(bottoms[0]) for state in previous_states]
    return [bottoms[0].new_zeros(streams, outputs) for _ in range(form.states)]


def _finish(
    form: RecurrentForm, steps: Tensor, states: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Kept]:
    if form.exposed:
        return (steps, *(s[None] for s in states)), ()
    return (steps,), tuple(s.detach() for s in states)


def _lstm(
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], previous_states: Kept
) -> tuple[tuple[Tensor, ...], Kept]:
    form = recurrent_form(layer, len(bottoms))
    h, c = _states(layer, bottoms, form, previous_states)
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
    layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], previous_states: Kept
) -> tuple[tuple[Tensor, ...], Kept]:
    form = recurrent_form(layer, len(bottoms))
    (h,) = _states(layer, bottoms, form, previous_states)
    recurrent, weights, bias = blobs[2 + form.static :]
    steps = []
    for drive, cont in zip(
        _driven(bottoms, blobs, form), bottoms[1].detach()[..., None], strict=True
    ):
        h = torch.tanh(torch.addmm(drive, cont * h, recurrent.T))
        steps.append(h)
    outputs = torch.tanh(functional.linear(torch.stack(steps), weights, bias.reshape(-1)))
    return _finish(form, outputs, [h])


def _remembering(resume: Callable[..., tuple[tuple[Tensor, ...], Kept]]) -> TorchLayer:
    def forward(
        layer: Layer, bottoms: Sequence[Tensor], blobs: Sequence[Tensor], context: Context
    ) -> tuple[Tensor, ...]:
        return resume(layer, bottoms, blobs, ())[0]

    return TorchLayer(forward, _blobs, resume=resume)


TYPES: dict[str, TorchLayer] = {"LSTM": _remembering(_lstm), "RNN": _remembering(_rnn)}
