"""The innermost loop of the integer product: one tile of sums, for each instruction set.

This is the one file of this backend that speaks LLVM. A micro-kernel is a function

    tile(acc, data, bases, taps, weights)

that fills ``acc[m, n] = sum over t, k, e of data[bases[m] + taps[t] + 2*k + e] *
weights[t, k, n, e]``, with

- acc: int32 (ROWS, COLUMNS);
- data: int16 (any,), an image or rows; one element behind the last may be read;
- bases: int64 (ROWS,), where each row of the tile begins in `data`;
- taps: int64 (T,), where each run of values begins from there;
- weights: int16 (T, pairs, COLUMNS, 2), a run's values in pairs, zero behind its end.

Its name is its contract: operands, tile, instruction set. To add one for another
instruction set, write its emitter beside `_emit_avx2`, with tests, and name it in `_choose`.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.jit import jit

__all__ = ["COLUMNS", "ROWS", "s16s16_tile_6x16_avx2", "s16s16_tile_6x16_portable", "tile"]

#: Shape of a tile: 6 x 16 sums fill 12 vector registers of 8, which leaves 4 of the 16 free.
ROWS, COLUMNS = 6, 16

_LANES = 8
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_SUMS = ir.VectorType(_I32, _LANES)
_PAIRS = ir.VectorType(ir.IntType(16), 2 * _LANES)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _broadcast_pair(b: Any, address: Any) -> Any:
    """Load two int16 values and repeat them through a vector."""
    pair = b.load(b.inttoptr(address, _I32.as_pointer()))
    pair.align = 2
    none = ir.Constant(_SUMS, ir.Undefined)
    first = b.insert_element(none, pair, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, _LANES), [0] * _LANES)
    return b.bitcast(b.shuffle_vector(first, none, zeros), _PAIRS)


def _load_weights(b: Any, address: Any) -> list[Any]:
    """Load one pair of each column."""
    pointer = b.inttoptr(address, _PAIRS.as_pointer())
    loads = [b.load(b.gep(pointer, [_constant(i)])) for i in range(COLUMNS // _LANES)]
    for load in loads:
        load.align = 2
    return loads


def _phis(b: Any, kind: Any, count: int, values: list[Any], block: Any) -> list[Any]:
    """Return variables of a loop that begin as `values` when it is entered from `block`."""
    made = [b.phi(kind) for _ in range(count)]
    for phi, value in zip(made, values, strict=True):
        phi.add_incoming(value, block)
    return made


def _emit_avx2(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
    """Emit the loops over runs and over pairs, with all sums in registers."""
    acc, data, bases, taps, count, pairs, weights = arguments
    multiply_add = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(_SUMS, [_PAIRS, _PAIRS]), "llvm.x86.avx2.pmadd.wd"
    )
    base_pointer, tap_pointer = (b.inttoptr(p, _I64.as_pointer()) for p in (bases, taps))
    rows = [
        b.add(data, b.shl(b.load(b.gep(base_pointer, [_constant(m)])), _constant(1)))
        for m in range(ROWS)
    ]
    vectors = ROWS * COLUMNS // _LANES
    entry = b.block
    runs, steps, next_run, done = (
        b.append_basic_block(name) for name in ("runs", "steps", "next_run", "done")
    )
    b.branch(runs)

    b.position_at_end(runs)
    run, run_weights = _phis(b, _I64, 2, [_constant(0), weights], entry)
    run_sums = _phis(b, _SUMS, vectors, [ir.Constant(_SUMS, [0] * _LANES)] * vectors, entry)
    offset = b.shl(b.load(b.gep(tap_pointer, [run])), _constant(1))
    starts = [b.add(row, offset) for row in rows]
    b.branch(steps)

    b.position_at_end(steps)
    step, step_weights = _phis(b, _I64, 2, [_constant(0), run_weights], runs)
    sums = _phis(b, _SUMS, vectors, run_sums, runs)
    columns = _load_weights(b, step_weights)
    at = b.shl(step, _constant(2))
    fresh: list[Any] = []
    for m in range(ROWS):
        pair = _broadcast_pair(b, b.add(starts[m], at))
        for column in columns:
            fresh.append(b.add(sums[len(fresh)], b.call(multiply_add, [pair, column])))
    following = b.add(step, _constant(1)), b.add(step_weights, _constant(COLUMNS * 4))
    for phi, value in zip((step, step_weights, *sums), (*following, *fresh), strict=True):
        phi.add_incoming(value, steps)
    b.cbranch(b.icmp_signed("<", following[0], pairs), steps, next_run)

    b.position_at_end(next_run)
    after = b.add(run, _constant(1))
    for phi, value in zip(
        (run, run_weights, *run_sums), (after, following[1], *fresh), strict=True
    ):
        phi.add_incoming(value, next_run)
    b.cbranch(b.icmp_signed("<", after, count), runs, done)

    b.position_at_end(done)
    target = b.inttoptr(acc, _SUMS.as_pointer())
    for i, value in enumerate(fresh):
        b.store(value, b.gep(target, [_constant(i)])).align = 4
    return context.get_dummy_value()


def _tile_avx2(typing_context, acc, data, bases, taps, count, pairs, weights):
    addresses = [types.uintp] * 4
    signature = types.void(*addresses, types.intp, types.intp, types.uintp)
    return signature, _emit_avx2


_tile_avx2_call: Any = intrinsic(_tile_avx2)


@jit
def s16s16_tile_6x16_avx2(acc, data, bases, taps, weights):
    """Fill a tile by ``vpmaddwd``, which adds the products of a pair exactly into int32."""
    _tile_avx2_call(
        acc.ctypes.data,
        data.ctypes.data,
        bases.ctypes.data,
        taps.ctypes.data,
        taps.size,
        weights.shape[1],
        weights.ctypes.data,
    )


@jit
def s16s16_tile_6x16_portable(acc, data, bases, taps, weights):
    """Fill a tile by plain loops, on any processor."""
    for m in range(ROWS):
        line = acc[m]
        line[:] = 0
        for t in range(taps.size):
            start = bases[m] + taps[t]
            for k in range(weights.shape[1]):
                a, b = np.int32(data[start + 2 * k]), np.int32(data[start + 2 * k + 1])
                for n in range(COLUMNS):
                    line[n] += a * np.int32(weights[t, k, n, 0]) + b * np.int32(weights[t, k, n, 1])


def _choose() -> Any:
    """Return the fastest micro-kernel that this processor runs."""
    features = llvmlite.binding.get_host_cpu_features()
    return s16s16_tile_6x16_avx2 if features.get("avx2") else s16s16_tile_6x16_portable


tile = _choose()
