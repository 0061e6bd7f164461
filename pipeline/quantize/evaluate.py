"""What quantization costs: accuracy and closeness of whole models, and the error of each layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

import kernels
from caffeio import Layer
from caffeio.data import Batch
from kernels import QuantParams
from pipeline.evaluators import Guarded
from pipeline.layers import layer_type
from pipeline.layers.int8 import QuantizedLayer
from pipeline.quantize.accuracy import Accuracy
from pipeline.quantize.activations import Activations
from pipeline.quantize.detections import Agreement, DetectionScore
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.measure import Closeness
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.loop import Observer
from pipeline.runtime.shapes import behind_data
from pipeline.runtime.state import State

__all__ = [
    "BlobScore",
    "DecodedOnce",
    "LayerError",
    "ModelScore",
    "compare",
    "fake_layer",
    "layer_errors",
]


class Runnable(Protocol):
    """Anything that runs like a `FloatNet`."""

    def forward(
        self,
        inputs: Mapping[str, np.ndarray],
        blobs: Sequence[str] | None = None,
        *,
        state: State | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the named blobs."""
        ...  # pragma: no cover


@dataclass(frozen=True)
class BlobScore:
    """How close one output is to the float model's.

    Attributes
    ----------
    blob : str
    cosine : float
        Mean over the samples.
    sqnr : float
        Of all samples together, in dB; inf if equal.
    sample_sqnr : float
        Mean of the samples' own SQNR, in dB.
    """

    blob: str
    cosine: float
    sqnr: float
    sample_sqnr: float


