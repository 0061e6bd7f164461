"""Weights in the order in which the micro-kernels read them, packed once for a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kernels.checks import abs_sums
from kernels.cpu.codegen.microkernels import MicroKernel

__all__ = ["Packed", "pack_channels", "pack_outputs"]


@dataclass(frozen=True)
class Packed:
    """Weights for the steps of one micro-kernel.

    Attributes
    ----------
    kernel : MicroKernel
    weights : array
        For outputs (G, blocks, words of all runs, columns, values of a word), where a last block
        that one vector holds is that narrow, and if there are ``kernel.words`` they
        are filled up to a multiple of that; for channels (blocks, groups of taps, channels
        of a block, values of a word).
    initial_sums : array
        Sums to begin with, (G, blocks, columns) or (blocks, channels of a block).
    outs : int
        Outputs of a group, or channels.
    runs, words : int
        Runs of data, and words in each; for channels 1 and the groups of taps.
    max_abs_sum : float64 array (all outputs,)
        The largest magnitude of a sum, whatever the data; for float32 infinity.
    """

    kernel: MicroKernel
    weights: np.ndarray
    initial_sums: np.ndarray
    outs: int
    runs: int
    words: int
    max_abs_sum: np.ndarray


def _initial_sums(bias: np.ndarray, w: np.ndarray, zero: int, kernel: MicroKernel) -> np.ndarray:
    """Return bias less what the stored zero adds to every sum; int32 wraps as the sums do."""
    if kernel.operands.sums == "float32":
        return bias.astype(np.float32)
    zero_sums = zero * w.sum(axis=tuple(range(bias.ndim, w.ndim)), dtype=np.int64)
    return (bias.astype(np.int64) - zero_sums).astype(np.uint32, casting="unsafe").view(np.int32)


def _max_abs_sum(bias: np.ndarray, w: np.ndarray, kernel: MicroKernel) -> np.ndarray:
    if kernel.operands.sums == "float32":
        return np.full(bias.size, np.inf)
    axes = tuple(range(bias.ndim, w.ndim))
    return (255.0 * abs_sums(w, axes) + np.abs(bias.astype(np.float64))).reshape(-1)


def pack_outputs(
    w: np.ndarray, runs: int, bias: np.ndarray, zero: int, kernel: MicroKernel
) -> Packed:
    """Pack weights for products over channels.

    Parameters
    ----------
    w : int8 or float32 array (G, O, ...)
        For each group and output, in the order of the data; it need not lie so in memory.
    runs : int
        In how many runs of values that lie together in the data.
    bias : int32 or float32 array (G, O)
    zero : int
        How a real zero of the data is stored.
    kernel : MicroKernel
    """
    groups, outs = w.shape[:2]
    values = math.prod(w.shape[2:]) // runs
    per, lanes, columns = kernel.operands.per_word, kernel.lanes, kernel.columns
    words, blocks = -(-values // per), -(-outs // columns)
    whole = runs * words
    if whole >= kernel.words:  # fewer are multiplied one by one
        whole = -(-whole // kernel.words) * kernel.words
    packed = np.zeros((groups, blocks, whole, columns, per), kernel.operands.weights)
    for b in range(blocks):  # one after the other: no second copy of large weights
        block = w[:, b * columns : (b + 1) * columns]
        count = block.shape[1]
        wide = np.zeros((groups, count, runs, words * per), packed.dtype)
        wide[..., :values] = block.reshape(groups, count, runs, values)
        by_word = wide.reshape(groups, count, runs * words, per).transpose(0, 2, 1, 3)
        packed[:, b, : runs * words, :count] = by_word
    if outs - (blocks - 1) * columns <= lanes:
        # the last block is one vector wide and lies in the first half of its place
        last = packed[:, -1].reshape(groups, -1)
        narrow = packed[:, -1, :, :lanes].reshape(groups, -1).copy()
        last[:, : narrow.shape[1]] = narrow
    initial_sums = np.zeros((groups, blocks * columns), kernel.operands.sums)
    initial_sums[:, :outs] = _initial_sums(bias, w, zero, kernel)
    return Packed(kernel, packed, initial_sums, outs, runs, words, _max_abs_sum(bias, w, kernel))


def pack_channels(w: np.ndarray, bias: np.ndarray, zero: int, kernel: MicroKernel) -> Packed:
    """Pack weights for one channel a group.

    Parameters
    ----------
    w : int8 or float32 array (C, taps)
    bias : int32 or float32 array (C,)
    zero : int
        How a real zero of the data is stored.
    kernel : MicroKernel
    """
    channels, taps = w.shape
    per = kernel.operands.per_word
    block = kernel.lanes * per
    groups, blocks = -(-taps // per), -(-channels // block)
    wide = np.zeros((blocks * block, groups * per), kernel.operands.weights)
    wide[:channels, :taps] = w
    ordered = wide.reshape(blocks, block, groups, per).transpose(0, 2, 1, 3)
    initial_sums = np.zeros(blocks * block, kernel.operands.sums)
    initial_sums[:channels] = _initial_sums(bias, w, zero, kernel)
    max_abs_sum = _max_abs_sum(bias, w, kernel)
    return Packed(
        kernel, np.ascontiguousarray(ordered), initial_sums, channels, 1, groups, max_abs_sum
    )
