"""Running a net: compiled for the device where that is possible, or layer after layer.

The loop over layers (`pipeline.runtime.loop`) defines what a net computes. `Executor` runs a net
on it, on a device whose memory the data never leaves (`pipeline.runtime.device`), or compiled
(`pipeline.runtime.compiler`), which is faster; layers that `numbers` names run on integers.
`FloatNet` is an executor without any.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import numpy as np

import kernels
from caffeio.graph import Net, Value
from pipeline.layers import Shape
from pipeline.layers.int8 import QuantizedLayer
from pipeline.runtime.compiled import Watch
from pipeline.runtime.loop import Observer
from pipeline.runtime.model import Model, Request
from pipeline.runtime.runners import Bad, Histograms, Runner, runner_for
from pipeline.runtime.shapes import check_inputs
from pipeline.runtime.state import State

__all__ = ["Executor", "FloatNet"]


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
        If a layer's type is refused, or known in another case.
    ValueError
        If the device is unknown.

    Notes
    -----
    `forward` changes nothing that it shares: one net may serve several threads at once.

    Layers of an unknown type, and what depends on them, never run: without `blobs` the outputs are
    those of the net without them, and asking for one of theirs is an error (see `schedule`).
    """

    def __init__(
        self, net: Net, numbers: Mapping[str, QuantizedLayer], *, device: str = "cpu"
    ) -> None:
        if device not in kernels.DEVICES:
            raise ValueError(f"device must be one of {', '.join(kernels.DEVICES)}, not '{device}'")
        self.net = net
        self.device = device
        self._model = Model(net, numbers, device)
        if device == "cuda":
            _ = self._runner  # raises where there is none

    @cached_property
    def _runner(self) -> Runner:
        """What runs it: not made, nor a compiler loaded, for one that is only asked its shapes."""
        return runner_for(self._model)

    @property
    def remembers(self) -> bool:
        """Whether a pass depends on those before it, see `State`: LSTM and RNN layers."""
        return any(kind.resume is not None for kind in self._model.types)

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
        shapes = {name: tuple(map(int, shape)) for name, shape in (input_shapes or {}).items()}
        return dict(self._model.shapes(tuple(sorted(shapes.items()))))

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
        blob_names = None if blobs is None else tuple(blobs)
        self._model.schedule(tuple(inputs), blob_names, observer is not None)  # raises if wrong
        arrays = check_inputs(self._model.declared, inputs)
        with (state or State()).advance() as states:
            request = Request(arrays, blob_names, states)
            self._model.shapes(request.shapes)
            if observer is not None:
                return self._runner.observe(request, observer)
            return self._runner.forward(request)

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
        arrays = check_inputs(self._model.declared, inputs)
        with (state or State()).advance() as states:
            request = Request(arrays, None, states)
            self._model.shapes(request.shapes)
            self._runner.watch(request, tuple(sorted(values)), watch)

    def count(
        self,
        inputs: Mapping[str, np.ndarray],
        histograms: Histograms,
        *,
        state: State | None = None,
    ) -> Bad:
        """Run the net and count the numbers of some values.

        Parameters
        ----------
        inputs : mapping of str to array
            As for `forward`.
        histograms : mapping of Value to Histogram
            What they are counted in.
        state : State, optional
            As for `forward`.

        Returns
        -------
        dict of Value to list of NotFiniteError
            Values with NaN or infinity, of which parts of the batch may not have been counted.

        Raises
        ------
        caffeio.NetError
            As `forward`.
        """
        arrays = check_inputs(self._model.declared, inputs)
        with (state or State()).advance() as states:
            request = Request(arrays, None, states)
            self._model.shapes(request.shapes)
            return self._runner.count(request, histograms)


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
        If a layer's type is refused, or known in another case.
    ValueError
        If the device is unknown.
    """

    def __init__(self, net: Net, *, device: str = "cpu") -> None:
        super().__init__(net, {}, device=device)
