"""Caffe's fillers: how blobs begin where no weights are given."""

from __future__ import annotations

import math

import numpy as np

from caffeio.graph import Layer
from caffeio.proto.caffe_pb2 import FillerParameter
from pipeline.layers.base import Shape
from pipeline.layers.check import check_room, fail, need

__all__ = ["fill"]


def fill(layer: Layer, f: FillerParameter, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Return a new blob, float32.

    Parameters
    ----------
    layer : Layer
        For errors.
    f : FillerParameter
    shape : tuple of int
    rng : numpy.random.Generator

    Raises
    ------
    caffeio.NetError
        If the filler is unknown or does not fit the shape, or the blob does not fit in memory.
    """
    check_room(layer, [shape])
    if f.type == "constant":
        return np.full(shape, f.value, dtype=np.float32)
    if f.type == "uniform":
        values = rng.uniform(f.min, f.max, shape)
    elif f.type == "gaussian":
        values = rng.normal(f.mean, f.std, shape)
        if f.sparse >= 0:  # so many inputs of each output are kept, on average
            values *= rng.random(shape) < f.sparse / shape[0]
    elif f.type == "xavier":
        limit = math.sqrt(3.0 / _fan(f, shape))
        values = rng.uniform(-limit, limit, shape)
    elif f.type == "msra":
        values = rng.normal(0.0, math.sqrt(2.0 / _fan(f, shape)), shape)
    elif f.type == "positive_unitball":
        values = rng.uniform(0.0, 1.0, shape)
        values /= values.reshape(shape[0], -1).sum(axis=1).reshape(-1, *(1,) * (len(shape) - 1))
    elif f.type == "bilinear":
        values = _bilinear(layer, shape)
    else:
        fail(
            layer,
            f"filler '{f.type}' is not known; use constant, uniform, gaussian, xavier, msra, "
            "positive_unitball or bilinear",
        )
    return values.astype(np.float32)


def _fan(f: FillerParameter, shape: Shape) -> float:
    fan_in = math.prod(shape[1:])
    fan_out = math.prod(shape) // max(math.prod(shape[1:2]), 1)
    if f.variance_norm == FillerParameter.AVERAGE:
        return (fan_in + fan_out) / 2
    return fan_out if f.variance_norm == FillerParameter.FAN_OUT else fan_in


def _bilinear(layer: Layer, shape: Shape) -> np.ndarray:
    """Return the weights that enlarge an image by bilinear interpolation."""
    square = len(shape) == 4 and shape[2] == shape[3]
    need(layer, square, f"filler 'bilinear' needs square kernels of 4 axes, not {shape}")
    factor = math.ceil(shape[3] / 2.0)
    centre = (2 * factor - 1 - factor % 2) / (2.0 * factor)
    line = 1 - np.abs(np.arange(shape[3]) / factor - centre)
    return np.broadcast_to(np.outer(line, line), shape)
