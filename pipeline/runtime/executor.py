"""Running a net: compiled for the device where that is possible, or layer after layer.

The loop over layers (`pipeline.runtime.loop`) defines what a net computes. `Executor` runs a net
on it, on a device whose memory the data never leaves (`pipeline.runtime.device`), or compiled
(`pipeline.runtime.compiler`), which is faster; layers that `numbers` names run on integers.
`FloatNet` is an executor without any.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

import kernels
from caffeio.graph import SOURCE_TYPES, Layer, Net, Value
from pipeline.layers import Shape, layer_type
from pipeline.layers.base import Kept
from pipeline.layers.int8 import INT8_TYPES, QuantizedLayer
from pipeline.runtime.batching import images_at_once, in_halves, splits
from pipeline.runtime.compiled import CompiledNet, Watch
from pipeline.runtime.compiler import compile_net
from pipeline.runtime.device import Resident
from pipeline.runtime.loop import Forward, Observer, guarded, owned, run
from pipeline.runtime.packing import PackedWeights
from pipeline.runtime.schedule import Schedule, schedule
from pipeline.runtime.shapes import behind_data, check_inputs, infer, input_shapes
from pipeline.runtime.state import State

__all__ = ["Executor", "FloatNet"]

#: Watching costs something for every call, so that many parts are run at once.
_WATCHED_PARTS = 4

#: Inputs by name, sorted, with their shapes.
Shapes = tuple[tuple[str, Shape], ...]


class Executor:
    """Runs a net.

    Parameters
    ----------
    net : Net
        With weights, as `caffeio.read_net` returns it.
    numbers : mapping of layer name to QuantizedLayer
        Layers that run on integers.
    device : str
        One of `kernels.DEVICES`: ``"reference"`` (NumPy), ``"cpu"`` (compiled kernels) or
        ``"cuda"``, where data stays from the first layer to the last.

    Raises
    ------
    caffeio.NetError
        If a layer's type is unknown or cannot run.
    ValueError
        If the device is unknown.

    Notes
    -----
    `forward` changes nothing that it shares: one net may serve several threads at once.
    """

    def __init__(
        self, net: Net, numbers: Mapping[str, QuantizedLayer], *, device: str = "cpu"
    ) -> None:
        if device not in kernels.DEVICES:
            raise ValueError(f"device must be one of {', '.join(kernels.DEVICES)}, not '{device}'")
        self.net = net
        self.device = device
        self._numbers = numbers
        engine = kernels.packed(device)
        self._packed = None if engine is None else PackedWeights(engine)
        self._resident = Resident(device) if device == "cuda" else None
        self._types = tuple(layer_type(layer) for layer in net.layers)
        self._declared = input_shapes(net)
        self._unsure = behind_data(net, self._types)
        self._infer_once = lru_cache(maxsize=16)(
            lambda given: infer(self.net, self._types, dict(given))
        )
        self._plan_once = lru_cache(maxsize=16)(self._plan)
        self._compile_once = lru_cache(maxsize=4)(self._compile)
        self._part_once = lru_cache(maxsize=16)(self._part)
        self._lock = threading.Lock()

    @property
    def remembers(self) -> bool:
        """Whether a pass depends on those before it, see `State`: LSTM and RNN layers."""
        return any(kind.resume is not None for kind in self._types)

    def shapes(self, input_shapes: Mapping[str, Sequence[int]] | None = None) -> dict[Value, Shape]:
        """Infer and check the shape of every value, running nothing.

        Parameters
        ----------
        input_shapes : mapping of str to shape, optional
            Shapes of inputs by name; for others the prototxt's own are taken.

        Returns
        -------
        dict of Value to tuple of int
            A layer's bottoms and tops are found through ``net.links``. Labels (see
            `schedule`) without a shape, and what depends on them, are left out. Behind a
            Filter or DetectionOutput layer the first shape is Caffe's stand-in, since the
            data decides it.

        Raises
        ------
        caffeio.NetError
            If an input is unknown, its shape is needed and not given, or a layer's
            parameters, weights and bottoms do not fit together.
        """
        given = {name: tuple(map(int, shape)) for name, shape in (input_shapes or {}).items()}
        return dict(self._infer_once(tuple(sorted(given.items()))))

    def forward(
        self,
        inputs: Mapping[str, np.ndarray],
        blobs: Sequence[str] | None = None,
        observer: Observer | None = None,
        *,
        state: State | None = None,
    ) -> dict[str, np.ndarray]:
        """Run the net.

        Parameters
        ----------
        inputs : mapping of str to array
            By blob name; converted to float32. The batch size (and the image size, where
            the layers allow it) may differ from the prototxt's. Labels may be left out,
            see `schedule`.
        blobs : sequence of str, optional
            Names of blobs to return, each with its last value in the net. By default the
            outputs of the net.
        observer : callable, optional
            ``observer(position, layer, bottoms, tops)``, called after each layer. All
            layers then run one by one; without it only what the blobs returned need runs,
            compiled if the device allows it.
        state : State, optional
            What recurrent layers remember of the passes before, and then of this one, too;
            without it they begin at zero.

        Returns
        -------
        dict of str to float32 ndarray

        Raises
        ------
        caffeio.NetError
            If inputs, names or shapes are wrong, or a layer fails.
        """
        asked = None if blobs is None else tuple(blobs)
        plan = self._plan_once(tuple(sorted(inputs)), asked, observer is not None)
        arrays = check_inputs(self._declared, inputs)
        shapes = tuple(sorted((name, x.shape) for name, x in arrays.items()))
        self._infer_once(shapes)
        with (state or State()).advance() as kept:
            if observer is None and kernels.packed(self.device):
                return self._run_compiled(arrays, shapes, asked, (), None, kept)
            if self._resident is not None:
                return self._run_resident(self._resident, plan, arrays, observer, kept)
            forward_of = partial(self.forward_of, kept=kept)
            return owned(run(self.net, plan, arrays, forward_of, observer), arrays)

    def watch(
        self,
        inputs: Mapping[str, np.ndarray],
        values: Collection[Value],
        watch: Watch,
        *,
        state: State | None = None,
    ) -> None:
        """Run the net and show the numbers of some values.

        Parameters
        ----------
        inputs : mapping of str to array
            As for `forward`.
        values : collection of Value
        watch : callable
            ``watch(value, numbers)``, for each: float32, in some order of axes, valid during
            the call; for a part of the batch after the other.
        state : State, optional
            As for `forward`.

        Raises
        ------
        caffeio.NetError
            As `forward`.
        """
        arrays = check_inputs(self._declared, inputs)
        shapes = tuple(sorted((name, x.shape) for name, x in arrays.items()))
        self._infer_once(shapes)
        with (state or State()).advance() as kept:
            self._watch(arrays, shapes, tuple(sorted(values)), watch, kept)

    def _watch(
        self,
        arrays: dict[str, np.ndarray],
        shapes: Shapes,
        values: tuple[Value, ...],
        watch: Watch,
        kept: dict[int, Kept],
    ) -> None:
        if kernels.packed(self.device):
            self._run_compiled(arrays, shapes, (), values, watch, kept)
            return
        for layer, link in zip(self.net.layers, self.net.links, strict=True):
            for value in link.writes if layer.type in SOURCE_TYPES else ():
                if value in values and value.blob in arrays:
                    watch(value, arrays[value.blob])

        def after(
            i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
        ) -> None:
            for value, top in zip(self.net.links[i].writes, tops, strict=True):
                if value in values:
                    watch(value, top)

        plan = self._plan_once(tuple(sorted(arrays)), (), True)
        where = arrays if self._resident is None else self._resident.enter(arrays)
        run(self.net, plan, where, partial(self.forward_of, kept=kept), after)

    def forward_of(self, position: int, kept: dict[int, Kept] | None = None) -> Forward:
        """Return the computation of one layer, for use in `run`.

        Parameters
        ----------
        position : int
        kept : dict of int to arrays, optional
            What layers remember, by position; changed as they run. Without it they begin anew.
        """
        layer, kind = self.net.layers[position], self._types[position]
        numbers = self._numbers.get(layer.name)
        if numbers is not None:
            there = self._resident
            if there is not None:
                return lambda bottoms: (there.run_int8(layer, numbers, bottoms[0]),)
            operation = INT8_TYPES[layer.type].forward
            return lambda bottoms: (operation(layer, numbers, bottoms[0], self.device),)

        def forward(bottoms: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
            if position in self._unsure:
                kind.shapes(layer, [x.shape for x in bottoms])
            if kind.resume is not None and kept is not None:
                on_host = bottoms if self._resident is None else self._resident.to_host(bottoms)
                tops, kept[position] = kind.resume(layer, on_host, kept.get(position, ()))
                return tops if self._resident is None else self._resident.to_device(tops)
            if self._resident is not None:
                return self._resident.run(layer, bottoms)
            return kind.forward(layer, bottoms, self.device)

        return forward

    def _run_resident(
        self,
        resident: Resident,
        plan: Schedule,
        arrays: Mapping[str, np.ndarray],
        observer: Observer | None,
        kept: dict[int, Kept],
    ) -> dict[str, np.ndarray]:
        """Run on the device; results, and what an observer sees, come back to the host."""
        host = resident.parts.on_host

        def seen(
            i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
        ) -> None:
            assert observer is not None
            observer(i, layer, [host(x) for x in bottoms], [host(x) for x in tops])

        watching = seen if observer else None

        def whole(taken: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            entered = resident.enter(taken)
            forward_of = partial(self.forward_of, kept=kept)
            return resident.leave(run(self.net, plan, entered, forward_of, watching))

        shapes = self._infer_once(tuple(sorted((n, x.shape) for n, x in arrays.items())))
        results = plan.results.values()
        return dict(in_halves(whole, arrays, splits(self.net, plan.layers, shapes, results)))

    def _run_compiled(
        self,
        arrays: Mapping[str, np.ndarray],
        shapes: Shapes,
        blobs: tuple[str, ...] | None,
        values: tuple[Value, ...],
        watch: Watch | None,
        kept: dict[int, Kept],
    ) -> dict[str, np.ndarray]:
        """Run compiled, a part of the batch after the other."""

        def run_layer(position: int, bottoms: list[np.ndarray]) -> tuple[np.ndarray, ...]:
            return guarded(self.net.layers[position], bottoms, self.forward_of(position, kept))

        parts = []
        for taken in self._taken(arrays, shapes, blobs, values):
            now = tuple((name, taken[name].shape) for name, _ in shapes)
            with self._lock:  # the first of several threads compiles
                compiled = self._compile_once(now, blobs, values)
            found = compiled.run(taken, run_layer, watch)
            parts.append({name: found[v] for name, v in compiled.results.items()})
        if len(parts) == 1:
            return owned(parts[0], arrays)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _taken(
        self,
        arrays: Mapping[str, np.ndarray],
        shapes: Shapes,
        blobs: tuple[str, ...] | None,
        values: tuple[Value, ...],
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the inputs, or parts of those that the run reads."""
        size, read = self._part_once(shapes, blobs, values)
        batch = len(arrays[min(read)]) if read else 1
        if size is None or size >= batch:
            yield arrays
            return
        for begin in range(0, batch, size):
            part = slice(begin, begin + size)
            yield {name: x[part] if name in read else x for name, x in arrays.items()}

    def _plan(
        self, given: tuple[str, ...], blobs: tuple[str, ...] | None, everything: bool
    ) -> Schedule:
        return schedule(self.net, given, blobs, everything=everything)

    def _schedule(
        self, shapes: Shapes, blobs: tuple[str, ...] | None, values: tuple[Value, ...]
    ) -> Schedule:
        """Return what a compiled run does: what the blobs or the watched values need."""
        given = tuple(name for name, _ in shapes)
        if not values:
            return self._plan_once(given, blobs, False)
        return replace(self._plan_once(given, tuple(v.blob for v in values), True), results={})

    def _part(
        self, shapes: Shapes, blobs: tuple[str, ...] | None, values: tuple[Value, ...]
    ) -> tuple[int | None, frozenset[str]]:
        """Return how many images to run at a time, None for all, and the inputs that are read."""
        if self._unsure:
            return None, frozenset()
        plan, known = self._schedule(shapes, blobs, values), self._infer_once(shapes)
        shown = {*plan.results.values(), *values}
        size = images_at_once(self.net, plan.layers, known, shown)
        if size is None:
            return None, frozenset()
        reads = {v.blob for i in plan.layers for v in self.net.links[i].reads}
        read = frozenset(name for name, _ in shapes) & (reads | {v.blob for v in shown})
        return size * (_WATCHED_PARTS if values else 1), read

    def _compile(
        self, shapes: Shapes, blobs: tuple[str, ...] | None, values: tuple[Value, ...]
    ) -> CompiledNet:
        assert self._packed is not None
        plan = self._schedule(shapes, blobs, values)
        # a part of a batch need not fit the layers that it does not pass through
        known = infer(self.net, self._types, dict(shapes), plan.layers)
        return compile_net(
            self.net,
            plan,
            known,
            self._numbers,
            watched=values,
            plain=self._unsure,
            packed=self._packed,
        )


class FloatNet(Executor):
    """A net that runs in float32.

    Parameters
    ----------
    net : Net
        With weights, as `caffeio.read_net` returns it.
    device : str
        One of `kernels.DEVICES`.

    Raises
    ------
    caffeio.NetError
        If a layer's type is unknown or cannot run.
    ValueError
        If the device is unknown.
    """

    def __init__(self, net: Net, *, device: str = "cpu") -> None:
        super().__init__(net, {}, device=device)
