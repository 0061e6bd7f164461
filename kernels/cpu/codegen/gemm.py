"""The innermost loops, made of a micro-kernel: a tile of sums, and sums of single channels.

``tile(acc, data, bases, taps, runs, words, weights, start)`` fills ``acc[m, n] = start[n] +
sum over t, k of word(data + bases[m] + taps[t] + 4*k) * weights[t, k, n]`` where a word is four
bytes of data (see `kernels.cpu.codegen.microkernels`) and its product with four bytes of
weights is the sum of the products of the values in them. `bases` and `taps` are
offsets in bytes. All of `runs` * `words` words are read in order, so a convolution over an
image whose channels lie together needs no copy of its windows.

The same with an output stage (`kernels.cpu.codegen.epilogue`) behind the sums, which then never
go to memory, takes ``soon, stage, channel, position`` at its end instead of `acc`. For every word
it prefetches `LINE` bytes from `soon` on: weights that are read next, as those of large layers come
from far away.

``channels(data, bases, taps, groups, weights, start, count, stage, channel, position)`` is for
one channel a group: the sums of position p are ``start[c] + sum over t of
data[bases[p] + taps[t]][c] * weights[t, c]``, for as many channels as fit some vectors of sums;
taps come in groups of a word.

``columns(data, bases, taps, step, weights, start, count, stage, channel, position)`` does the
same for positions side by side in one row, whose windows share columns: a column of a window is
some words, `step` bytes from the next, and is put together once for all windows it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

from kernels.cpu.codegen.epilogue import Form, Lanes, OutputWriter
from kernels.cpu.codegen.ir import Writer
from kernels.cpu.codegen.microkernels import MicroKernel
from kernels.cpu.codegen.native import compile_text
from kernels.cpu.codegen.values import Value

__all__ = [
    "LINE",
    "Tiles",
    "channels_text",
    "columns_text",
    "compiled",
    "stored_channels",
    "stored_columns",
    "stored_tile",
    "tile_text",
]  # fmt: skip

#: Bytes that a tile prefetches for each word.
LINE = 64


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


@cache
def stored_tile(kernel: MicroKernel, outs: int, form: Form) -> int:
    """Return the address of a whole tile with an output stage, for so many outputs."""
    vectors = -(-outs // kernel.lanes)
    return compile_text(
        tile_text(kernel, kernel.rows, vectors, form, outs), "tile", kernel.excluded
    )


@cache
def stored_columns(
    kernel: MicroKernel, outs: int, form: Form, size: tuple[int, int], stride: int
) -> int:
    """Return the address of ``columns`` for windows of a height and width, so far apart."""
    return compile_text(columns_text(kernel, outs, form, size, stride), "columns", kernel.excluded)


@cache
def stored_channels(kernel: MicroKernel, outs: int, form: Form) -> int:
    """Return the address of ``channels`` with an output stage, for so many outputs."""
    return compile_text(channels_text(kernel, outs, form), "channels", kernel.excluded)


@lru_cache(maxsize=32)
def compiled(kernel: MicroKernel) -> Tiles:
    """Compile the functions of a micro-kernel without an output stage, once."""

    def tile(rows: int, vectors: int) -> int:
        return compile_text(tile_text(kernel, rows, vectors), "tile", kernel.excluded)

    return Tiles(
        (tile(kernel.rows, 1), tile(kernel.rows, 2)),
        (tile(kernel.tail_rows, 1), tile(kernel.tail_rows, 2)),
    )


def _sum_kind(kernel: MicroKernel) -> str:
    """Return the type of a sum."""
    return "float" if kernel.operands.sums == "float32" else "i32"


def _load_vectors(w: Writer, kernel: MicroKernel, pointer: str, vectors: int) -> list[Value]:
    """Load vectors of sums or words that lie one behind the other."""
    kind, lanes = _sum_kind(kernel), kernel.lanes
    places = (w.at(pointer, str(4 * lanes * v)) for v in range(vectors))
    return [Value.load(w, kind, lanes, place) for place in places]


def _multiply_add(kernel: MicroKernel, sums: Value, data: Value, weights: Value) -> Value:
    """Return ``sums + data * weights``, of words, as the micro-kernel does it."""
    names = (str(v) for v in (sums, data, weights))
    name = sums.w.multiply_add(kernel.multiply_add, *names)
    return Value(sums.w, sums.kind, sums.lanes, name)


def _parameters(form: Form | None, *names: str) -> list[tuple[str, str]]:
    """Return parameters with their types, those of an output stage in place of the sums."""
    numbers = ("runs", "words", "groups", "step", "count", "channel", "position")
    ends = ("stage", "channel", "position")
    order = ("acc", *names) if form is None else (*names, *ends)
    return [("i64" if name in numbers else "ptr", name) for name in order]


def _store(out: OutputWriter, sums: list[Value], outs: int) -> None:
    """Write the output stage of one position: vectors of sums, the last perhaps in part."""
    columns = [values.lanes * v for v, values in enumerate(sums)]
    lanes = [Lanes.first(out.w, v.lanes, outs - c) for v, c in zip(sums, columns, strict=True)]
    for v in range(0, len(sums), 2):
        pair = slice(v, v + 2)
        out.vectors(sums[pair], [str(c) for c in columns[pair]], lanes[pair])


def tile_text(
    kernel: MicroKernel, rows: int, vectors: int, form: Form | None = None, outs: int = 0
) -> str:
    """Return the LLVM text of ``tile`` for so many rows and vectors of columns."""
    names = ("data", "bases", "taps", "runs", "words", "weights", "start")
    w = Writer("tile", _parameters(form, *names, *(() if form is None else ("soon",))))
    kind, lanes = _sum_kind(kernel), kernel.lanes
    size = 4 * lanes
    cells = [(m, v) for m in range(rows) for v in range(vectors)]
    w.label("entry")
    lines = []
    for m in range(rows):
        offset = w.load("i64", w.at("%bases", str(8 * m)))
        lines.append(w.at("%data", offset))
    first = _load_vectors(w, kernel, "%start", vectors)
    w.do("br label %run")
    w.label("run")
    w.phi("%t", "i64", entry="0", next_run="%t_next")
    w.phi("%run_weights", "ptr", entry="%weights", next_run="%weights_next")
    if form is not None:
        w.phi("%run_soon", "ptr", entry="%soon", next_run="%soon_next")
    before = {
        (m, v): Value.phi(w, kind, lanes, f"%r{m}_{v}", entry=first[v], next_run=f"%n{m}_{v}")
        for m, v in cells
    }
    tap = w.load("i64", w.element("i64", "%taps", "%t"))
    starts = [w.at(line, tap) for line in lines]
    w.do("br label %step")
    w.label("step")
    w.phi("%k", "i64", run="0", step="%k_next")
    w.phi("%at", "ptr", run="%run_weights", step="%weights_next")
    if form is not None:
        w.phi("%soon_at", "ptr", run="%run_soon", step="%soon_next")
    sums = {
        (m, v): Value.phi(w, kind, lanes, f"%s{m}_{v}", run=before[m, v], step=f"%n{m}_{v}")
        for m, v in cells
    }
    columns = _load_vectors(w, kernel, "%at", vectors)
    if form is not None:
        w.prefetch("%soon_at")
        w.named("%soon_next", f"getelementptr i8, ptr %soon_at, i64 {LINE}")
    for m in range(rows):
        data = Value.load(w, kind, 0, w.element("i32", starts[m], "%k")).splat(lanes)
        for v in range(vectors):
            fresh = _multiply_add(kernel, sums[m, v], data, columns[v])
            sums[m, v] = fresh.alias(f"%n{m}_{v}")
    w.named("%k_next", "add i64 %k, 1")
    w.named("%weights_next", f"getelementptr i8, ptr %at, i64 {size * vectors}")
    w.loop("step", "%k_next", "%words", "next_run")
    w.label("next_run")
    w.named("%t_next", "add i64 %t, 1")
    w.loop("run", "%t_next", "%runs", "done")
    w.label("done")
    if form is None:
        for i, cell in enumerate(cells):
            sums[cell].store(w.at("%acc", str(size * i)))
    else:
        out = OutputWriter(form, w)
        out.begin()
        for m in range(rows):
            out.row(str(m))
            _store(out, [sums[m, v] for v in range(vectors)], outs)
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"


def _zip(a: Value, b: Value, pieces: int) -> list[Value]:
    """Interleave the lower and the upper halves of every piece of two vectors."""
    per = a.lanes // pieces
    half = per // 2
    return [
        a.shuffle(
            [
                side + piece * per + begin + j
                for piece in range(pieces)
                for j in range(half)
                for side in (0, a.lanes)
            ],
            b,
        )
        for begin in (0, half)
    ]


def _words_of_taps(kernel: MicroKernel, taps: list[Value]) -> list[Value]:
    """Turn vectors of channels for each tap into vectors of words, one for each channel.

    Processors interleave within 128 bits only; so pieces of four channels are first moved
    to where their words belong.
    """
    per, lanes, kind = kernel.operands.per_word, kernel.lanes, kernel.operands.llvm
    if per == 1:
        return taps
    vectors, pieces = taps[0].lanes // lanes, lanes // 4
    here = vectors * pieces
    order = [i * pieces + lane for lane in range(pieces) for i in range(per)]
    order = [p if p < here else -1 for p in order]
    moved = [
        tap.bits(f"i{128 // per}", here).shuffle(order).bits(kind, lanes * per) for tap in taps
    ]
    words = _zip(moved[0], moved[1], pieces)
    if per == 4:
        pairs = list(zip(words, _zip(moved[2], moved[3], pieces), strict=True))
        words = []
        for pair in pairs:
            a, b = (v.bits("i16", lanes * 2) for v in pair)
            words += _zip(a, b, pieces)
    return [v.bits("i32", lanes) for v in words[:vectors]]


def channels_text(kernel: MicroKernel, outs: int, form: Form) -> str:
    """Return the LLVM text of ``channels`` for so many outputs."""
    vectors = -(-outs // kernel.lanes)
    names = ("data", "bases", "taps", "groups", "weights", "start", "count")
    w = Writer("channels", _parameters(form, *names))
    kind, lanes, data = _sum_kind(kernel), kernel.lanes, kernel.operands.llvm
    per, size = kernel.operands.per_word, 4 * lanes
    w.label("entry")
    first = _load_vectors(w, kernel, "%start", vectors)
    out = OutputWriter(form, w)
    out.begin()
    w.do("br label %place")
    w.label("place")
    w.phi("%p", "i64", entry="0", next_place="%p_next")
    base = w.load("i64", w.element("i64", "%bases", "%p"))
    start = w.at("%data", base)
    w.do("br label %group")
    w.label("group")
    w.phi("%q", "i64", place="0", group="%q_next")
    sums = [
        Value.phi(w, kind, lanes, f"%s{v}", place=first[v], group=f"%n{v}") for v in range(vectors)
    ]
    offsets = w.element(f"[{per} x i64]", "%taps", "%q")
    places = (w.at(start, w.load("i64", w.at(offsets, str(8 * e)))) for e in range(per))
    taps = [Value.load(w, data, lanes * vectors, place) for place in places]
    weights = w.element(f"[{size * per} x i8]", "%weights", "%q")
    for v, word in enumerate(_words_of_taps(kernel, taps)):
        column = Value.load(w, kind, lanes, w.at(weights, str(size * v)))
        sums[v] = _multiply_add(kernel, sums[v], word, column).alias(f"%n{v}")
    w.named("%q_next", "add i64 %q, 1")
    w.loop("group", "%q_next", "%groups", "store")
    w.label("store")
    out.row("%p")
    _store(out, sums, outs)
    w.do("br label %next_place")
    w.label("next_place")
    w.named("%p_next", "add i64 %p, 1")
    w.loop("place", "%p_next", "%count", "done")
    w.label("done")
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"


def columns_text(
    kernel: MicroKernel, outs: int, form: Form, window: tuple[int, int], stride: int
) -> str:
    """Return the LLVM text of ``columns`` for so many outputs, windows so large, so far apart."""
    height, width = window
    vectors = -(-outs // kernel.lanes)
    names = ("data", "bases", "taps", "step", "weights", "start", "count")
    w = Writer("columns", _parameters(form, *names))
    kind, lanes, data = _sum_kind(kernel), kernel.lanes, kernel.operands.llvm
    per, size = kernel.operands.per_word, 4 * lanes
    overlap = width - stride  # columns that the next window reads, too
    groups = -(-height // per)  # words of a column
    w.label("entry")
    first = _load_vectors(w, kernel, "%start", vectors)
    offsets = [w.load("i64", w.at("%taps", str(8 * e))) for e in range(groups * per)]
    begin = w.at("%data", w.load("i64", "%bases"))

    def column(window: str, c: int) -> list[Value]:
        top = w.at(window, w.value(f"mul i64 %step, {c}"))
        rows = [Value.load(w, data, lanes * vectors, w.at(top, d)) for d in offsets[:height]]
        rows += rows[-1:] * (groups * per - height)  # their weights are 0
        words = [_words_of_taps(kernel, rows[per * q : per * (q + 1)]) for q in range(groups)]
        return [vector for word in words for vector in word]

    out = OutputWriter(form, w)
    out.begin()
    words = [column(begin, c) for c in range(overlap)]
    forward = w.value(f"mul i64 %step, {stride}")
    w.do("br label %place")
    w.label("place")
    w.phi("%p", "i64", entry="0", next_place="%p_next")
    w.phi("%at", "ptr", entry=begin, next_place="%at_next")
    seen = [
        [
            Value.phi(w, kind, lanes, f"%c{c}_{v}", entry=word, next_place=f"%d{c}_{v}")
            for v, word in enumerate(words[c])
        ]
        for c in range(overlap)
    ]
    seen += [column("%at", c) for c in range(overlap, width)]
    sums = [*first]
    for c, words_of_column in enumerate(seen):
        for i, word in enumerate(words_of_column):
            q, v = divmod(i, vectors)
            place = w.at("%weights", str(size * ((c * groups + q) * per + v)))
            sums[v] = _multiply_add(kernel, sums[v], word, Value.load(w, kind, lanes, place))
    for c, i in ((c, i) for c in range(overlap) for i in range(groups * vectors)):
        seen[c + stride][i].alias(f"%d{c}_{i}")
    out.row("%p")
    _store(out, sums, outs)
    w.do("br label %next_place")
    w.label("next_place")
    w.named("%p_next", "add i64 %p, 1")
    w.named("%at_next", f"getelementptr i8, ptr %at, i64 {forward}")
    w.loop("place", "%p_next", "%count", "done")
    w.label("done")
    w.do("ret void")
    return f"{kernel.declarations}\n{w.text()}"
