"""The most that the instruction of a micro-kernel can do on this machine, measured.

One loop does nothing but multiply and add, in as many independent sums as the processor
has registers for, with one operand in the first-level cache.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from kernels.cpu.codegen import matrix
from kernels.cpu.codegen.ir import Writer, vector
from kernels.cpu.codegen.microkernels import MicroKernel, choose
from kernels.cpu.codegen.native import call, compile_text
from kernels.cpu.jit import jit

__all__ = ["peak"]

_ROUNDS = 200_000
#: Of sums, in as many registers; four others hold data and weights.
_MATRICES = 4


def _text(kernel: MicroKernel, chains: int) -> str:
    """Return the LLVM text of ``peak(memory, rounds)``."""
    one = "float" if kernel.operands.sums == "float32" else "i32"
    many, size = vector(kernel.lanes, one), 4 * kernel.lanes
    w = Writer("peak", [("ptr", "memory"), ("i64", "rounds")])
    w.label("entry")
    data = w.load(many, "%memory")
    w.do("br label %again")
    w.label("again")
    w.phi("%i", "i64", entry="0", again="%next")
    for c in range(chains):
        w.phi(f"%s{c}", many, entry=data, again=f"%n{c}")
    for c in range(chains):
        place = w.at("%memory", str(size * c))
        weights = w.value(f"load volatile {many}, ptr {place}, align 64")
        fresh = w.multiply_add(kernel.multiply_add, f"%s{c}", data, weights)
        w.alias(f"%n{c}", many, fresh)
    w.named("%next", "add i64 %i, 1")
    w.loop("again", "%next", "%rounds", "done")
    w.label("done")
    for c in range(chains):
        w.store(many, f"%n{c}", w.at("%memory", str(size * c)))
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"


def _matrix_text() -> str:
    """Return the LLVM text of ``peak(memory, rounds)`` for products of whole matrices."""
    w = Writer("peak", [("ptr", "memory"), ("i64", "rounds")])
    w.declare("declare void @llvm.x86.tdpbusd(i8, i8, i8)")
    w.label("entry")
    w.do("br label %again")
    w.label("again")
    w.phi("%i", "i64", entry="0", again="%next")
    for sums in range(_MATRICES):
        w.do(f"call void @llvm.x86.tdpbusd(i8 {sums}, i8 {4 + sums // 2}, i8 {6 + sums % 2})")
    w.named("%next", "add i64 %i, 1")
    w.loop("again", "%next", "%rounds", "done")
    w.label("done")
    w.do("ret void")
    return w.text()


@jit
def _run(begin, function, end, memory, rounds):
    if begin:
        call(begin, ())
    call(function, (memory, rounds))
    if end:
        call(end, ())


@cache
def _function(kind: str) -> tuple[tuple[int, int, int], int]:
    """Return the functions before, for and after a run, and the products of a round."""
    kernel = choose(kind)
    if kernel.matrix:
        functions = matrix.begin(), compile_text(_matrix_text(), "peak"), matrix.end()
        return functions, _MATRICES * 16 * 16 * 64
    chains = 24 if kernel.rows > 8 else 12
    function = compile_text(_text(kernel, chains), "peak", kernel.excluded)
    return (0, function, 0), chains * kernel.lanes * kernel.operands.per_word


def peak(kind: str) -> float:
    """Return operations a second of one thread, two for a multiply-add.

    Parameters
    ----------
    kind : {"int8", "float"}
    """
    (before, function, after), products = _function(kind)
    memory = np.zeros(64 * 32, np.uint8)
    address = memory.ctypes.data + -memory.ctypes.data % 64
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        _run(before, function, after, address, _ROUNDS)
        times.append(time.perf_counter() - begin)
    return 2 * products * _ROUNDS / min(times)
