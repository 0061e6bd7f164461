"""Running a net: compiled for the device where that is possible, or layer after layer.

`run` is the loop over layers: it keeps the values, hands them to the layers and frees them
after their last reader. It defines what a net computes. `Executor` runs a net on it, or
compiled (`pipeline.compile`), which is faster; layers that `numbers` names run on integers.
`FloatNet` is an executor without any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

import kernels
from caffeio.errors import NetError
from caffeio.graph import SOURCE_TYPES, Layer, Net, Value
from pipeline.compile import compile_net
from pipeline.compiled import CompiledNet, Watch
from pipeline.inference import behind_data, check_inputs, infer, input_shapes
from pipeline.int8_layers import INT8_FORWARD
from pipeline.layers import Shape, layer_type
from pipeline.parts import images_at_once
from pipeline.quantize import QuantizedLayer
from pipeline.schedule import Schedule, schedule

__all__ = ["Executor", "FloatNet", "Forward", "Observer", "run"]

#: Watching costs something for every call, so that many parts are run at once.
_WATCHED_PARTS = 4

#: Inputs by name, sorted, with their shapes.
Shapes = tuple[tuple[str, Shape], ...]

#: The computation of one layer: its bottoms in, its tops out.
Forward = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, ...]]

#: ``observer(position, layer, bottoms, tops)``; it must not change the arrays.
Observer = Callable[[int, Layer, Sequence[np.ndarray], Sequence[np.ndarray]], None]


def run(
    net: Net,
    plan: Schedule,
    inputs: Mapping[str, np.ndarray],
    forward_of: Callable[[int], Forward],
    observer: Observer | None = None,
) -> dict[str, np.ndarray]:
    """Run the layers of a plan.

    Parameters
    ----------
    net : Net
    plan : Schedule
        From `schedule`, for the names in `inputs`.
    inputs : mapping of str to ndarray
        Clean arrays: what the first layers read.
    forward_of : callable
        ``forward_of(position)`` returns the computation of that layer.
    observer : callable, optional
        Called after each layer with its position, the layer, bottoms and tops.

    Returns
    -------
    dict of str to ndarray
        The plan's results, in arrays that belong to the caller alone.

    Raises
    ------
    caffeio.NetError
        If a layer fails: with its name, type and the shapes it was given.
    """
    values = {
        v: inputs[v.blob]
        for layer, link in zip(net.layers, net.links, strict=True)
        if layer.type in SOURCE_TYPES
        for v in link.writes
        if v.blob in inputs
    }
    for i, dead in zip(plan.layers, plan.frees, strict=True):
        layer, link = net.layers[i], net.links[i]
        bottoms = [values[v] for v in link.reads]
        tops = _guarded(layer, bottoms, forward_of(i))
        values.update(zip(link.writes, tops, strict=True))
        if observer is not None:
            observer(i, layer, bottoms, tops)
        del bottoms, tops
        for value in dead:
            del values[value]
    found = {name: values[value] for name, value in plan.results.items()}
    return _owned(found, inputs)


def _guarded(
    layer: Layer, bottoms: Sequence[np.ndarray], forward: Forward
) -> tuple[np.ndarray, ...]:
    try:
        # Overflow and division by zero give inf and NaN in Caffe, too: not a warning.
        with np.errstate(all="ignore"):
            return forward(bottoms)
    except NetError:
        raise
    except Exception as error:
        shapes = ", ".join(str(x.shape) for x in bottoms) or "no bottoms"
        raise NetError(f"{layer.type} failed on {shapes}: {error}", layer.name) from error


def _owned(
    found: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Copy those results that share memory with an input, a weight or each other."""
    taken = {id(x) for x in inputs.values()}
    results = {}
    for name, x in found.items():
        shared = x.base is not None or id(x) in taken
        results[name] = x.copy() if shared else x
        taken.add(id(results[name]))
    return results


class Executor:
    """Runs a net.

    Parameters
    ----------
    net : Net
        With weights, as `caffeio.read_net` returns it.
    numbers : mapping of layer name to QuantizedLayer
        Layers that run on integers.
    device : str
        One of `kernels.DEVICES`: ``"reference"`` (NumPy) or ``"cpu"`` (compiled kernels).

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
        self._packed: dict[object, object] = {}
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
        if observer is None and kernels.packed(self.device):
            return self._run_compiled(arrays, shapes, asked, (), None)
        return run(self.net, plan, arrays, self.forward_of, observer)

    def watch(
        self, inputs: Mapping[str, np.ndarray], values: Collection[Value], watch: Watch
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

        Raises
        ------
        caffeio.NetError
            As `forward`.
        """
        arrays = check_inputs(self._declared, inputs)
        shapes = tuple(sorted((name, x.shape) for name, x in arrays.items()))
        self._infer_once(shapes)
        if kernels.packed(self.device):
            self._run_compiled(arrays, shapes, (), tuple(sorted(values)), watch)
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

        plan = self._plan_once(tuple(sorted(inputs)), (), True)
        run(self.net, plan, arrays, self.forward_of, after)

    def forward_of(self, position: int) -> Forward:
        """Return the computation of one layer, for use in `run`."""
        layer, kind = self.net.layers[position], self._types[position]
        numbers = self._numbers.get(layer.name)
        if numbers is not None:
            operation = INT8_FORWARD[layer.type]
            return lambda bottoms: (operation(layer, numbers, bottoms[0], self.device),)

        def forward(bottoms: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
            if position in self._unsure:
                kind.shapes(layer, [x.shape for x in bottoms])
            return kind.forward(layer, bottoms, self.device)

        return forward

    def _run_compiled(
        self,
        arrays: Mapping[str, np.ndarray],
        shapes: Shapes,
        blobs: tuple[str, ...] | None,
        values: tuple[Value, ...],
        watch: Watch | None,
    ) -> dict[str, np.ndarray]:
        """Run compiled, a part of the batch after the other."""

        def run_layer(position: int, bottoms: list[np.ndarray]) -> tuple[np.ndarray, ...]:
            return _guarded(self.net.layers[position], bottoms, self.forward_of(position))

        size = self._part_once(shapes, blobs, values)
        batch = shapes[0][1][0] if shapes else size
        parts = []
        for begin in range(0, max(batch, 1), size):
            taken = {name: x[begin : begin + size] for name, x in arrays.items()}
            if size >= batch:
                taken = dict(arrays)
            now = tuple((name, taken[name].shape) for name, _ in shapes)
            with self._lock:  # the first of several threads compiles
                compiled = self._compile_once(now, blobs, values)
            found = compiled.run(taken, run_layer, watch)
            parts.append({name: found[v] for name, v in compiled.results.items()})
        if len(parts) == 1:
            return _owned(parts[0], arrays)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

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
    ) -> int:
        plan = self._schedule(shapes, blobs, values)
        known = self._infer_once(shapes)
        batches = {shape[0] for _, shape in shapes if shape}
        if self._unsure or len(batches) != 1:
            return max(batches, default=1)
        size = images_at_once(self.net, plan.layers, known)
        return min(_WATCHED_PARTS * size, *batches) if values else size

    def _compile(
        self, shapes: Shapes, blobs: tuple[str, ...] | None, values: tuple[Value, ...]
    ) -> CompiledNet:
        return compile_net(
            self.net,
            self._schedule(shapes, blobs, values),
            self._infer_once(shapes),
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
