"""The micro-kernels and what is made of them, each against whole numbers, for every ISA."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_kernels import PLAIN_S8

import kernels
from kernels import OutputStage, QuantParams, check_output
from kernels.cpu.codegen import epilogue, gemm, max_pool
from kernels.cpu.codegen.epilogue import CONSTANTS, FIELDS, Form
from kernels.cpu.codegen.microkernels import (
    F32,
    S8,
    S16,
    U8,
    MicroKernel,
    all_kernels,
    choice,
    choose,
)
from kernels.cpu.codegen.microkernels.choice import VARIABLE, runs_here
from kernels.cpu.codegen.native import assembly, call, features
from kernels.cpu.engine.epilogue import Writes, output_constants, output_form
from kernels.cpu.engine.image import Image
from kernels.cpu.engine.layout import _turns, enter, leave
from kernels.cpu.jit import jit
from kernels.dispatch import DeviceError
from kernels.reference.output import store


def can_run(kernel: MicroKernel) -> bool:
    """AVX-512 has the shorter vpdpbusd, too, though other kernels are faster there."""
    longer = kernel.instruction == "vpdpbusd" and features().get("avx512vnni", False)
    return runs_here(kernel) or (longer and features().get("avx512vl", False))


HERE = [
    pytest.param(
        k,
        id=k.name,
        marks=pytest.mark.skipif(not can_run(k), reason=f"this processor has no {k.isa}"),
    )
    for k in (*all_kernels(), PLAIN_S8)
]
ISAS = sorted({k.isa for k in all_kernels() if runs_here(k)})
PROMISING = [k for k in all_kernels() if k.instruction]


@jit
def invoke(address, arguments):
    call(address, arguments)


def at(array: np.ndarray) -> int:
    return array.ctypes.data


def values(kernel: MicroKernel, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Data over the whole range of its type."""
    if kernel.operands is F32:
        return rng.standard_normal(shape).astype(np.float32)
    low, high = {U8: (0, 255), S8: (-128, 127), S16: (-255, 255)}[kernel.operands]
    return rng.choice([low, high, *range(low, high, 5)], shape).astype(kernel.operands.data)


def weights(kernel: MicroKernel, rng: np.random.Generator, *shape: int) -> np.ndarray:
    if kernel.operands is F32:
        return rng.standard_normal(shape).astype(np.float32)
    return rng.choice([-128, 127, *range(-128, 128, 5)], shape).astype(kernel.operands.weights)


def check(kernel: MicroKernel, found: np.ndarray, wanted: np.ndarray) -> None:
    if kernel.operands is F32:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    else:
        assert found.tolist() == wanted.astype(np.int64).tolist()


@pytest.mark.parametrize("kernel", HERE)
@cases.examples(25)
@given(st.integers(1, 4), st.integers(1, 9), st.booleans(), st.sampled_from([1, 2]), st.integers(0))
def test_a_tile(kernel: MicroKernel, runs: int, words: int, short: bool, vectors: int, seed: int):
    rng = np.random.default_rng(seed)
    made, per, size = gemm.compiled(kernel), kernel.operands.per_word, kernel.operands.itemsize
    rows, columns = kernel.tail_rows if short else kernel.rows, vectors * kernel.lanes
    data = values(kernel, rng, 300)
    w = weights(kernel, rng, runs, words, columns, per)
    start = rng.integers(-1000, 1000, columns).astype(kernel.operands.sums)
    bases, taps = rng.integers(0, 100, rows) * size, rng.integers(0, 100, runs) * size
    acc = np.empty((rows, columns), kernel.operands.sums)
    function = (made.short if short else made.whole)[vectors - 1]
    invoke(function, (at(acc), at(data), at(bases), at(taps), runs, words, at(w), at(start)))
    wanted = np.empty((rows, columns))
    for m, n in np.ndindex(rows, columns):
        total = float(start[n])
        for t in range(runs):
            first = (bases[m] + taps[t]) // size
            run = data[first : first + words * per].astype(np.float64)
            total += float(run @ w[t, :, n].reshape(-1).astype(np.float64))
        wanted[m, n] = total
    check(kernel, acc, wanted)


