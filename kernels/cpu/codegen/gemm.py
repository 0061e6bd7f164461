"""The innermost loops, made of a micro-kernel: a tile of sums, and sums of single channels.

``tile(acc, data, bases, taps, runs, words, weights, start)`` fills ``acc[m, n] = start[n] +
sum over t, k of word(data + bases[m] + taps[t] + 4*k) * weights[t, k, n]`` where a word is four
bytes of data (see `kernels.cpu.codegen.microkernels`) and its product with four bytes of
weights is the sum of the products of the values in them. `bases` and `taps` are
distances in bytes. All of `runs` * `words` words are read in order, so a convolution over an
image whose channels lie together needs no copy of its windows.

The same with an output stage (`kernels.cpu.codegen.epilogue`) behind the sums, which then never
go to memory, takes ``stage, channel, position`` at its end instead of `acc`.

``channels(data, bases, taps, groups, weights, start, count, stage, channel, position)`` is for
one channel a group: the sums of position p are ``start[c] + sum over t of
data[bases[p] + taps[t]][c] * weights[t, c]``, for as many channels as fit some vectors of sums;
taps come in groups of a word.

``columns(data, bases, taps, step, weights, start, count, stage, channel, position)`` does the
same for positions side by side in one row, whose windows share columns: a word is one column of
a window, `step` bytes from the next, and is put together once for all windows it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from kernels.cpu.codegen.epilogue import Form, Lanes, OutputWriter
from kernels.cpu.codegen.ir import Writer, vector
from kernels.cpu.codegen.microkernels import MicroKernel
from kernels.cpu.codegen.native import compile_text

__all__ = [
    "Tiles",
    "channels_text",
    "columns_text",
    "compiled",
    "stored_channels",
    "stored_columns",
    "stored_tile",
    "tile_text",
]  # fmt: skip


@dataclass(frozen=True)
class Tiles:
    """Addresses of the functions of a micro-kernel.

    Attributes
    ----------
    whole, short : tuple of int
        Tiles of `rows` and `tail_rows` rows, for one and for two vectors of columns.
    """

    whole: tuple[int, int]
    short: tuple[int, int]


def stored_tile(kernel: MicroKernel, outs: int, form: Form) -> int:
    """Return the address of a whole tile with an output stage, for so many outputs."""
    vectors = -(-outs // kernel.lanes)
    return compile_text(tile_text(kernel, kernel.rows, vectors, form, outs), "tile")


def stored_columns(kernel: MicroKernel, outs: int, form: Form, width: int, stride: int) -> int:
    """Return the address of ``columns`` for windows so wide, so far apart."""
    return compile_text(columns_text(kernel, outs, form, width, stride), "columns")


def stored_channels(kernel: MicroKernel, outs: int, form: Form) -> int:
    """Return the address of ``channels`` with an output stage, for so many outputs."""
    return compile_text(channels_text(kernel, outs, form), "channels")


@lru_cache(maxsize=32)
def compiled(kernel: MicroKernel) -> Tiles:
    """Compile the functions of a micro-kernel without an output stage, once."""

    def tile(rows: int, vectors: int) -> int:
        return compile_text(tile_text(kernel, rows, vectors), "tile")

    return Tiles(
        (tile(kernel.rows, 1), tile(kernel.rows, 2)),
        (tile(kernel.tail_rows, 1), tile(kernel.tail_rows, 2)),
    )


def _sums(kernel: MicroKernel) -> tuple[str, str]:
    """Return the types of one sum and of a vector of them."""
    one = "float" if kernel.operands.sums == "float32" else "i32"
    return one, vector(kernel.lanes, one)


def _parameters(form: Form | None, *names: str) -> list[tuple[str, str]]:
    """Return parameters with their types, those of an output stage in place of the sums."""
    numbers = ("runs", "words", "groups", "step", "count", "channel", "position")
    ends = ("stage", "channel", "position")
    order = ("acc", *names) if form is None else (*names, *ends)
    return [("i64" if name in numbers else "ptr", name) for name in order]


def _store(out: OutputWriter, kernel: MicroKernel, sums: list[str], outs: int) -> None:
    """Write the output stage of one position: vectors of sums, the last perhaps in part."""
    kind = _sums(kernel)[1]
    for v, values in enumerate(sums):
        column = kernel.lanes * v
        out.vector(kind, values, str(column), Lanes.first(kernel.lanes, outs - column))


def tile_text(
    kernel: MicroKernel, rows: int, vectors: int, form: Form | None = None, outs: int = 0
) -> str:
    """Return the LLVM text of ``tile`` for so many rows and vectors of columns."""
    names = ("data", "bases", "taps", "runs", "words", "weights", "start")
    w = Writer("tile", _parameters(form, *names))
    one, many = _sums(kernel)
    size = 4 * kernel.lanes
    cells = [(m, v) for m in range(rows) for v in range(vectors)]
    w.label("entry")
    lines = []
    for m in range(rows):
        distance = w.load("i64", w.at("%bases", str(8 * m)))
        lines.append(w.at("%data", distance))
    first = [w.load(many, w.at("%start", str(size * v))) for v in range(vectors)]
    w.do("br label %run")
    w.label("run")
    w.phi("%t", "i64", entry="0", next_run="%t_next")
    w.phi("%run_weights", "ptr", entry="%weights", next_run="%weights_next")
    for m, v in cells:
        w.phi(f"%r{m}_{v}", many, entry=first[v], next_run=f"%n{m}_{v}")
    tap = w.load("i64", w.value("getelementptr i64, ptr %taps, i64 %t"))
    starts = [w.at(line, tap) for line in lines]
    w.do("br label %step")
    w.label("step")
    w.phi("%k", "i64", run="0", step="%k_next")
    w.phi("%at", "ptr", run="%run_weights", step="%weights_next")
    for m, v in cells:
        w.phi(f"%s{m}_{v}", many, run=f"%r{m}_{v}", step=f"%n{m}_{v}")
    columns = [w.load(many, w.at("%at", str(size * v))) for v in range(vectors)]
    for m in range(rows):
        word = w.load(one, w.value(f"getelementptr i32, ptr {starts[m]}, i64 %k"))
        data = w.splat(kernel.lanes, one, word)
        for v in range(vectors):
            fresh = w.multiply_add(kernel.multiply_add, f"%s{m}_{v}", data, columns[v])
            w.named(f"%n{m}_{v}", f"bitcast {many} {fresh} to {many}")
    w.named("%k_next", "add i64 %k, 1")
    w.named("%weights_next", f"getelementptr i8, ptr %at, i64 {size * vectors}")
    w.loop("step", "%k_next", "%words", "next_run")
    w.label("next_run")
    w.named("%t_next", "add i64 %t, 1")
    w.loop("run", "%t_next", "%runs", "done")
    w.label("done")
    if form is None:
        for i, (m, v) in enumerate(cells):
            w.store(many, f"%n{m}_{v}", w.at("%acc", str(size * i)))
    else:
        out = OutputWriter(form, w)
        out.begin()
        for m in range(rows):
            out.row(str(m))
            _store(out, kernel, [f"%n{m}_{v}" for v in range(vectors)], outs)
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"


def _zip(w: Writer, kind: str, count: int, pieces: int, a: str, b: str) -> tuple[str, str]:
    """Interleave the lower and the upper halves of every 128 bits."""
    per = count // pieces
    half = per // 2
    low, high = (
        w.shuffle(
            count,
            kind,
            a,
            b,
            [
                side + lane * per + begin + j
                for lane in range(pieces)
                for j in range(half)
                for side in (0, count)
            ],
        )
        for begin in (0, half)
    )
    return low, high


def _words_of_taps(w: Writer, kernel: MicroKernel, taps: list[str], vectors: int) -> list[str]:
    """Turn some vectors of channels for each tap into vectors of words, one for each channel.

    Processors interleave within 128 bits only; so pieces of four channels are first moved
    to where their words belong.
    """
    per, lanes, kind = kernel.operands.per_word, kernel.lanes, kernel.operands.llvm
    if per == 1:
        return taps
    count, pieces, piece = lanes * per, lanes // 4, f"i{128 // per}"
    given, here = vector(lanes * vectors, kind), vectors * pieces
    order = [i * pieces + lane for lane in range(pieces) for i in range(per)]
    whole, parts = vector(count, kind), vector(count // 4, piece)
    moved = []
    for tap in taps:
        cut = w.value(f"bitcast {given} {tap} to {vector(here, piece)}")
        placed = w.shuffle(here, piece, cut, "poison", [p if p < here else -1 for p in order])
        moved.append(w.value(f"bitcast {parts} {placed} to {whole}"))
    made = [_zip(w, kind, count, pieces, moved[i], moved[i + 1]) for i in range(0, per, 2)]
    words: list[str] = []
    if per == 2:
        words += made[0]
    else:
        pairs = vector(count // 2, "i16")
        for a, b in zip(*made, strict=True):
            low, high = (w.value(f"bitcast {whole} {v} to {pairs}") for v in (a, b))
            words += _zip(w, "i16", count // 2, pieces, low, high)
        whole = pairs
    return [w.value(f"bitcast {whole} {v} to {vector(lanes, 'i32')}") for v in words[:vectors]]


def channels_text(kernel: MicroKernel, outs: int, form: Form) -> str:
    """Return the LLVM text of ``channels`` for so many outputs."""
    vectors = -(-outs // kernel.lanes)
    names = ("data", "bases", "taps", "groups", "weights", "start", "count")
    w = Writer("channels", _parameters(form, *names))
    many = _sums(kernel)[1]
    per, size = kernel.operands.per_word, 4 * kernel.lanes
    tap_kind = vector(kernel.lanes * vectors, kernel.operands.llvm)
    w.label("entry")
    first = [w.load(many, w.at("%start", str(size * v))) for v in range(vectors)]
    out = OutputWriter(form, w)
    out.begin()
    w.do("br label %place")
    w.label("place")
    w.phi("%p", "i64", entry="0", next_place="%p_next")
    base = w.load("i64", w.value("getelementptr i64, ptr %bases, i64 %p"))
    start = w.at("%data", base)
    w.do("br label %group")
    w.label("group")
    w.phi("%q", "i64", place="0", group="%q_next")
    for v in range(vectors):
        w.phi(f"%s{v}", many, place=first[v], group=f"%n{v}")
    distances = w.value(f"getelementptr [{per} x i64], ptr %taps, i64 %q")
    taps = [
        w.load(tap_kind, w.at(start, w.load("i64", w.at(distances, str(8 * e)))))
        for e in range(per)
    ]
    weights = w.value(f"getelementptr [{size * per} x i8], ptr %weights, i64 %q")
    for v, word in enumerate(_words_of_taps(w, kernel, taps, vectors)):
        column = w.load(many, w.at(weights, str(size * v)))
        fresh = w.multiply_add(kernel.multiply_add, f"%s{v}", word, column)
        w.named(f"%n{v}", f"bitcast {many} {fresh} to {many}")
    w.named("%q_next", "add i64 %q, 1")
    w.loop("group", "%q_next", "%groups", "store")
    w.label("store")
    out.row("%p")
    _store(out, kernel, [f"%n{v}" for v in range(vectors)], outs)
    w.do("br label %next_place")
    w.label("next_place")
    w.named("%p_next", "add i64 %p, 1")
    w.loop("place", "%p_next", "%count", "done")
    w.label("done")
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"


def columns_text(kernel: MicroKernel, outs: int, form: Form, width: int, stride: int) -> str:
    """Return the LLVM text of ``columns`` for so many outputs, windows so wide, so far apart."""
    vectors = -(-outs // kernel.lanes)
    names = ("data", "bases", "taps", "step", "weights", "start", "count")
    w = Writer("columns", _parameters(form, *names))
    many = _sums(kernel)[1]
    per, size = kernel.operands.per_word, 4 * kernel.lanes
    tap_kind = vector(kernel.lanes * vectors, kernel.operands.llvm)
    kept = width - stride  # columns that the next window reads, too
    w.label("entry")
    first = [w.load(many, w.at("%start", str(size * v))) for v in range(vectors)]
    distances = [w.load("i64", w.at("%taps", str(8 * e))) for e in range(per)]
    begin = w.at("%data", w.load("i64", "%bases"))

    def column(window: str, c: int) -> list[str]:
        top = w.at(window, w.value(f"mul i64 %step, {c}"))
        taps = [w.load(tap_kind, w.at(top, d)) for d in distances]
        return _words_of_taps(w, kernel, taps, vectors)

    out = OutputWriter(form, w)
    out.begin()
    words = [column(begin, c) for c in range(kept)]
    forward = w.value(f"mul i64 %step, {stride}")
    w.do("br label %place")
    w.label("place")
    w.phi("%p", "i64", entry="0", next_place="%p_next")
    w.phi("%at", "ptr", entry=begin, next_place="%at_next")
    for c, v in ((c, v) for c in range(kept) for v in range(vectors)):
        w.phi(f"%c{c}_{v}", many, entry=words[c][v], next_place=f"%d{c}_{v}")
    seen = [[f"%c{c}_{v}" for v in range(vectors)] for c in range(kept)]
    seen += [column("%at", c) for c in range(kept, width)]
    sums = [*first]
    for c, words_of_column in enumerate(seen):
        for v, word in enumerate(words_of_column):
            weights = w.load(many, w.at("%weights", str(size * (c * per + v))))
            sums[v] = w.multiply_add(kernel.multiply_add, sums[v], word, weights)
    for c, v in ((c, v) for c in range(kept) for v in range(vectors)):
        w.named(f"%d{c}_{v}", f"bitcast {many} {seen[c + stride][v]} to {many}")
    out.row("%p")
    _store(out, kernel, sums, outs)
    w.do("br label %next_place")
    w.label("next_place")
    w.named("%p_next", "add i64 %p, 1")
    w.named("%at_next", f"getelementptr i8, ptr %at, i64 {forward}")
    w.loop("place", "%p_next", "%count", "done")
    w.label("done")
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"
