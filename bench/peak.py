"""The most that the instruction of a micro-kernel can do on this machine, measured.

One loop does nothing but multiply and add, in as many independent sums as the processor
has registers for, with one operand in the first-level cache.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from kernels.cpu.codegen.ir import Writer, vector
from kernels.cpu.codegen.microkernels import MicroKernel, choose
from kernels.cpu.codegen.native import call, compile_text
from kernels.cpu.jit import jit

__all__ = ["peak"]

_ROUNDS = 200_000


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


@jit
def _run(function, memory, rounds):
    call(function, (memory, rounds))


@cache
def _function(kind: str) -> tuple[MicroKernel, int, int]:
    kernel = choose(kind)
    chains = 24 if kernel.rows > 8 else 12
    return kernel, chains, compile_text(_text(kernel, chains), "peak", kernel.excluded)


def peak(kind: str) -> float:
    """Return operations a second of one thread, two for a multiply-add.

    Parameters
    ----------
    kind : {"int8", "float"}
    """
    kernel, chains, function = _function(kind)
    memory = np.zeros(64 * 32, np.uint8)
    address = memory.ctypes.data + -memory.ctypes.data % 64
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        _run(function, address, _ROUNDS)
        times.append(time.perf_counter() - begin)
    products = chains * kernel.lanes * kernel.operands.per_word
    return 2 * products * _ROUNDS / min(times)
