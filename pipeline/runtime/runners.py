"""Three ways of running a net behind one interface: layer after layer, compiled, on a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np

import kernels
from caffeio.graph import Layer, Value
from kernels import Histogram, NotFiniteError
from kernels.programs import Counter
from pipeline.layers.base import Kept
from pipeline.runtime.batching import images_at_once, in_halves, splits
from pipeline.runtime.compiled import CompiledNet, Watch
from pipeline.runtime.compiler import compile_net
from pipeline.runtime.device import Resident
from pipeline.runtime.loop import Forward, Observer, guarded, owned, run
from pipeline.runtime.model import Model, Request, Shapes
from pipeline.runtime.packing import PackedWeights
from pipeline.runtime.recent import Recent
from pipeline.runtime.schedule import Schedule
from pipeline.runtime.shapes import infer

__all__ = ["Compiled", "Loop", "OnDevice", "Runner", "runner_for"]

Histograms = Mapping[Value, Histogram]
#: Of values with NaN or infinity what was found in them.
Bad = dict[Value, list[NotFiniteError]]

#: Watching costs something for every call, so that two parts are run at once.
_WATCHED_PARTS = 2


class Runner(Protocol):
    """A way of running a net."""

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        """Return the blobs asked for; they belong to the caller."""
        ...  # pragma: no cover

    def observe(self, request: Request, observer: Observer) -> dict[str, np.ndarray]:
        """Do as `forward`, running all layers and showing each to an observer."""
        ...  # pragma: no cover

    def watch(self, request: Request, values: tuple[Value, ...], watch: Watch) -> None:
        """Run all layers and show the numbers of some values."""
        ...  # pragma: no cover

    def count(self, request: Request, histograms: Histograms) -> Bad:
        """Run all layers and count some values; return what was not finite."""
        ...  # pragma: no cover


def runner_for(model: Model) -> Runner:
    """Return the fastest way of running a model on its device."""
    engine = kernels.packed(model.device)
    if engine is not None:
        return Compiled(model, PackedWeights(engine))
    return OnDevice(model) if model.device == "cuda" else Loop(model)


def _counting(histograms: Histograms, device: str, bad: Bad) -> Watch:
    """Return what counts the values that it is shown."""

    def watch(value: Value, numbers: np.ndarray) -> None:
        try:
            histograms[value].update(numbers, device=device)
        except NotFiniteError as error:
            bad.setdefault(value, []).append(error)

    return watch


class Loop:
    """Runs layer after layer, which defines what a net computes.

    Parameters
    ----------
    model : Model
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        """See `Runner`."""
        return self._run(request, None)

    def observe(self, request: Request, observer: Observer) -> dict[str, np.ndarray]:
        """See `Runner`."""
        return self._run(request, observer)

    def watch(self, request: Request, values: tuple[Value, ...], watch: Watch) -> None:
        """See `Runner`."""
        plan = self._model.schedule(tuple(request.arrays), (), True)
        show = _shown(self._model, request, values, watch)
        run(self._model.net, plan, request.arrays, self._operation(request), show)

    def count(self, request: Request, histograms: Histograms) -> Bad:
        """See `Runner`."""
        bad: Bad = {}
        self.watch(request, tuple(histograms), _counting(histograms, self._model.device, bad))
        return bad

    def _run(self, request: Request, observer: Observer | None) -> dict[str, np.ndarray]:
        plan = self._model.schedule(tuple(request.arrays), request.blobs, observer is not None)
        operation = self._operation(request)
        outputs = run(self._model.net, plan, request.arrays, operation, observer)
        return owned(outputs, request.arrays)

    def _operation(self, request: Request) -> partial[Forward]:
        return partial(self._model.operation, kept=request.kept)