@dataclass(frozen=True)
class ModelScore:
    """One model's result.

    Attributes
    ----------
    model : str
        ``"float"``, ``"fakequant"`` or ``"int8"``.
    samples : int
    top1, top5 : float or None
        Percent; None without labels.
    outputs : tuple of BlobScore
        Empty for the float model.
    detections : tuple of DetectionScore
        Of outputs that hold boxes; empty for the float model.
    metrics : dict of str to float
        What the evaluator found.
    problem : str
        Why it found nothing.
    unranked : str
        Why there is no accuracy although there are labels; empty otherwise.
    classes : int
        Scores that the labels were held against; 0 if none were.
    """

    model: str
    samples: int
    top1: float | None
    top5: float | None
    outputs: tuple[BlobScore, ...]
    detections: tuple[DetectionScore, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    unranked: str = ""
    classes: int = 0


@dataclass(frozen=True)
class LayerError:
    """The error of one quantized layer.

    Attributes
    ----------
    sqnr : float
        dB at its output when it alone is quantized and reads float data: what it adds.
    sqnr_in_net : float
        dB at its output in the integer net: with all that came before. NaN where the rows of its
        output depend on the data, as behind proposals.
    saturation : float
        Share of its input values beyond the quantized range, 0..1.
    range_used : float
        Share of the quantized range that its input spans, 0..1.
    cosine : float
        Mean cosine similarity of its output, as `sqnr`.
    """

    sqnr: float
    sqnr_in_net: float
    saturation: float
    range_used: float
    cosine: float


def compare(
    models: Mapping[str, Callable[[], Runnable]],
    batches: Callable[[str], Iterable[Batch]],
    blobs: Sequence[str],
    *,
    detections: Sequence[str] = (),
    evaluator: Callable[[], Guarded] | None = None,
    memory: int = 64 << 20,
) -> tuple[ModelScore, ...]:
    """Run models over the same batches, one model after the other.

    Parameters
    ----------
    models : mapping of name to callable
        Each makes its net, which is dropped before the next is made. The first is the one that
        the others are compared with.
    batches : callable
        ``batches(model) -> iterable of Batch``: the same for every model.
    blobs : sequence of str
        What to compare; the last with one score a class is held against the labels.
    detections : sequence of str
        Blobs with a box a row, which are matched by overlap.
    evaluator : callable, optional
        Makes what measures one model on these blobs.
    memory : int
        Bytes of the first model's outputs to hold; more lie in files meanwhile.
    """
    scores: list[ModelScore] = []
    with Activations(memory) as exact:
        for name, make in models.items():
            net, state, accuracy, samples = make(), State(), Accuracy(), 0
            sums: dict[str, Closeness | Agreement] = {}
            if scores:
                sums = {blob: Closeness() for blob in blobs}
                sums.update({blob: Agreement() for blob in detections})
            metrics = evaluator() if evaluator is not None else None
            for i, batch in enumerate(batches(name)):
                found = net.forward(batch.inputs, (*blobs, *detections), state=state)
                for blob, y in found.items():
                    if scores:
                        sums[blob].update(exact.get((blob, i)), y)
                    else:
                        exact.put((blob, i), y)
                if not detections:  # whose scores of boxes are no scores of classes
                    accuracy.update({blob: found[blob] for blob in blobs}, batch)
                if metrics is not None:
                    metrics.update(found, batch)
                samples += len(batch.names)
            score = _score(name, samples, accuracy, sums)
            if metrics is not None:
                found_metrics = metrics.result()
                score = replace(score, metrics=found_metrics, problem=metrics.problem)
            scores.append(score)
            del net
    return tuple(scores)


class DecodedOnce:
    """Batches that are read the first time they are asked for, and kept for the next.

    Parameters
    ----------
    batches : iterable of Batch
    values : Activations
        Where their inputs are kept.
    """

    def __init__(self, batches: Iterable[Batch], values: Activations) -> None:
        self._source = iter(batches)
        self._values = values
        self._read: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches, in order."""
        for batch in self._read:
            inputs = {name: self._values.get((batch.index, name)) for name in batch.inputs}
            yield replace(batch, inputs=inputs)
        for batch in self._source:
            for name, x in batch.inputs.items():
                self._values.put((batch.index, name), x)
            nothing = dict.fromkeys(batch.inputs, np.empty(0, np.float32))
            self._read.append(replace(batch, inputs=nothing))
            yield batch


def _score(
    name: str, samples: int, accuracy: Accuracy, sums: Mapping[str, Closeness | Agreement]
) -> ModelScore:
    return ModelScore(
        name,
        samples,
        accuracy.top1,
        accuracy.top5,
        tuple(
            BlobScore(blob, c.cosine, c.sqnr, c.sample_sqnr)
            for blob, c in sums.items()
            if isinstance(c, Closeness)
        ),
        tuple(a.score(blob) for blob, a in sums.items() if isinstance(a, Agreement)),
        unranked=accuracy.reason,
        classes=accuracy.classes,
    )


@dataclass
class _Sums:
    """Running sums for one layer."""

    alone: Closeness
    in_net: Closeness
    outside: int = 0
    values: int = 0
    low: float = np.inf
    high: float = -np.inf

    def seen(self, x: np.ndarray, params: QuantParams) -> None:
        low, high = params.range
        half = params.scale / 2
        self.outside += int(((x < low - half) | (x > high + half)).sum())
        self.values += x.size
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))

    def result(self, params: QuantParams) -> LayerError:
        low, high = params.range
        used = (min(self.high, high) - max(self.low, low)) / (high - low)
        return LayerError(
            self.alone.sqnr,
            self.in_net.sqnr,
            self.outside / self.values,
            max(used, 0.0),
            self.alone.cosine,
        )


def layer_errors(
    net: FloatNet,
    int8: Int8Net,
    inputs: Iterable[Mapping[str, np.ndarray]],
    *,
    memory: int = 64 << 20,
) -> dict[str, LayerError]:
    """Measure the error of every quantized layer.

    Parameters
    ----------
    net : FloatNet
        Of the fused net that `int8` was made from.
    int8 : Int8Net
    inputs : iterable of dict of blob name to array
    memory : int
        Bytes of the layers' outputs to hold; more lie in files meanwhile.

    Returns
    -------
    dict of layer name to LayerError
        Empty if there were no inputs.
    """
    sums = {name: _Sums(Closeness(), Closeness()) for name in int8.layers}
    unsure = behind_data(net.net, [layer_type(layer) for layer in net.net.layers])
    state, state8 = State(), State()
    with Activations(memory) as exact:
        for arrays in inputs:
            net.forward(arrays, observer=_alone(int8, sums, exact, net.device), state=state)
            int8.forward(arrays, observer=_in_net(sums, exact, unsure), state=state8)
    return {name: s.result(int8.layers[name].data) for name, s in sums.items() if s.values}


def _alone(
    int8: Int8Net,
    sums: Mapping[str, _Sums],
    exact: Activations,
    device: str,
) -> Observer:
    """Return an observer of the float net that quantizes one layer at a time."""

    def watch(
        i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        q = int8.layers.get(layer.name)
        if q is None:
            return
        # the quantized layer may have a bias where the float one has none
        fake = fake_layer(int8.net.layers[i], q)
        x = kernels.fake_quantize(bottoms[0], q.data, device=device)
        (y,) = layer_type(layer).forward(fake, [x], device)
        sums[layer.name].alone.update(tops[0], y)
        sums[layer.name].seen(bottoms[0], q.data)
        exact.put(layer.name, tops[0])

    return watch


def fake_layer(layer: Layer, q: QuantizedLayer) -> Layer:
    """Return a float layer with the weights and bias that integers stand for."""
    return replace(layer, blobs=q.fake_blobs(layer))


def _in_net(sums: Mapping[str, _Sums], exact: Activations, unsure: Collection[int]) -> Observer:
    def watch(
        i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        if layer.name in sums:
            if i not in unsure:
                sums[layer.name].in_net.update(exact.get(layer.name), tops[0])
            exact.drop(layer.name)

    return watch
