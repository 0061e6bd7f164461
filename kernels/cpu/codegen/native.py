"""Compile LLVM text for this processor, or read what becomes of it on another.

This is the one file of this backend that speaks LLVM. `compile_text` returns the address of
a function, which compiled loops call with `call`; so loops are compiled once, whatever
instruction set the functions under them are written for.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from kernels.cpu.jit import compiler_lock, jit

__all__ = ["assembly", "bytes_at", "call", "compile_text", "features"]

#: Linux's numbers, on x86-64, of ``arch_prctl``, of a request for registers, and of AMX's.
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18
#: Linux's numbers of the word that lists a feature of 64-bit ARM, and of the bit in it.
_ARM_FEATURES = {"dotprod": (16, 1 << 20), "i8mm": (26, 1 << 13)}

_ENGINES: list[Any] = []  # they own the machine code


def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


@cache
def features() -> Mapping[str, bool]:
    """Return which instruction sets this processor has, by LLVM's names."""
    here = dict(llvm.get_host_cpu_features())
    if platform.machine().lower() in ("aarch64", "arm64"):
        here |= {"neon": True, **_arm_features()}  # not every LLVM asks for them
    if here.get("amx-tile"):
        here["amx-tile"] = _may_use_tiles()
    return here


def _may_use_tiles() -> bool:
    """Ask Linux for the registers of AMX, for this process and its children."""
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0


def _arm_features() -> dict[str, bool]:
    """Return which dot products a 64-bit ARM processor has: Linux tells; all Macs have ``sdot``."""
    if not sys.platform.startswith("linux"):
        return {"dotprod": sys.platform == "darwin"}
    hardware = ctypes.CDLL(None).getauxval
    hardware.restype, hardware.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return {name: bool(hardware(word) & bit) for name, (word, bit) in _ARM_FEATURES.items()}


def _machine(triple: str, cpu: str, flags: str, jit: bool) -> Any:
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(cpu=cpu, features=flags, opt=3, jit=jit)


@cache  # machine code stays for good: programs hold its address
def compile_text(text: str, name: str, excluded: tuple[str, ...] = ()) -> int:
    """Return the address of a function given as LLVM text; each text is compiled once.

    Parameters
    ----------
    text, name : str
    excluded : tuple of str
        Features, by LLVM's names, that its machine code does not use even if they are here.

    Raises
    ------
    RuntimeError
        If LLVM refuses the text.
    """
    with compiler_lock:
        _initialize()
        flags = ",".join(
            f"{'+' if there and name not in excluded else '-'}{name}"
            for name, there in features().items()
        )
        machine = _machine(llvm.get_process_triple(), llvm.get_host_cpu_name(), flags, True)
        module = llvm.parse_assembly(text)
        module.triple = llvm.get_process_triple()
        module.verify()
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        _ENGINES.append(engine)
        return int(engine.get_function_address(name))


def assembly(text: str, cpu: str, triple: str) -> str:
    """Return the assembly of LLVM text for a processor by LLVM's names of it."""
    _initialize()
    module = llvm.parse_assembly(text)
    module.triple = triple
    return str(_machine(module.triple, cpu, "", False).emit_assembly(module))


def _call(typing_context: Any, address: Any, arguments: Any) -> Any:
    count = len(arguments)
    signature = types.void(types.uintp, types.UniTuple(types.int64, count))

    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [word] * count)
        target = builder.inttoptr(values[0], function.as_pointer())
        builder.call(target, [builder.extract_value(values[1], i) for i in range(count)])
        return context.get_dummy_value()

    return signature, emit


#: ``call(address, arguments)``: in compiled code, call a function with a tuple of int64,
#: where an address may stand for a pointer.
call: Any = intrinsic(_call)


def _pointer(typing_context: Any, address: Any) -> Any:
    kind = types.CPointer(types.uint8)

    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(kind))

    return kind(types.int64), emit


_pointer_to: Any = intrinsic(_pointer)


@jit
def bytes_at(address, count):
    """Return the bytes at an address as an array."""
    return carray(_pointer_to(address), (count,))