@pytest.mark.parametrize("kernel", HERE)
@cases.examples(25)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.integers(0))
def test_channels_alone(kernel: MicroKernel, groups: int, count: int, vectors: int, seed: int):
    rng = np.random.default_rng(seed)
    per, size = kernel.operands.per_word, kernel.operands.itemsize
    width = kernel.lanes * per
    outs = min(vectors * kernel.lanes, width) - int(rng.integers(0, kernel.lanes))
    data = values(kernel, rng, 400)
    w = weights(kernel, rng, groups, width, per)
    start = rng.integers(-1000, 1000, width).astype(kernel.operands.sums)
    bases = rng.integers(0, 100, count) * size
    taps = rng.integers(0, 100, groups * per) * size
    sums = np.full((count, width + 3), 77, np.float32)  # or int32, copied as it is
    writes = Writes(check_output(None, width, 0), floats=Image(0, F32, 1, 1, 1, 1, (0, 0), 0, 1))
    table = stage_table(writes, None, sums, sums, sums)
    invoke(
        gemm.stored_channels(kernel, outs, output_form(writes, kernel, None)),
        (at(data), at(bases), at(taps), groups, at(w), at(start), count, at(table[0]), 0, 0),
    )
    wanted = np.repeat(start[None].astype(np.float64), count, axis=0)
    for p, (t, tap) in itertools.product(range(count), enumerate(taps)):
        first = (bases[p] + tap) // size
        wanted[p] += data[first : first + width].astype(np.float64) * w[t // per, :, t % per]
    assert (sums[:, outs:] == 77).all()
    check(kernel, sums[:, :outs].view(kernel.operands.sums), wanted[:, :outs])


@pytest.mark.parametrize("kernel", HERE)
@cases.examples(25)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40), st.integers(0))
def test_the_largest_of_windows(
    kernel: MicroKernel, taps: int, count: int, channels: int, seed: int
):
    rng = np.random.default_rng(seed)
    size = kernel.operands.itemsize
    data = values(kernel, rng, 300)
    table = rng.integers(0, 200, (count, taps)) * size
    out = np.full((count, channels + 3), 77, kernel.operands.data)
    out_at = np.arange(count) * out.strides[0]
    invoke(
        max_pool.compiled(kernel),
        (at(out), at(out_at), at(data), at(table), taps, count, channels),
    )
    for p in range(count):
        windows = [data[t // size : t // size + channels] for t in table[p]]
        assert (out[p, :channels] == np.max(windows, axis=0)).all()
    assert (out[:, channels:] == 77).all()


def test_a_nan_is_never_the_largest():
    kernel = choose("float")
    data = np.full(64, np.nan, np.float32)
    data[40:] = -np.inf
    out = np.zeros((2, 3), np.float32)
    table, out_at = np.array([[0, 0], [0, 160]]), np.array([0, 12])
    invoke(max_pool.compiled(kernel), (at(out), at(out_at), at(data), at(table), 2, 2, 3))
    assert (out == -np.finfo(np.float32).max).all()


@st.composite
def output_stages(draw: Any) -> OutputStage:
    """Scales at which many values lie half-way between two steps, and any others."""
    scale = draw(st.one_of(st.sampled_from([0.5, 0.25, 1.0]), cases.floats32(1e-6, 2.0)))
    shift = draw(st.one_of(st.none(), st.lists(st.integers(0, 16), min_size=40, max_size=40)))
    clamp = draw(st.sampled_from([(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-1.5, 2)]))
    step = draw(st.one_of(st.sampled_from([1.0, 0.5]), cases.floats32(1e-3, 1e3)))
    params = QuantParams(step, draw(st.integers(-128, 127)))
    return OutputStage(scale, None if shift is None else np.array(shift), clamp, params)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@cases.examples(40)
@given(
    output_stages(), st.integers(1, 40), st.integers(1, 5),
    st.sampled_from([(True, None), (False, U8), (False, S8), (False, S16), (True, U8)]), st.booleans(),
    st.integers(0),
)  # fmt: skip
def test_the_output_stage_equals_its_definition(
    lanes: int, output: OutputStage, channels: int, rows: int, kinds: Any, other: bool, seed: int
):
    rng = np.random.default_rng(seed)
    floats, operands = kinds
    checked = check_output(output, 40, 0)
    acc = random_sums(rng, rows, 48)
    added = np.zeros((rows, 60), np.float32)
    added[:, :channels] = rng.integers(-9, 9, (rows, channels)) / 2
    real = np.full((rows, 45), 77, np.float32)
    steps = np.full((rows, 45), 77, "uint8" if operands is None else operands.data)
    image = Image(0, F32, 1, 40, 1, 1, (0, 0), 0, 40)
    offset = int(checked.q_offset)
    writes = Writes(
        checked,
        floats=image if floats else None,
        integers=None if operands is None else replace(image, operands=operands, offset=offset),
        other=image if other else None,
    )
    kernel = replace(choose("int8"), lanes=lanes)
    form = output_form(writes, kernel, np.abs(acc.astype(np.float64)).max(axis=0)[:40])
    table = stage_table(writes, checked, added, real, steps)
    invoke(epilogue.compiled(form), (at(acc), acc.strides[0], rows, channels, at(table[0]), 0, 0))
    y = store(acc[:, :channels], check_output(_cut(output, channels), channels, 0))
    if other:
        y = y + added[:, :channels]
    y = np.minimum(np.maximum(y, checked.low), checked.high)
    if floats:
        assert (real[:, :channels] == y).all()
    assert (real[:, channels:] == 77).all()
    if operands is not None:
        q = kernels.quantize(np.ascontiguousarray(y), output.params, device="reference")
        assert (steps[:, :channels] == q.astype(int) + operands.stored(offset)).all()
    assert (steps[:, channels:] == 77).all()


def random_sums(rng: np.random.Generator, *shape: int) -> np.ndarray:
    size = rng.choice([10, 1000, 2**31 - 1])
    return rng.integers(-size, size, shape).astype(np.int32)


def _cut(output: OutputStage, channels: int) -> OutputStage:
    shift = None if output.shift is None else output.shift[:channels]
    return OutputStage(output.scale, shift)


def stage_table(
    writes: Writes, checked: Any, other: np.ndarray, real: np.ndarray, steps: np.ndarray
) -> list[np.ndarray]:
    """Return the table of an output stage, and the arrays it points to."""
    scale, factor, power = np.zeros((3, 64), np.float32)
    constants = output_constants(writes)
    if checked is not None:
        scale[:40], power[:40] = checked.scale, checked.power
        with np.errstate(over="ignore"):
            factor[:40] = checked.scale * constants[CONSTANTS.index("reciprocal_units")]
    table = np.zeros(len(FIELDS), np.int64)
    keep = [table, scale, factor, power, constants]
    entries = {"scale": scale, "factor": factor, "power": power, "constants": constants}
    for name, image in (("other", other), ("floats", real), ("integers", steps)):
        distances = np.arange(len(image)) * image.strides[0]
        keep += [image, distances]
        entries |= {name: image, f"{name}_at": distances}
    for name, array in entries.items():
        table[FIELDS.index(name)] = at(array)
    return keep


@pytest.mark.parametrize("kernel", PROMISING, ids=lambda k: k.name)
def test_the_machine_code_has_the_instruction_and_keeps_sums_in_registers(kernel: MicroKernel):
    for vectors in (1, 2):
        text = assembly(gemm.tile_text(kernel, kernel.rows, vectors), kernel.cpu, kernel.triple)
        lines = [line.strip() for line in text.splitlines()]
        used = [line for line in lines if kernel.instruction in line]
        assert len(used) == kernel.rows * vectors
        vector, stack = {4: ("\tq", "[sp"), 8: ("%ymm", "(%rsp)"), 16: ("%zmm", "(%rsp)")}[
            kernel.lanes
        ]
        assert not [line for line in lines if vector in line and stack in line]
    widest = kernel.lanes * kernel.operands.per_word
    text = gemm.channels_text(kernel, widest, Form(kernel.lanes, floats=True))
    assert kernel.instruction in assembly(text, kernel.cpu, kernel.triple)


def test_every_processor_has_a_kernel_and_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    for kind in ("int8", "float"):
        able = [k for k in all_kernels() if runs_here(k)]
        able = [k for k in able if (k.operands is F32) == (kind == "float")]
        assert choose(kind).priority == max(k.priority for k in able)
    assert {k.operands for k in all_kernels() if not k.features} == {S16, F32}


@pytest.mark.parametrize(
    ("there", "int8", "real"),
    [
        ({"neon"}, "neon", "neon"),
        ({"neon", "dotprod"}, "neondot", "neon"),
        ({"neon", "dotprod", "i8mm"}, "neonusdot", "neon"),
        ({"avx2", "fma"}, "avx2", "avx2"),
        ({"avx2", "fma", "avxvnni"}, "avxvnni", "avx2"),
        (set(), "portable", "portable"),
    ],
)
def test_a_processor_gets_what_its_own_features_allow(
    monkeypatch: pytest.MonkeyPatch, there: set[str], int8: str, real: str
):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(choice, "features", lambda: dict.fromkeys(there, True))
    assert (choose("int8").isa, choose("float").isa) == (int8, real)


def test_an_instruction_set_can_be_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "portable")
    assert choose("int8").isa == choose("float").isa == "portable"
    monkeypatch.setenv(VARIABLE, "mmx")
    with pytest.raises(DeviceError, match=r"mmx: this processor runs .*portable"):
        choose("int8")


#: (data, weights, keywords) of convolutions that cross the borders of tiles and vectors.
CONVS: list[Any] = [
    ((2, 17, 9, 11), (37, 17, 3, 3), {"pad": 1}),
    ((1, 33, 8, 9), (18, 33, 1, 1), {}),
    ((1, 32, 12, 12), (16, 16, 3, 3), {"stride": 2, "pad": 1, "group": 2}),
    ((2, 70, 13, 10), (70, 1, 3, 3), {"pad": 1, "group": 70}),
    ((1, 6, 20, 20), (12, 1, 5, 3), {"stride": (1, 2), "pad": (2, 1), "group": 6}),
    ((1, 3, 23, 23), (10, 3, 7, 7), {"stride": 2, "pad": 3}),
    ((1, 5, 1, 1), (3, 5, 1, 1), {}),
]


@pytest.mark.parametrize("isa", [*ISAS, PLAIN_S8.isa])
@pytest.mark.parametrize(("shape", "w_shape", "keywords"), CONVS)
def test_layers_are_the_same_for_every_instruction_set(
    monkeypatch: pytest.MonkeyPatch, isa: str, shape: Any, w_shape: Any, keywords: Any
):
    if isa == PLAIN_S8.isa:
        every = (PLAIN_S8, *all_kernels())
        monkeypatch.setattr(choice, "all_kernels", lambda: every)
        monkeypatch.delenv(VARIABLE, raising=False)
        assert choose("int8") is PLAIN_S8
    else:
        monkeypatch.setenv(VARIABLE, isa)
    rng = np.random.default_rng(5)
    x, w = cases.int8s(rng, *shape), cases.int8s(rng, *w_shape)
    bias = rng.integers(-5000, 5000, len(w)).astype(np.int32)
    for output in (None, OutputStage(0.003, params=QuantParams(0.7, -3), clamp=(0, math.inf))):
        ours, wanted = (
            kernels.conv2d_int8(x, w, bias, x_offset=7, output=output, device=d, **keywords)
            for d in ("cpu", "reference")
        )
        assert (ours == wanted).all()
    if len(w) == shape[1]:
        return
    turned = np.ascontiguousarray(w.transpose(1, 0, 2, 3)) if keywords.get("group", 1) == 1 else w
    image = x if turned is not w else np.ascontiguousarray(np.resize(x, (1, len(w), 5, 5)))
    found = [
        kernels.deconv2d_int8(image, turned, x_offset=-9, device=d, **keywords)
        for d in ("cpu", "reference")
    ]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("kind", ["float32", "uint8", "int8", "int16"])
@cases.examples(40)
@given(
    st.integers(1, 2), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40),
    st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(0, 5), st.integers(0),
)  # fmt: skip
def test_an_image_is_turned_in_and_out(
    kind: str, n: int, c: int, h: int, w: int, border: tuple[int, int], more: int, seed: int
):
    rng = np.random.default_rng(seed)
    memory = np.full((n, h + 2 * border[0], w + 2 * border[1], c + more), 77, kind)
    view = memory[:, border[0] : border[0] + h, border[1] : border[1] + w, more // 2 :][..., :c]
    add = {"float32": 0, "uint8": 128, "int8": 0, "int16": -9}[kind]
    x = rng.standard_normal((n, c, h, w)).astype(np.float32)
    if kind != "float32":
        x = cases.int8s(rng, n, c, h, w)
    enter(x, view, add)
    assert (view == (x.astype(float) + add).transpose(0, 2, 3, 1)).all()
    kept = memory.copy()
    view[...] = 77
    assert (memory == 77).all()  # nothing else was written
    back = np.empty_like(x)
    leave(kept[tuple(slice(*s) for s in _place(view, memory))], back, add)
    assert (back == x).all()


def test_what_is_large_enough_is_turned_in_blocks():
    view = np.zeros((1, 7, 5, 21), np.float32)
    image = np.arange(view.size, dtype=np.float32).reshape(1, 21, 7, 5)
    assert _turns(image, view, 0, inwards=True)
    assert (view == image.transpose(0, 2, 3, 1)).all()
    assert not _turns(image[:, :3].copy(), view[..., :3], 0, inwards=True)


def _place(view: np.ndarray, memory: np.ndarray) -> list[tuple[int, int]]:
    """Return where in its memory a view lies, axis by axis."""
    distance, found = at(view) - at(memory), []
    for size, step in zip(view.shape, memory.strides, strict=True):
        first, distance = divmod(distance, step)
        found.append((first, first + size))
    return found
