"""The functions that ARM's micro-kernels make, run in an emulator, against whole numbers.

Addresses are part of what they are given: tables hold some. So all arrays of a call are copied to
one memory, which the emulated program maps where Python has said, and addresses are exchanged.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from test_kernels_tiles import at, check, stage_table, values, weights

from kernels import OutputStage, QuantParams, check_output
from kernels.cpu.codegen import bin_index, gemm, ifmr_loss, max_pool, planes, transpose
from kernels.cpu.codegen.epilogue import Form, store_text
from kernels.cpu.codegen.microkernels import F32, S8, S16, U8, MicroKernel, all_kernels
from kernels.cpu.codegen.native import assembly
from kernels.cpu.engine.epilogue import Writes, output_form
from kernels.cpu.engine.image import Image
from kernels.reference.output import store

ARM = [k for k in all_kernels() if k.triple.startswith("aarch64")]
CC, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
emulated = pytest.mark.skipif(
    not (shutil.which(CC) and shutil.which(EMULATOR)),
    reason="needs Debian's qemu-user, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
)

BASE = 1 << 32
#: Reads a call's arguments and the memory, calls, writes the memory.
HARNESS = """
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
void called();
int main(int count, char **names) {
    int64_t a[11], size;
    if (fread(&size, 8, 1, stdin) != 1 || fread(a, 8, 11, stdin) != 11) return 2;
    char *memory = mmap((void *)BASE, size, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (memory != (char *)BASE || fread(memory, 1, size, stdin) != size) return 3;
    ((void (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
               int64_t, int64_t))called)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8],
                                         a[9], a[10]);
    return fwrite(memory, 1, size, stdout) != size;
}
"""


class Emulated:
    """A function of LLVM text as a program for ARM."""

    def __init__(self, folder: Path, kernel: MicroKernel, text: str) -> None:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        module = llvm.parse_assembly(re.sub(r"define void @\w+", "define void @called", text))
        module.triple = kernel.triple
        target = llvm.Target.from_triple(kernel.triple)
        machine = target.create_target_machine(cpu=kernel.cpu, opt=3)
        (folder / "f.o").write_bytes(machine.emit_object(module))
        (folder / "main.c").write_text(HARNESS.replace("BASE", f"{BASE}L"))
        self.program = folder / "program"
        command = [CC, "-O1", "-static", "main.c", "f.o", "-o", self.program]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    def __call__(self, arguments: tuple[int, ...], arrays: list[np.ndarray]) -> None:
        """Call it; `arrays` are all that the arguments, or int64 in other arrays, point to."""
        places, end = {}, 0
        for array in {at(a): a for a in arrays}.values():
            places[at(array)] = (end, array)
            end += -(-array.nbytes // 64) * 64 + 512  # vectors may be read behind an array
        memory = np.zeros(end, np.uint8)
        moved = {host: BASE + place for host, (place, _) in places.items()}
        for place, array in places.values():
            given = array
            if array.dtype == np.int64:
                given = np.array([moved.get(v, v) for v in array.ravel().tolist()], np.int64)
            flat = np.ascontiguousarray(given).view(np.uint8).ravel()
            memory[place : place + array.nbytes] = flat
        numbers = [moved.get(int(v), int(v)) for v in arguments] + [0] * (11 - len(arguments))
        sent = np.array([end, *numbers], np.int64).tobytes() + memory.tobytes()
        command = [EMULATOR, "-cpu", "max", self.program]
        done = subprocess.run(command, input=sent, capture_output=True, check=True)
        result = np.frombuffer(done.stdout, np.uint8)
        for place, array in places.values():
            if array.dtype != np.int64:
                there = result[place : place + array.nbytes].view(array.dtype)
                array[...] = there.reshape(array.shape)


def ends(kernel: MicroKernel) -> list[tuple[int, int]]:
    """Data and weights as far from zero as they can be, each way."""
    if kernel.operands is F32:
        return []
    low, high = {U8: (0, 255), S8: (-128, 127), S16: (-255, 255)}[kernel.operands]
    return [(high, 127), (high, -128), (low, 127), (low, -128)]


@emulated
@pytest.mark.parametrize("kernel", ARM, ids=lambda k: k.name)
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("short", [False, True], ids=["whole", "short"])
def test_a_tile(tmp_path: Path, kernel: MicroKernel, vectors: int, short: bool):
    rng = np.random.default_rng(vectors)
    rows = kernel.tail_rows if short else kernel.rows
    run = Emulated(tmp_path, kernel, gemm.tile_text(kernel, rows, vectors))
    per, size, columns = kernel.operands.per_word, kernel.operands.itemsize, vectors * kernel.lanes
    sizes = [(1, 1, None), (3, 5, None), (2, 150, None), (1, 333, None)]
    for runs, words, end in (*sizes, *((2, 301, end) for end in ends(kernel))):
        data = values(kernel, rng, 100 + 100 + words * per)
        w = weights(kernel, rng, runs, words, columns, per)
        start = rng.integers(-1000, 1000, columns).astype(kernel.operands.sums)
        if end is not None:
            data[:], w[:] = end
            start[:] = np.sign(end[0] * end[1] or 1) * (2**31 - 1000)  # sums pass int32's end
        bases = rng.integers(0, 100, rows) * size
        taps = rng.integers(0, 100, runs) * size
        acc = np.empty((rows, columns), kernel.operands.sums)
        places = (at(data), at(bases), at(taps), runs, words, at(w), at(start))
        run((at(acc), *places), [acc, data, bases, taps, w, start])
        wanted = np.repeat(start[None].astype(np.float64), rows, axis=0)
        for m, t in np.ndindex(rows, runs):
            first = (bases[m] + taps[t]) // size
            window = data[first : first + words * per].astype(np.float64).reshape(words, 1, per)
            wanted[m] += (window * w[t].astype(np.float64)).sum(axis=(0, 2))
        if end is not None:
            wanted = wanted.astype(np.int64).astype(np.int32)
        check(kernel, acc, wanted)


#: Any values, and such that half of all lie half-way between two steps.
STAGES = {
    "any": OutputStage(np.linspace(0.01, 0.1, 40), params=QuantParams(0.25, -3)),
    "ties": OutputStage(np.full(40, 1 / 512), params=QuantParams(1 / 256, 50)),
    "shift": OutputStage(
        np.linspace(0.01, 0.1, 40), np.arange(40) % 7, (-1.5, 6.0), QuantParams(0.125, -128)
    ),
}


@emulated
@pytest.mark.parametrize("kernel", [k for k in ARM if k.operands is not F32], ids=lambda k: k.name)
@pytest.mark.parametrize("outs", [8, 7, 3])
@pytest.mark.parametrize("kind", STAGES)
def test_a_tile_with_an_output_stage(tmp_path: Path, kernel: MicroKernel, outs: int, kind: str):
    rng = np.random.default_rng(3)
    runs, words, per = 2, 3, kernel.operands.per_word
    columns = -(-outs // kernel.lanes) * kernel.lanes
    stage = STAGES[kind]
    checked = check_output(stage, 40, 0)
    image = Image(0, kernel.operands, 1, 40, 1, 1, (0, 0), int(checked.q_offset), 40)
    writes = Writes(checked, integers=image)
    form = output_form(writes, kernel, np.full(40, 1e4))
    run = Emulated(
        tmp_path, kernel, gemm.tile_text(kernel, kernel.rows, columns // kernel.lanes, form, outs)
    )
    data = values(kernel, rng, 300) // 4  # or most results would be clipped
    w = np.sign(weights(kernel, rng, runs, words, columns, per))
    start = rng.integers(-100, 100, columns).astype(np.int32)
    size = kernel.operands.itemsize
    bases, taps = rng.integers(0, 100, kernel.rows) * size, rng.integers(0, 100, runs) * size
    steps = np.full((kernel.rows, outs + 3), 77, kernel.operands.data)
    unused = np.zeros((1, 1), np.float32)
    table = stage_table(writes, checked, unused, unused, steps)
    places = (at(data), at(bases), at(taps), runs, words, at(w), at(start), at(w))
    run((*places, at(table[0]), 0, 0), [data, bases, taps, w, start, *table])
    sums = np.repeat(start[None].astype(np.int64), kernel.rows, axis=0)
    for m, t in np.ndindex(kernel.rows, runs):
        first = (bases[m] + taps[t]) // size
        window = data[first : first + words * per].astype(np.int64).reshape(words, 1, per)
        sums[m] += (window * w[t]).sum(axis=(0, 2))
    cut = {"scale": np.asarray(stage.scale)[:outs]}
    if stage.shift is not None:
        cut["shift"] = np.asarray(stage.shift)[:outs]
    few = check_output(replace(stage, **cut), outs, 0)
    wanted = store(sums[:, :outs].astype(np.int32), few).astype(int)
    assert len(np.unique(wanted)) > 6
    assert (steps[:, :outs] == wanted + kernel.operands.stored(int(checked.q_offset))).all()
    assert (steps[:, outs:] == 77).all()


@emulated
@pytest.mark.parametrize("kernel", ARM, ids=lambda k: k.name)
@pytest.mark.parametrize("by_columns", [False, True], ids=["taps", "columns"])
def test_channels_alone(tmp_path: Path, kernel: MicroKernel, by_columns: bool):
    rng = np.random.default_rng(8)
    per, size, sums_of = (getattr(kernel.operands, n) for n in ("per_word", "itemsize", "sums"))
    width, count = kernel.lanes * per, 6
    outs, words, step = width - 1, -(-3 // per), 40 * size
    writes = Writes(check_output(None, width, 0), floats=Image(0, F32, 1, 1, 1, 1, (0, 0), 0, 1))
    form = output_form(writes, kernel, None)
    data = values(kernel, rng, 3 * 400)
    w = weights(kernel, rng, 3 * words, width, per)
    w = np.ascontiguousarray(w)
    rows = np.array([0, 400, 800]) * size  # three rows of an image, each in the next 400 values
    if per > 1:  # the values that fill up a column's last word have no weight
        w.reshape(3, words, width, per)[:, -1, :, (3 - 1) % per + 1 :] = 0
    start = rng.integers(-1000, 1000, width).astype(sums_of)
    sums = np.full((count, width + 3), 77, np.float32)
    table = stage_table(writes, None, sums, sums, sums)
    bases = np.arange(count) * step
    if by_columns:
        taps = np.concatenate([rows, np.repeat(rows[-1:], -3 % per)])
        text = gemm.columns_text(kernel, outs, form, (3, 3), 1)
        middle: tuple[int, ...] = (step,)
    else:
        columns = [
            c * step + np.concatenate([rows, np.repeat(rows[-1:], -3 % per)]) for c in range(3)
        ]
        taps, middle = np.concatenate(columns), (3 * words,)
        text = gemm.channels_text(kernel, outs, form)
    run = Emulated(tmp_path, kernel, text)
    places = (at(data), at(bases), at(taps), *middle, at(w), at(start), count, at(table[0]), 0, 0)
    run(places, [data, bases, taps, w, start, *table])
    wanted = np.repeat(start[None].astype(np.float64), count, axis=0)
    for p, c, r in np.ndindex(count, 3, 3):
        first = (bases[p] + c * step + rows[r]) // size
        word, value = divmod(r, per)
        window = data[first : first + width].astype(np.float64)
        wanted[p] += window * w[c * words + word, :, value]
    check(kernel, sums[:, :outs].view(sums_of), wanted[:, :outs])
    assert (sums[:, outs:] == 77).all()


@emulated
@pytest.mark.parametrize("kernel", ARM, ids=lambda k: k.name)
def test_the_largest_of_windows(tmp_path: Path, kernel: MicroKernel):
    rng = np.random.default_rng(4)
    size = kernel.operands.itemsize
    data = values(kernel, rng, 300)
    table = rng.integers(0, 200, (4, 5)) * size
    out = np.full((4, 21), 77, kernel.operands.data)
    out_at = np.arange(4) * out.strides[0]
    run = Emulated(tmp_path, kernel, max_pool.largest_text(kernel))
    places = (at(out), at(out_at), at(data), at(table), 5, 4, 18)
    run(places, [out, out_at, data, table])
    for p in range(4):
        assert (out[p, :18] == np.max([data[t // size :][:18] for t in table[p]], axis=0)).all()
    assert (out[:, 18:] == 77).all()


@pytest.mark.parametrize("kernel", ARM, ids=lambda k: k.name)
def test_machine_code_calls_nothing(kernel: MicroKernel):
    """What is loaded by itself has nobody to call: LLVM knows each operation as instructions."""
    lanes, per, stored = kernel.lanes, kernel.operands.per_word, kernel.operands.llvm
    texts = [transpose.turn_text("float", "float", size) for size in transpose.SIZES]
    if kernel.operands is F32:
        texts += [bin_index.place_text(lanes, kernel.compress), ifmr_loss.errors_text(lanes)]
        texts += [planes.plane_text(kernel, 9), planes.spread_text(kernel, 2)]
        form = Form(lanes, other=True, clamp=True, floats=True, divided=True)
    else:
        texts += [transpose.turn_text("i8", stored, size) for size in transpose.SIZES]
        texts += [transpose.turn_text(stored, "i8", size) for size in transpose.SIZES]
        form = Form(
            lanes, scaled=True, shift=True, slope=True, other=True, clamp=True, floats=True,
            integers=kernel.operands.data,
        )  # fmt: skip
        bounded = Form(lanes, scaled=True, integers=kernel.operands.data, bounded=True, full=True)
        texts += [gemm.tile_text(kernel, kernel.rows, 2, bounded, 2 * lanes - 1)]
    texts += [store_text(form), max_pool.largest_text(kernel)]
    texts += [gemm.channels_text(kernel, lanes * per - 1, form)]
    texts += [gemm.columns_text(kernel, lanes * per - 1, form, (3, 3), 1)]
    for text in texts:
        lines = assembly(text, kernel.cpu, kernel.triple).splitlines()
        assert not [line for line in lines if line.split()[:1] in (["bl"], ["blr"])]
