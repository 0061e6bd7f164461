"""Products of matrices by AMX, as machine code: 32 positions by one or two vectors of outputs.

``begin()`` says how large the matrices in the registers are, ``end()`` gives the registers back;
both belong around what one thread computes.

``gather(rows, pitch, data, bases, count, taps, runs, bytes)`` copies the windows of `count`
positions to rows that are `pitch` bytes apart: ``bytes`` bytes of each of `runs` runs, one behind
the other. It reads and writes up to 63 bytes more.

``product(acc, rows, pitch, blocks, weights, start)`` fills ``acc[m, n] = start[n] + sum over k of
word(rows + pitch*m + 4*k) * weights[k, n]`` for 32 rows and `blocks` times 16 words, as
`kernels.cpu.codegen.gemm` does. No sum saturates.
"""

from __future__ import annotations

from functools import cache

from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Value

__all__ = ["ROWS", "begin", "end", "gather", "product", "product_text"]

#: Positions of a product.
ROWS = 32

#: Bytes of a row, and rows, of a matrix in a register; and there are eight.
_BYTES, _ROWS, _REGISTERS = 64, 16, 8
#: Registers of the sums are 0 to 3, by half of the rows and vector; then come data and weights.
_DATA, _WEIGHTS = 4, 6


def _configuration() -> str:
    """Return the 64 bytes that give every register its full size, as LLVM writes them."""
    sizes = bytes([_BYTES, 0] * _REGISTERS).ljust(32, b"\0")
    whole = bytes([1]).ljust(16, b"\0") + sizes + bytes([_ROWS] * _REGISTERS).ljust(16, b"\0")
    return "".join(f"\\{byte:02x}" for byte in whole)


@cache
def begin() -> int:
    """Return the address of ``begin``."""
    w = Writer("begin", [])
    w.declare(f'@sizes = private constant [64 x i8] c"{_configuration()}"')
    w.declare("declare void @llvm.x86.ldtilecfg(ptr)")
    w.label("entry")
    w.do("call void @llvm.x86.ldtilecfg(ptr @sizes)")
    w.do("ret void")
    return compile_text(w.text(), "begin")


@cache
def end() -> int:
    """Return the address of ``end``."""
    w = Writer("end", [])
    w.declare("declare void @llvm.x86.tilerelease()")
    w.label("entry")
    w.do("call void @llvm.x86.tilerelease()")
    w.do("ret void")
    return compile_text(w.text(), "end")


@cache
def gather() -> int:
    """Return the address of ``gather``."""
    names = ("rows", "pitch", "data", "bases", "count", "taps", "runs", "bytes")
    pointers = ("rows", "data", "bases", "taps")
    w = Writer("gather", [("ptr" if n in pointers else "i64", n) for n in names])
    w.label("entry")
    w.do("br label %position")
    w.label("position")
    w.phi("%m", "i64", entry="0", next="%m_next")
    w.phi("%row", "ptr", entry="%rows", next="%row_next")
    window = w.at("%data", w.load("i64", w.element("i64", "%bases", "%m")))
    w.do("br label %run")
    w.label("run")
    w.phi("%t", "i64", position="0", run_next="%t_next")
    w.phi("%to", "ptr", position="%row", run_next="%to_next")
    source = w.at(window, w.load("i64", w.element("i64", "%taps", "%t")))
    w.do("br label %copy")
    w.label("copy")
    w.phi("%b", "i64", run="0", copy="%b_next")
    Value.load(w, "i32", _BYTES // 4, w.at(source, "%b")).store(w.at("%to", "%b"))
    w.named("%b_next", f"add i64 %b, {_BYTES}")
    w.loop("copy", "%b_next", "%bytes", "run_next")
    w.label("run_next")
    w.named("%t_next", "add i64 %t, 1")
    w.named("%to_next", "getelementptr i8, ptr %to, i64 %bytes")
    w.loop("run", "%t_next", "%runs", "next")
    w.label("next")
    w.named("%m_next", "add i64 %m, 1")
    w.named("%row_next", "getelementptr i8, ptr %row, i64 %pitch")
    w.loop("position", "%m_next", "%count", "done")
    w.label("done")
    w.do("ret void")
    return compile_text(w.text(), "gather")


@cache
def product(vectors: int) -> int:
    """Return the address of ``product`` for one or two vectors of outputs."""
    return compile_text(product_text(vectors), "product")


def product_text(vectors: int) -> str:
    """Return the LLVM text of ``product``."""
    names = ("acc", "rows", "pitch", "blocks", "weights", "start")
    w = Writer("product", [("i64" if n in ("pitch", "blocks") else "ptr", n) for n in names])
    w.declare("declare void @llvm.x86.tileloadd64(i8, ptr, i64)")
    w.declare("declare void @llvm.x86.tilestored64(i8, ptr, i64)")
    w.declare("declare void @llvm.x86.tdpbusd(i8, i8, i8)")
    width = _BYTES * vectors
    sums = [(2 * half + v, half, v) for half in range(2) for v in range(vectors)]

    def load(register: int, pointer: str, step: str) -> None:
        w.do(f"call void @llvm.x86.tileloadd64(i8 {register}, ptr {pointer}, i64 {step})")

    w.label("entry")
    for register, _, v in sums:  # the same row again and again
        load(register, w.at("%start", str(_BYTES * v)), "0")
    w.named("%half", f"mul i64 %pitch, {_ROWS}")
    w.do("br label %block")
    w.label("block")
    w.phi("%b", "i64", entry="0", block="%b_next")
    w.phi("%data", "ptr", entry="%rows", block="%data_next")
    w.phi("%at", "ptr", entry="%weights", block="%at_next")
    load(_DATA, "%data", "%pitch")
    for v in range(vectors):
        load(_WEIGHTS + v, w.at("%at", str(_BYTES * v)), str(width))
    load(_DATA + 1, w.at("%data", "%half"), "%pitch")
    for register, half, v in sums:
        of = f"i8 {register}, i8 {_DATA + half}, i8 {_WEIGHTS + v}"
        w.do(f"call void @llvm.x86.tdpbusd({of})")
    w.named("%b_next", "add i64 %b, 1")
    w.named("%data_next", f"getelementptr i8, ptr %data, i64 {_BYTES}")
    w.named("%at_next", f"getelementptr i8, ptr %at, i64 {_ROWS * width}")
    w.loop("block", "%b_next", "%blocks", "done")
    w.label("done")
    for register, half, v in sums:
        place = w.at("%acc", str(half * _ROWS * width + _BYTES * v))
        w.do(f"call void @llvm.x86.tilestored64(i8 {register}, ptr {place}, i64 {width})")
    w.do("ret void")
    return w.text()
