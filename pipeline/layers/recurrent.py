"""LSTM and RNN over sequences (T, N, ...), with Caffe's sequence markers.

`cont` (T, N) is 0 where a sequence begins: what came before is forgotten there. Where it is 1
in the first step, a sequence goes on from the last step of the batch before. A layer whose hidden
state is exposed keeps nothing: the caller gives and takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from caffeio.graph import Layer
from pipeline.layers.activation import sigmoid
from pipeline.layers.base import Kept, LayerType, Shape, any_sign, never
from pipeline.layers.check import arity, blob, expect_blobs, need

__all__ = ["TYPES", "RecurrentForm", "recurrent_form"]

_f32 = np.float32


@dataclass(frozen=True)
class RecurrentForm:
    """What the bottoms of a recurrent layer are.

    Attributes
    ----------
    states : int
        Number of state arrays: 2 for LSTM (h, c), 1 for RNN (h).
    static : bool
        Whether a third bottom is read anew at each step.
    exposed : bool
        Whether the states are bottoms and tops.
    """

    states: int
    static: bool
    exposed: bool


def recurrent_form(layer: Layer, bottoms: int) -> RecurrentForm:
    """Return what the bottoms and tops of a recurrent layer mean."""
    states = 2 if layer.type == "LSTM" else 1
    exposed = layer.param.recurrent_param.expose_hidden
    return RecurrentForm(states, bottoms > 2 + states * exposed, exposed)


def _shapes(layer: Layer, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    form = recurrent_form(layer, len(shapes))
    hidden = form.states * form.exposed
    arity(layer, shapes, bottoms=(2 + hidden, 3 + hidden), tops=(1 + hidden, 1 + hidden))
    x, cont = shapes[:2]
    outputs = layer.param.recurrent_param.num_output
    need(layer, outputs > 0, "recurrent_param needs num_output > 0")
    need(
        layer,
        len(x) >= 2,
        f"bottom '{layer.bottoms[0]}' has shape {x}; it must be (steps, streams, ...)",
    )
    need(
        layer,
        cont == x[:2],
        f"bottom '{layer.bottoms[1]}' has shape {cont}; it marks the "
        f"sequences of {x} and must be {x[:2]}",
    )
    state = (1, x[1], outputs)
    for name, shape in zip(
        layer.bottoms[2 + form.static :], shapes[2 + form.static :], strict=True
    ):
        need(layer, shape == state, f"hidden state '{name}' has shape {shape}, must be {state}")
    rows = 4 * outputs if layer.type == "LSTM" else outputs
    blob_shapes: dict[str, Shape] = {"input_weights": (rows, prod(x[2:])), "bias": (rows,)}
    if form.static:
        need(
            layer,
            shapes[2][:1] == x[1:2],
            f"static bottom '{layer.bottoms[2]}' has shape "
            f"{shapes[2]}; its first axis must be the {x[1]} streams",
        )
        blob_shapes["static_weights"] = (rows, prod(shapes[2][1:]))
    blob_shapes["hidden_weights"] = (rows, outputs)
    if layer.type == "RNN":
        blob_shapes |= {"output_weights": (outputs, outputs), "output_bias": (outputs,)}
    expect_blobs(layer, **blob_shapes)
    return ((x[0], x[1], outputs), *(state,) * hidden)


def _driven(layer: Layer, bottoms: Sequence[np.ndarray], form: RecurrentForm) -> np.ndarray:
    """Return what the inputs add at each step: (T, N, rows)."""
    x = bottoms[0]
    rows = blob(layer, 1).size
    weights = blob(layer, 0, (rows, prod(x.shape[2:])))
    drive = x.reshape(*x.shape[:2], -1) @ weights.T
    drive += blob(layer, 1)
    if form.static:
        static = bottoms[2].reshape(len(bottoms[2]), -1)
        drive += static @ blob(layer, 2, (rows, static.shape[1])).T
    return drive


def _states(
    layer: Layer, bottoms: Sequence[np.ndarray], form: RecurrentForm, previous_states: Kept
) -> list[np.ndarray]:
    """Return the states (N, outputs) before the first step.

    As in Caffe: with at most as many streams as before, each goes on; with more, all begin at 0.
    """
    if form.exposed:
        return [b[0] for b in bottoms[2 + form.static :]]
    streams = bottoms[0].shape[1]
    if previous_states and len(previous_states[0]) >= streams:
        return [state[:streams] for state in previous_states]
    shape = (streams, layer.param.recurrent_param.num_output)
    return [np.zeros(shape, dtype=_f32) for _ in range(form.states)]


def _finish(
    form: RecurrentForm, steps: np.ndarray, states: list[np.ndarray]
) -> tuple[tuple[np.ndarray, ...], Kept]:
    if form.exposed:
        return (steps, *(s[None] for s in states)), ()
    return (steps,), tuple(states)


def _lstm(
    layer: Layer, bottoms: Sequence[np.ndarray], previous_states: Kept
) -> tuple[tuple[np.ndarray, ...], Kept]:
    form = recurrent_form(layer, len(bottoms))
    drive, cont = _driven(layer, bottoms, form), bottoms[1][..., None]
    h, c = _states(layer, bottoms, form, previous_states)
    size = h.shape[1]
    recurrent = blob(layer, 2 + form.static, (4 * size, size)).T
    steps = np.empty((*drive.shape[:2], size), dtype=_f32)
    for t in range(len(drive)):
        gates = (cont[t] * h) @ recurrent + drive[t]
        i, f, o = (sigmoid(gates[:, k * size : (k + 1) * size]) for k in range(3))
        c = np.where(cont[t] == 0, _f32(0), cont[t] * f * c) + i * np.tanh(gates[:, 3 * size :])
        h = o * np.tanh(c)
        steps[t] = h
    return _finish(form, steps, [h, c])


def _rnn(
    layer: Layer, bottoms: Sequence[np.ndarray], previous_states: Kept
) -> tuple[tuple[np.ndarray, ...], Kept]:
    form = recurrent_form(layer, len(bottoms))
    drive, cont = _driven(layer, bottoms, form), bottoms[1][..., None]
    (h,) = _states(layer, bottoms, form, previous_states)
    size = h.shape[1]
    recurrent = blob(layer, 2 + form.static, (size, size)).T
    hidden = np.empty((*drive.shape[:2], size), dtype=_f32)
    for t in range(len(drive)):
        h = np.tanh((cont[t] * h) @ recurrent + drive[t])
        hidden[t] = h
    weights = blob(layer, 3 + form.static, (size, size))
    return _finish(form, np.tanh(hidden @ weights.T + blob(layer, 4 + form.static)), [h])


def _remembering(resume: Callable[..., tuple[tuple[np.ndarray, ...], Kept]]) -> LayerType:
    return LayerType(
        _shapes,
        lambda layer, bottoms, device: resume(layer, bottoms, ())[0],
        never,
        any_sign,
        resume=resume,
    )


TYPES: dict[str, LayerType] = {"LSTM": _remembering(_lstm), "RNN": _remembering(_rnn)}
