"""Layers as steps: what the loops of `kernels.cpu.engine.runner` need to know about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.codegen import epilogue, gemm, matrix, max_pool
from kernels.cpu.codegen.epilogue import CONSTANTS, FIELDS
from kernels.cpu.codegen.microkernels import MicroKernel, choose
from kernels.cpu.engine.counting import MOST
from kernels.cpu.engine.epilogue import Writes, output_constants, output_form
from kernels.cpu.engine.image import Image
from kernels.cpu.engine.packing import Packed
from kernels.cpu.engine.program import Program, Slots
from kernels.cpu.engine.runner import (
    BORDER,
    CHANNELS,
    COUNT,
    GEMM,
    KINDS,
    LINES,
    MATRIX,
    MAXIMA,
    STEP,
)
from kernels.cpu.engine.windows import Grid

__all__ = ["Builder"]

#: Tiles of a strip: what they read should stay near the core while blocks of weights pass.
_STRIP_TILES = 7
#: Positions of a strip where each channel is summed alone.
_CHANNEL_STRIP = 28
#: About so many jobs of a step, so that cores finish together.
_JOBS = 16
#: Bytes of windows copied for a job, and how often those of a small image may be copied.
_ROWS_BYTES, _COPIES = 1 << 18, 4


def _even(packed: Packed, grid: Grid) -> int:
    """Return the bytes from each window to the next, if windows are single runs that lie evenly.

    Not where 32 of them share few places of the first cache.
    """
    steps = np.diff(grid.bases)
    if packed.runs > 1 or not steps.size or (steps != steps[0]).any():
        return 0
    return int(steps[0]) if steps[0] > 0 and steps[0] % 2048 else 0


class Builder:
    """Collects steps; `program` finishes them."""

    def __init__(self) -> None:
        self._slots = Slots()
        self._time = 0
        self._steps: list[dict[str, int]] = []
        self._stages: list[dict[str, int]] = []
        self._stage_images: list[dict[str, Image | None]] = []
        self._keep: list[object] = []
        self._tables: dict[tuple[tuple[int, ...], bytes], int] = {}

    def image(
        self,
        kind: MicroKernel,
        shape: tuple[int, int, int, int],
        border: tuple[int, int] = (0, 0),
        offset: int = 0,
    ) -> Image:
        """Return a new image (N, C, H, W) in a buffer of its own."""
        n, c, h, w = shape
        image = Image(0, kind.operands, n, c, h, w, border, offset, c)
        return replace(image, buffer=self._slots.new(image.nbytes))

    def now(self) -> int:
        """Return how many steps there are yet: where a run may be cut."""
        return len(self._steps)

    def touch(self, *images: Image) -> None:
        """Note that images are read or written from outside, between steps."""
        self._time += 1
        for image in images:
            self._slots.use(image.buffer, self._time)

    def fill(self, image: Image) -> None:
        """Fill the border of an image, before anything is written into it."""
        if not any(image.border):
            return
        self._add(
            BORDER,
            jobs=image.batch,
            data=(image, 0),
            width=image.columns,
            pixel_bytes=image.step,
            positions=image.rows,
            border_h=image.border[0],
            border_w=image.border[1],
            zero=image.zero,
        )

    def outputs(self, source: Image, packed: Packed, grid: Grid, writes: Writes) -> None:
        """Add a product over channels; the grid's taps are the runs of the packed weights."""
        kernel = packed.kernel
        count = grid.bases.size
        if not count or not packed.outs:
            return
        if kernel.matrix and packed.weights.shape[2] >= kernel.words:
            self._matrix(source, packed, grid, writes)
            return
        tiles = gemm.compiled(kernel)
        groups, blocks = packed.weights.shape[:2]
        strip = kernel.rows * _STRIP_TILES
        strips = -(-count // strip)
        chunks = min(blocks, max(1, _JOBS // (strips * groups)))
        bases = np.concatenate([grid.bases, np.repeat(grid.bases[-1:], kernel.rows)])
        form = output_form(writes, kernel, packed.max_abs_sum)
        last = packed.outs - (blocks - 1) * kernel.columns
        self._add(
            GEMM,
            jobs=strips * chunks * groups,
            data=(source, source.origin),
            writes=(writes, grid, kernel, packed.max_abs_sum),
            positions=count,
            strip=strip,
            strips=strips,
            chunks=chunks,
            bases=self._offset_table(bases),
            taps=self._offset_table(grid.taps),
            runs=packed.runs,
            words=packed.words,
            weights=self._address(packed.weights),
            start=self._address(packed.initial_sums),
            block_bytes=packed.weights[0, 0].nbytes,
            outs=packed.outs,
            blocks=blocks,
            columns=kernel.columns,
            lanes=kernel.lanes,
            rows=kernel.rows,
            tail_rows=kernel.tail_rows,
            whole_1=tiles.whole[0],
            whole_2=tiles.whole[1],
            short_1=tiles.short[0],
            short_2=tiles.short[1],
            group_bytes=source.channels // groups * source.operands.itemsize,
            stored_1=gemm.stored_tile(kernel, last, form),
            stored_2=gemm.stored_tile(kernel, kernel.columns, form) if blocks > 1 else 0,
        )

    def _matrix(self, source: Image, packed: Packed, grid: Grid, writes: Writes) -> None:
        """Add a product over channels by whole matrices, of windows that are copied to rows."""
        kernel, count = packed.kernel, grid.bases.size
        groups, blocks, words = packed.weights.shape[:3]
        word_blocks = words // kernel.words
        # an odd number of cache lines: rows would else share few places in the first cache
        pitch = 4 * kernel.words * (word_blocks | 1)
        strip = matrix.ROWS * max(1, min(_STRIP_TILES, _ROWS_BYTES // (matrix.ROWS * pitch)))
        strips = -(-count // strip)
        self._add(
            MATRIX,
            jobs=strips * (chunks := min(blocks, max(1, _COPIES // (strips * groups)))) * groups,
            data=(source, source.origin),
            writes=(writes, grid, kernel, packed.max_abs_sum),
            positions=count,
            strip=strip,
            strips=strips,
            chunks=chunks,
            bases=self._offset_table(grid.bases),
            taps=self._offset_table(grid.taps),
            runs=packed.runs,
            run_bytes=4 * packed.words,
            word_blocks=word_blocks,
            pitch=pitch,
            even=_even(packed, grid),
            first=int(grid.bases[0] + grid.taps[0]),
            weights=self._address(packed.weights),
            start=self._address(packed.initial_sums),
            block_bytes=packed.weights[0, 0].nbytes,
            group_bytes=source.channels // groups * source.operands.itemsize,
            outs=packed.outs,
            blocks=blocks,
            columns=kernel.columns,
            lanes=kernel.lanes,
            rows=matrix.ROWS,
            product_1=matrix.product(1),
            product_2=matrix.product(2),
            gather=matrix.gather(),
            begin=matrix.begin(),
            end=matrix.end(),
        )

    def channels(self, source: Image, packed: Packed, grid: Grid, writes: Writes) -> None:
        """Add sums over windows of each channel alone."""
        kernel, form = packed.kernel, output_form(writes, packed.kernel, packed.max_abs_sum)

        def function(outs: int) -> int:
            return gemm.stored_channels(kernel, outs, form)

        strip = min(_CHANNEL_STRIP, max(1, -(-grid.bases.size // _JOBS)))
        self._alone(source, packed, grid, writes, function, packed.words, strip)

    def columns(
        self, source: Image, packed: Packed, grid: Grid, writes: Writes, g: ConvGeometry
    ) -> None:
        """Add sums over windows of each channel alone, packed by columns of the kernel."""
        kernel, form = packed.kernel, output_form(writes, packed.kernel, packed.max_abs_sum)

        def function(outs: int) -> int:
            return gemm.stored_columns(kernel, outs, form, g.kernel, g.stride[1])

        # a strip is a row of outputs
        self._alone(source, packed, grid, writes, function, source.step, g.out_size[1])

    def _alone(
        self,
        source: Image,
        packed: Packed,
        grid: Grid,
        writes: Writes,
        function: Callable[[int], int],
        words: int,
        strip: int,
    ) -> None:
        """Add a step by a function for so many outputs of one block."""
        kernel, count = packed.kernel, grid.bases.size
        if not count or not packed.outs:
            return
        per = kernel.operands.per_word
        block, blocks = kernel.lanes * per, len(packed.weights)
        taps = np.concatenate([grid.taps, np.repeat(grid.taps[-1:], -grid.taps.size % per)])
        self._add(
            CHANNELS,
            jobs=-(-count // strip),
            data=(source, source.origin),
            writes=(writes, grid, kernel, packed.max_abs_sum),
            positions=count,
            strip=strip,
            bases=self._offset_table(grid.bases),
            taps=self._offset_table(taps),
            words=words,
            weights=self._address(packed.weights),
            start=self._address(packed.initial_sums),
            block_bytes=packed.weights[0].nbytes,
            blocks=blocks,
            columns=block,
            block_data_bytes=block * source.operands.itemsize,
            stored_1=function(packed.outs - (blocks - 1) * block),
            stored_2=function(block) if blocks > 1 else 0,
        )

    def largest(self, source: Image, table: np.ndarray, out: Image, kernel: MicroKernel) -> None:
        """Add the maximum of windows, which a table (P, T) lists."""
        count = len(table)
        strip = max(1, -(-count // _JOBS))
        self._add(
            MAXIMA,
            jobs=-(-count // strip),
            data=(source, source.origin),
            out=out,
            positions=count,
            strip=strip,
            bases=self._offset_table(table),
            window=table.shape[1],
            function=max_pool.compiled(kernel),
            out_offsets=self._offset_table(out.byte_offsets()),
            channels=out.channels,
        )

    def apply(self, source: Image, writes: Writes) -> None:
        """Add a pass of a float32 image through the output stage, line by line."""
        images = (source, *(i for i in writes.images.values() if i is not None))
        # where all channels are treated alike and lie together, a line is one row
        alike = writes.slope is None and all(i.pixel == i.channels for i in images)
        width, channels = source.width, source.channels
        if alike:
            width, channels = 1, width * channels
        n, i, j = (a.reshape(-1) for a in np.indices((source.batch, source.height, width)))
        first = slice(None, None, width)
        lines = source.byte_offset(n[first], i[first], 0)
        self._add(
            LINES,
            jobs=lines.size,
            data=(source, source.origin),
            writes=(writes, Grid(lines, lines, (n, i, j)), choose("float"), None),
            positions=lines.size,
            bases=self._offset_table(lines),
            pixel_bytes=source.step,
            width=width,
            channels=channels,
        )

    def count(self, source: Image) -> int | None:
        """Add a step that counts a float32 image, see `Instance.count`; return its number.

        None if its values lie too scattered to be counted in place, or are too many.
        """
        lines = source.lines()
        if lines is None or source.nbytes >= 4 * MOST:
            return None
        starts, length = lines
        bases = self._offset_table(starts)
        self._add(
            COUNT, jobs=1, data=(source, source.origin), bases=bases, positions=starts.size,
            length=length, counter=0,
        )  # fmt: skip
        return len(self._steps) - 1

    def program(self) -> Program:
        """Finish: give every buffer its place and return what does not change."""
        places, sizes = self._slots.assign()
        steps = np.zeros(len(self._steps), STEP)
        steps["data_buffer"] = steps["out_buffer"] = -1
        following = 0, 0  # the weights that are read behind a step
        for i, values in reversed(list(enumerate(self._steps))):
            record = steps.view(KINDS[values["kind"]])[i]
            for name, value in values.items():
                record[name] = places[value] if name.endswith("_buffer") else value
            if values["kind"] == GEMM:
                record["following"], record["following_bytes"] = following
            if values["kind"] in (GEMM, MATRIX):
                following = values["weights"], values["block_bytes"]
        stages = np.zeros((len(self._stages), len(FIELDS)), np.int64)
        buffers = np.full((len(self._stages), 3), -1, np.int64)
        for i, (values, images) in enumerate(zip(self._stages, self._stage_images, strict=True)):
            for name, value in values.items():
                stages[i, FIELDS.index(name)] = value
            for k, image in enumerate(images.values()):
                if image is not None:
                    buffers[i, k] = places[image.buffer]
        return Program(steps, stages, buffers, places, sizes, tuple(self._keep))

    def _add(
        self,
        kind: int,
        *,
        jobs: int,
        data: tuple[Image, int],
        out: Image | None = None,
        writes: tuple[Writes, Grid, MicroKernel, np.ndarray | None] | None = None,
        **values: int,
    ) -> None:
        self._time += 1
        source, offset = data
        self._slots.use(source.buffer, self._time)
        step = {"kind": kind, "jobs": jobs, "data": offset, "data_buffer": source.buffer, **values}
        if out is not None:
            self._slots.use(out.buffer, self._time)
            step |= {"out": out.origin, "out_buffer": out.buffer}
        if writes is not None:
            step["store"], step["stage"] = self._stage(*writes)
        self._steps.append(step)

    def _address(self, array: np.ndarray) -> int:
        """Return the address of an array, which the program keeps alive."""
        assert array.flags.c_contiguous
        self._keep.append(array)
        return array.ctypes.data

    def _offset_table(self, table: np.ndarray) -> int:
        """Return the address of a table of byte offsets: layers of like images share theirs."""
        table = np.ascontiguousarray(table, np.int64)
        key = table.shape, blake2b(table.data, digest_size=16).digest()
        if key not in self._tables:
            self._tables[key] = self._address(table)
        return self._tables[key]

    def _per_channel(self, values: np.ndarray, lanes: int) -> int:
        """Return the address of float32 values, with room for a whole vector at the end."""
        padded = np.zeros(values.size + lanes, np.float32)
        padded[: values.size] = values
        return self._address(padded)

    def _stage(
        self, writes: Writes, grid: Grid, kernel: MicroKernel, max_abs_sum: np.ndarray | None
    ) -> tuple[int, int]:
        """Return the address of the function, and the number of its table."""
        s, lanes = writes.stage, kernel.lanes
        form = output_form(writes, kernel, max_abs_sum)
        constants = output_constants(writes)
        units = constants[CONSTANTS.index("reciprocal_units")]
        table = {
            "scale": self._per_channel(s.scale, lanes),
            "factor": self._per_channel(s.scale * units if form.bounded else s.scale, lanes),
            "power": self._per_channel(s.power, lanes),
            "constants": self._address(constants),
        }
        if writes.slope is not None:
            table["slope"] = self._per_channel(writes.slope, lanes)
        for name, image in writes.images.items():
            if image is not None:
                self._slots.use(image.buffer, self._time)
                table[name] = image.origin
                table[f"{name}_at"] = self._offset_table(image.byte_offset(*grid.where))
        self._stages.append(table)
        self._stage_images.append(writes.images)
        return epilogue.compiled(form, kernel.excluded), len(self._stages) - 1
