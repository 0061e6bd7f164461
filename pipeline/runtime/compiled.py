"""A compiled net: its steps, and what is done between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from caffeio.errors import NetError
from caffeio.graph import Value
from kernels.programs import Counter, Engine, Image, Instance, Program
from pipeline.layers import Shape

__all__ = ["Action", "CompiledNet", "Watch"]

#: ``watch(value, numbers)``: called with the numbers of a value, float32, in some order of axes
#: and not to be kept.
Watch = Callable[[Value, np.ndarray], None]

#: ``run_layer(position, bottoms)`` returns the tops of a layer that is not compiled.
RunLayer = Callable[[int, list[np.ndarray]], tuple[np.ndarray, ...]]


NOTHING = Value("", -1)
NONE: Mapping[Value, Counter] = {}


@dataclass(frozen=True)
class Action:
    """One thing done in a run.

    Attributes
    ----------
    kind : str
        "run" steps [begin, end); "enter": array into image; "leave": image into array of
        `shape`; "layer": run the layer at `position`; "map": the same, element by element from
        `image` to `out`; "watch": show a value.
    """

    kind: str
    begin: int = 0
    end: int = 0
    value: Value = NOTHING
    watched: Value = NOTHING
    image: Image | None = None
    out: Image | None = None
    shape: Shape = ()
    position: int = -1
    reads: tuple[Value, ...] = ()
    writes: tuple[Value, ...] = ()


@dataclass(frozen=True)
class CompiledNet:
    """A net for one shape of inputs; it never changes, so threads may share it.

    Attributes
    ----------
    engine : module
        From `kernels.programs`.
    program : Program
        All steps.
    owners : tuple of str
        For each step the layer or input that it belongs to, as an error names it.
    actions : tuple of Action
    inputs : tuple of Value
        Inputs that are used.
    results : dict of str to Value
    counted : tuple of (int, Value)
        Steps that count a value in a histogram.
    """

    engine: Engine
    program: Program
    owners: tuple[str, ...]
    actions: tuple[Action, ...]
    inputs: tuple[Value, ...]
    results: Mapping[str, Value]
    counted: tuple[tuple[int, Value], ...] = ()

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        run_layer: RunLayer,
        watch: Watch | None = None,
        counters: Mapping[Value, Counter] = NONE,
    ) -> dict[Value, np.ndarray]:
        """Run the net.

        Parameters
        ----------
        inputs : mapping of str to float32 array
            By blob name.
        run_layer : callable
        watch : callable, optional
        counters : mapping of Value to Counter
            For the values that steps count.

        Returns
        -------
        dict of Value to float32 array
            The values of `results`.

        Raises
        ------
        caffeio.NetError
            If a value to be quantized is NaN.
        """
        arrays = {v: inputs[v.blob] for v in self.inputs}
        threads = self.engine.threads()
        last = self._last_uses
        with self.program.instance() as instance:
            steps, values = [step for step, _ in self.counted], [v for _, v in self.counted]
            instance.count(steps, [counters.get(v) for v in values])
            for i, action in enumerate(self.actions):
                self._do(action, arrays, instance, threads, run_layer, watch)
                for value in last.get(i, ()):
                    del arrays[value]
        return arrays

    @cached_property
    def _last_uses(self) -> dict[int, list[Value]]:
        """Return, by action, the arrays that are not needed after it."""
        used: dict[Value, int] = {}
        for i, action in enumerate(self.actions):
            used.update(dict.fromkeys((action.value, *action.reads, *action.writes), i))
        last: dict[int, list[Value]] = {}
        result_values = {*self.results.values()}
        array_values = {*self.inputs}
        for action in self.actions:
            array_values.update(action.writes)
            array_values.update([action.value] if action.kind == "leave" else [])
        for value, i in used.items():
            if value in array_values and value not in result_values:
                last.setdefault(i, []).append(value)
        return last

    def _do(
        self,
        action: Action,
        arrays: dict[Value, np.ndarray],
        instance: Instance,
        threads: int,
        run_layer: RunLayer,
        watch: Watch | None,
    ) -> None:
        if action.kind == "run":
            try:
                instance.run(action.begin, action.end, threads)
            except self.engine.NanError as error:
                raise NetError(
                    f"{self.owners[error.step]} gives NaN, which has no INT8 form; check the "
                    "input, and the weights of the layers before"
                ) from error
        elif action.kind == "layer":
            tops = run_layer(action.position, [arrays[v] for v in action.reads])
            arrays.update(zip(action.writes, tops, strict=True))
        elif action.kind == "map":
            assert action.image is not None
            assert action.out is not None
            (mapped,) = run_layer(action.position, [instance.view(action.image)])
            instance.view(action.out)[...] = mapped
        elif action.kind == "watch":
            if watch is not None:
                image = action.image
                watch(
                    action.watched,
                    arrays[action.value] if image is None else instance.view(image),
                )
        else:
            assert action.image is not None
            view = instance.view(action.image)
            n, height, width, channels = view.shape
            shape = n, channels, height, width
            if action.kind == "enter":
                self.engine.enter(arrays[action.value].reshape(shape), view)
            else:
                out = np.empty(shape, np.float32)
                self.engine.leave(view, out)
                arrays[action.value] = out.reshape(action.shape)
