"""Which micro-kernels there are, and which of them this processor runs best."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

import kernels.cpu.codegen.microkernels as folder
from kernels.cpu.codegen.microkernels.contract import MicroKernel
from kernels.cpu.codegen.native import features
from kernels.dispatch import DeviceError

__all__ = ["all_kernels", "choose"]

#: Names an instruction set to use instead of the fastest: for tests and comparisons.
VARIABLE = "CAFFE_QUANT_ISA"


@lru_cache(maxsize=1)
def all_kernels() -> tuple[MicroKernel, ...]:
    """Return the micro-kernels of every file in this folder."""
    kernels: list[MicroKernel] = []
    for module in pkgutil.iter_modules(folder.__path__):
        kernels += getattr(import_module(f"{folder.__name__}.{module.name}"), "KERNELS", ())
    return tuple(kernels)


def runs_here(kernel: MicroKernel) -> bool:
    """Whether this processor has all that a micro-kernel needs."""
    here = features()
    return all(here.get(name, False) for name in kernel.features)


def choose(kind: str) -> MicroKernel:
    """Return the fastest micro-kernel of this processor for "float" or "int8".

    Where the instruction set that CAFFE_QUANT_ISA names has none of the kind, it is the fastest
    that needs nothing beyond it.

    Raises
    ------
    DeviceError
        If CAFFE_QUANT_ISA names an instruction set that has no micro-kernel here.
    """
    return _chosen(kind, os.environ.get(VARIABLE), all_kernels, features)


@lru_cache(maxsize=32)
def _chosen(kind: str, isa: str | None, *_sources: Callable) -> MicroKernel:
    """Return what `choose` does, remembered as long as its sources are the same functions."""
    here = [k for k in all_kernels() if runs_here(k)]
    able = [k for k in here if (k.operands.data == "float32") == (kind == "float")]
    if isa:
        named = [k for k in here if k.isa == isa]
        if not named:
            available = ", ".join(sorted({k.isa for k in here}))
            raise DeviceError(f"{VARIABLE}={isa}: this processor runs {available}")
        there = {name for k in named for name in k.features}
        within = [k for k in able if there.issuperset(k.features)]
        able = [k for k in able if k.isa == isa] or within
    return max(able, key=lambda k: k.priority)