def _shown(model: Model, request: Request, values: tuple[Value, ...], watch: Watch) -> Observer:
    """Show the inputs among some values; return an observer that shows the others."""
    net = model.net
    for layer, link in zip(net.layers, net.links, strict=True):
        for value in link.writes if layer.is_source else ():
            if value in values and value.blob in request.arrays:
                watch(value, request.arrays[value.blob])

    def after(
        i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        for value, top in zip(net.links[i].writes, tops, strict=True):
            if value in values:
                watch(value, top)

    return after


class OnDevice:
    """Runs on a device whose memory the data never leaves.

    Parameters
    ----------
    model : Model

    Raises
    ------
    PipelineError
        If there is no such device.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._resident = Resident(model.device)

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        """See `Runner`; where memory does not suffice, a batch is run in halves."""
        return self._run(request, None)

    def observe(self, request: Request, observer: Observer) -> dict[str, np.ndarray]:
        """See `Runner`; what an observer sees comes back to the host."""
        host = self._resident.to_host

        def seen(
            i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
        ) -> None:
            observer(i, layer, host(bottoms), host(tops))

        return self._run(request, seen)

    def watch(self, request: Request, values: tuple[Value, ...], watch: Watch) -> None:
        """See `Runner`; it is shown device arrays."""
        plan = self._model.schedule(tuple(request.arrays), (), True)
        show = _shown(self._model, request, values, watch)
        entered = self._resident.enter(request.arrays)
        run(self._model.net, plan, entered, partial(self._operation, states=request.kept), show)

    def count(self, request: Request, histograms: Histograms) -> Bad:
        """See `Runner`; device arrays are counted where they lie."""
        bad: Bad = {}
        self.watch(request, tuple(histograms), _counting(histograms, self._model.device, bad))
        return bad

    def _run(self, request: Request, observer: Observer | None) -> dict[str, np.ndarray]:
        model, resident = self._model, self._resident
        plan = model.schedule(tuple(request.arrays), request.blobs, observer is not None)
        operation = partial(self._operation, states=request.kept)

        def whole(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = run(model.net, plan, resident.enter(arrays), operation, observer)
            return resident.leave(outputs)

        results = plan.results.values()
        apart = splits(model.net, plan.layers, model.shapes(request.shapes), results)
        return dict(in_halves(whole, request.arrays, apart))

    def _operation(self, position: int, states: dict[int, Kept]) -> Forward:
        """Return the computation of one layer from device arrays."""
        model, resident = self._model, self._resident
        layer, kind = model.net.layers[position], model.types[position]
        numbers = model.numbers.get(layer.name)
        if numbers is not None:
            return lambda bottoms: (resident.run_int8(layer, numbers, bottoms[0]),)

        def forward(bottoms: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
            model.checked(position, bottoms)
            if kind.resume is None:
                return resident.run(layer, bottoms)
            arrays = resident.to_host(bottoms)
            tops, states[position] = kind.resume(layer, arrays, states.get(position, ()))
            return resident.to_device(tops)

        return forward


class Compiled:
    """Runs compiled steps, a part of the batch after the other.

    Parameters
    ----------
    model : Model
    packed : PackedWeights
        For whatever shapes and blobs will be asked for.
    """

    def __init__(self, model: Model, packed: PackedWeights) -> None:
        self._model = model
        self._loop = Loop(model)
        self.packed = packed
        self._nets: Recent[tuple, CompiledNet] = Recent(4)
        self._parts: Recent[tuple, tuple[int | None, frozenset[str]]] = Recent(16)
        self._lock = threading.Lock()

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        """See `Runner`; only what the blobs need runs."""
        return self._run(request, (), None)

    def observe(self, request: Request, observer: Observer) -> dict[str, np.ndarray]:
        """See `Runner`; layers then run one by one."""
        return self._loop.observe(request, observer)

    def watch(self, request: Request, values: tuple[Value, ...], watch: Watch) -> None:
        """See `Runner`; numbers come in some order of axes, for a part after the other."""
        self._run(replace(request, blobs=()), values, watch)

    def count(self, request: Request, histograms: Histograms) -> Bad:
        """See `Runner`; steps count what lies in images as soon as it is there."""
        bad: Bad = {}
        values, watch = tuple(sorted(histograms)), _counting(histograms, self._model.device, bad)
        counters = {value: histogram.counter() for value, histogram in histograms.items()}

        def after(last: bool) -> None:
            for value, counter in counters.items():
                try:
                    if last or counter.full:
                        histograms[value].take(counter)
                except NotFiniteError as error:
                    bad.setdefault(value, []).append(error)

        self._run(replace(request, blobs=()), values, watch, counters, lambda: after(False))
        after(True)
        return bad

    def compiled(
        self,
        shapes: Shapes,
        blobs: tuple[str, ...] | None,
        values: tuple[Value, ...] = (),
        counting: bool = False,
    ) -> CompiledNet:
        """Return the net compiled for some shapes of inputs and what is asked of it."""
        with self._lock:  # the first of several threads compiles
            key = shapes, blobs, values, counting
            return self._nets.of(key, lambda: self._compile(*key))

    def parts(
        self, shapes: Shapes, blobs: tuple[str, ...] | None, values: tuple[Value, ...] = ()
    ) -> tuple[int | None, frozenset[str]]:
        """Return how many images to run at a time, None for all, and the inputs that are read."""
        key = shapes, blobs, values
        return self._parts.of(key, lambda: self._cut(shapes, blobs, values))

    def _run(
        self,
        request: Request,
        values: tuple[Value, ...],
        watch: Watch | None,
        counters: Mapping[Value, Counter] | None = None,
        after: Callable[[], None] | None = None,
    ) -> dict[str, np.ndarray]:
        layers = self._model.net.layers

        def run_layer(position: int, bottoms: list[np.ndarray]) -> tuple[np.ndarray, ...]:
            operation = self._model.operation(position, request.kept)
            return guarded(layers[position], bottoms, operation)

        names = [name for name, _ in request.shapes]
        parts = []
        for arrays in self._batch_parts(request, values, counters is not None):
            shapes = tuple((name, arrays[name].shape) for name in names)
            compiled = self.compiled(shapes, request.blobs, values, counters is not None)
            outputs = compiled.run(arrays, run_layer, watch, counters or {})
            if after is not None:
                after()
            parts.append({name: outputs[v] for name, v in compiled.results.items()})
        if len(parts) == 1:
            return owned(parts[0], request.arrays)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _batch_parts(
        self, request: Request, values: tuple[Value, ...], counting: bool
    ) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the inputs, or parts of those that the run reads."""
        arrays = request.arrays
        size, read = self.parts(request.shapes, request.blobs, values)
        if size is not None and values and not counting:
            size *= _WATCHED_PARTS
        batch = len(arrays[min(read)]) if read else 1
        if size is None or size >= batch:
            yield arrays
            return
        for begin in range(0, batch, size):
            part = slice(begin, begin + size)
            yield {name: x[part] if name in read else x for name, x in arrays.items()}

    def _schedule(
        self, shapes: Shapes, blobs: tuple[str, ...] | None, values: tuple[Value, ...]
    ) -> Schedule:
        """Return what a run does: what the blobs or the watched values need."""
        input_names = tuple(name for name, _ in shapes)
        if not values:
            return self._model.schedule(input_names, blobs)
        everything = self._model.schedule(input_names, tuple(v.blob for v in values), True)
        return replace(everything, results={})

    def _cut(
        self, shapes: Shapes, blobs: tuple[str, ...] | None, values: tuple[Value, ...]
    ) -> tuple[int | None, frozenset[str]]:
        model = self._model
        if model.unsure:
            return None, frozenset()
        plan, value_shapes = self._schedule(shapes, blobs, values), model.shapes(shapes)
        shown = {*plan.results.values(), *values}
        size = images_at_once(model.net, plan.layers, value_shapes, shown)
        if size is None:
            return None, frozenset()
        reads = {v.blob for i in plan.layers for v in model.net.links[i].reads}
        read = frozenset(name for name, _ in shapes) & (reads | {v.blob for v in shown})
        return size, read

    def _compile(
        self,
        shapes: Shapes,
        blobs: tuple[str, ...] | None,
        values: tuple[Value, ...],
        counting: bool,
    ) -> CompiledNet:
        model = self._model
        plan = self._schedule(shapes, blobs, values)
        # a part of a batch need not fit the layers that it does not pass through
        value_shapes = infer(model.net, model.types, dict(shapes), plan.layers)
        return compile_net(
            model.net,
            plan,
            value_shapes,
            model.numbers,
            watched=values,
            counting=counting,
            plain=model.unsure,
            packed=self.packed,
        )
