"""What is done to a layer's numbers after calibration: range, rounding, bias, gain.

Layer after layer, in the order of the net, with all before it quantized and corrected:

- **Range**: of several for the layer's data, as different searches find them, the one that leaves
  the least error at the layer's output.
- **Compensated rounding**: see `kernels.compensation`.
- **Bias**: ``bias += mean(exact - quantized)`` of each channel (Nagel et al., 2019).
- **Gain**: ``scale_w *= g`` with g the least-squares factor from the quantized output to the
  exact one, both centred, within [0.8, 1.25]: quantization shrinks signals, and the integers
  need not change to undo it.

What a step does to samples that were not used for it decides whether the layer keeps it.
The result is a float net whose weights are the quantized ones, exactly: record and net
together give the integers, as they do without corrections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

import kernels
from caffeio import Net
from caffeio.record import LayerRecord, Record
from kernels import QuantParams
from kernels.conv import ConvGeometry
from kernels.moments import ChannelMoments
from pipeline.errors import PipelineError
from pipeline.layers.convolution import conv_params
from pipeline.layers.int8 import INT8_TYPES, QuantizedLayer
from pipeline.log import log
from pipeline.quantize.activations import Activations
from pipeline.quantize.corrections import Corrected, LayerCorrection, Steps, applied
from pipeline.quantize.fuse import shared_parameters
from pipeline.quantize.integers import quantize_layer, with_data
from pipeline.quantize.levels import levels_for, on_levels
from pipeline.quantize.measure import decibels
from pipeline.quantize.pair import NetPair
from pipeline.runtime.loop import guarded
from pipeline.runtime.model import Model

__all__ = ["correct"]

#: Positions of the output that the second moment of a layer's input is taken from.
_POSITIONS = 8192
#: A wider input is compensated in blocks of so many columns.
_MOST_COLUMNS = 4096
_GAINS = 0.8, 1.25

Inputs = Mapping[str, np.ndarray]


def correct(
    net: Net,
    record: Record,
    parts: Sequence[Inputs],
    held: Sequence[bool],
    steps: Steps,
    *,
    candidates: Mapping[str, Sequence[QuantParams]] | None = None,
    levels: Mapping[str, int] | None = None,
    device: str = "cpu",
    memory: int = 2 << 30,
    progress: Callable[[str], object] = lambda layer: None,
) -> Corrected:
    """Correct every quantized layer, in the order of the net.

    Parameters
    ----------
    net : Net
        Fused, float.
    record : Record
        Of its quantized layers, with weights by ARQ.
    parts : sequence of dict of blob name to array
        The samples, in batches.
    held : sequence of bool
        Which parts only judge; all the others are what corrections are computed from.
    steps : Steps
    candidates : mapping of layer name to sequence of QuantParams, optional
        Ranges to choose from, with ``steps.search``.
    levels : mapping of layer name to int, optional
        Layers whose weights may take so many values only; which, is chosen here.
    device : str
        Where layers run and statistics are taken.
    memory : int
        Bytes of values to hold at a time; more lie in files meanwhile.
    progress : callable
        Called with the name of each quantized layer, before it.

    Returns
    -------
    Corrected

    Raises
    ------
    PipelineError, caffeio.NetError
        If a layer cannot run.
    """
    model = Model(net, {}, device)
    plan = model.schedule(tuple(parts[0]), None, True)
    layers: dict[str, LayerCorrection] = {}
    fixed = shared_parameters(net)  # one layer's corrections would be another's, too
    with Activations(memory) as values:
        pair = NetPair(model, values, parts)
        for i, dead in zip(plan.layers, plan.frees, strict=True):
            layer = net.layers[i]
            if layer.name in record.layers:
                progress(layer.name)
                # of rows that depend on the data, the two nets' are not of the same things
                alone = layer.name in fixed or i in model.unsure
                wanted = Steps(False, False, False) if alone else steps
                ranges = (candidates or {}).get(layer.name, ()) if wanted.search else ()
                few = None if layer.name in fixed else (levels or {}).get(layer.name)
                corrector = _Corrector(pair, i, record.layers[layer.name], wanted, held, few)
                done = corrector.run(ranges)
                if done is not None:
                    layers[layer.name] = done
                    log.debug("layer '%s': %s", layer.name, done.summary)
            else:
                pair.run(i)
            pair.drop(dead)
    return applied(net, record, layers)


class _Corrector:
    """Corrects one layer."""

    def __init__(
        self,
        pair: NetPair,
        i: int,
        record: LayerRecord,
        steps: Steps,
        held: Sequence[bool],
        few: int | None,
    ) -> None:
        self._pair, self._i, self._steps = pair, i, steps
        self._layer, self._record = pair.net.layers[i], record
        self._read, self._write = pair.net.links[i].reads[0], pair.net.links[i].writes[0]
        self._device = pair.model.device
        #: what is judged on: the parts held back, or all if none is
        self._judges = [p for p in range(pair.count) if held[p]] or [*range(pair.count)]
        self._learns = [p for p in range(pair.count) if not held[p]]
        #: the range of its data, if another than the record's
        self._data: QuantParams | None = None
        #: the levels that its weights may take
        self._count = few
        self._levels: np.ndarray | None = None
        #: with the record's numbers, before anything is corrected
        self._first: ChannelMoments | None = None

    def run(self, ranges: Sequence[QuantParams]) -> LayerCorrection | None:
        """Run the layer in both nets; return its correction, if it can have one."""
        self._pair.run_float(self._i)
        numbers, few = self._best_range(ranges), None
        if self._count is not None and numbers.weights is not None:
            self._levels = levels_for(numbers, self._count)
            numbers = on_levels(numbers, self._levels)
            few = numbers.weights
        if numbers.weights is None or (self._steps == Steps(False, False, False) and few is None):
            for part in range(self._pair.count):
                self._pair.put(True, self._write, part, self._forward(numbers, part))
            return None
        learned, judged = self._measure(numbers)
        weights = few
        if self._steps.rounding:
            rounded = replace(numbers, weights=self._compensated(numbers))
            before = self._left(learned, judged)
            learned_rounded, judged_rounded = self._measure(rounded)
            if self._left(learned_rounded, judged_rounded) < before:
                numbers, weights = rounded, rounded.weights
                learned, judged = learned_rounded, judged_rounded
            else:
                self._measure(numbers)
        return replace(self._linear(numbers, weights, learned, judged), few=few)

    def _best_range(self, ranges: Sequence[QuantParams]) -> QuantizedLayer:
        """Return the layer's numbers with the range that leaves least, or with the record's."""
        best = quantize_layer(self._layer, self._record)
        if best.weights is None or len(ranges) < 2:
            return best
        least = self._left(*self._measure(best))
        for data in ranges:
            if data == best.data:
                continue
            changed = with_data(self._record, data)
            try:
                numbers = quantize_layer(self._layer, changed)
            except PipelineError:  # its bias would leave int32
                continue
            left = self._left(*self._measure(numbers))
            if left < least:
                best, least, self._data = numbers, left, data
        return best

    def _measure(self, numbers: QuantizedLayer) -> tuple[ChannelMoments, ChannelMoments]:
        """Run the integers of all parts; return the moments that teach, and that judge."""
        moments = []
        for part in range(self._pair.count):
            y = self._forward(numbers, part)
            self._pair.put(True, self._write, part, y)
            exact = self._pair.get(False, self._write, part)
            moments.append(kernels.channel_moments(exact, y, device=self._device))
        judged = _sum([moments[p] for p in self._judges])
        self._first = self._first or judged
        return _sum([moments[p] for p in self._learns]), judged

    def _forward(self, numbers: QuantizedLayer, part: int) -> np.ndarray:
        x = self._pair.get(True, self._read, part)
        integers = INT8_TYPES[self._layer.type].forward
        (y,) = guarded(
            self._layer, [x], lambda b: (integers(self._layer, numbers, b[0], self._device),)
        )
        return y

    def _left(self, learned: ChannelMoments, judged: ChannelMoments) -> float:
        """Return the error on the judging samples behind the corrections that are on."""
        gain = self._gain(learned)
        if not self._steps.bias:
            return float(judged.noise(gain, judged.shift(gain)).sum())
        return float(judged.noise(gain, learned.shift(gain)).sum())

    def _gain(self, moments: ChannelMoments) -> np.ndarray:
        if not self._steps.gain:
            return np.ones(moments.x.size)
        gain = moments.gain(*_GAINS, common=len(self._record.scale_w) == 1)
        return np.broadcast_to(gain, moments.x.shape)

    def _linear(
        self,
        numbers: QuantizedLayer,
        weights: np.ndarray | None,
        learned: ChannelMoments,
        judged: ChannelMoments,
    ) -> LayerCorrection:
        """Choose gain and shift, and correct the values already computed."""
        channels = learned.x.size
        ones, zeros = np.ones(channels), np.zeros(channels)
        bias = zeros if numbers.bias is None else numbers.fake_bias.astype(np.float64)
        plain = learned.shift() if self._steps.bias else zeros
        if not judged.noise(1.0, plain).sum() <= judged.noise().sum():
            plain = zeros  # also where values beyond float32 leave no number
        gain, shift, left = ones, plain, judged.noise(1.0, plain).sum()
        if self._steps.gain:
            found = self._gain(learned)
            # the bias is not part of what shrinks: y = g * (y - bias) + bias + shift
            moved = learned.shift(found) if self._steps.bias else bias - found * bias
            if judged.noise(found, moved).sum() <= left:
                gain, shift = found, moved - (bias - found * bias)
                left = judged.noise(found, moved).sum()
        total = shift + (bias - gain * bias)
        if (gain != 1).any() or total.any():
            self._change(gain, total)
        count = len(self._record.scale_w)
        gain = gain[:count] if count > 1 else gain[:1]
        assert self._first is not None
        before, after = (
            decibels(judged.xx.sum() / judged.count, n) for n in (self._first.noise().sum(), left)
        )
        return LayerCorrection(weights, gain, shift, plain, self._data, None, before, after)

    def _change(self, gain: np.ndarray, shift: np.ndarray) -> None:
        """Multiply and shift what the quantized net has computed."""
        for part in range(self._pair.count):
            y = self._pair.get(True, self._write, part)
            wide = (-1, *(1,) * (y.ndim - 2))
            changed = y * gain.astype(np.float32).reshape(wide)
            changed += shift.astype(np.float32).reshape(wide)
            self._pair.put(True, self._write, part, changed)

    def _compensated(self, numbers: QuantizedLayer) -> np.ndarray:
        """Return weights rounded so that their errors cancel on the samples seen."""
        layer, geometry, blocks = self._layer, None, 1
        places = [self._places(part) for part in self._learns]
        total = sum(places)
        rng = np.random.default_rng(0)
        chosen = np.sort(rng.choice(total, min(total, _POSITIONS), replace=False))
        sums: kernels.ColumnMoments | None = None
        first = 0
        for part, count in zip(self._learns, places, strict=True):
            own = chosen[(chosen >= first) & (chosen < first + count)] - first
            first += count
            if not own.size:
                continue
            x, geometry = self._columns_of(part)
            # blocks of columns that are compensated apart are as groups that share their outputs
            blocks = _blocks(x.shape[1] // geometry.group, prod(geometry.kernel))
            seen = kernels.column_moments(
                kernels.quantize(x, numbers.data),
                numbers.data.offset,
                replace(geometry, group=geometry.group * blocks),
                own,
                transposed=layer.type == "Deconvolution",
            )
            sums = seen if sums is None else sums + seen
        assert sums is not None
        assert geometry is not None
        group = geometry.group
        w = layer.blobs[0]
        turned = w.transpose(1, 0, 2, 3) if layer.type == "Deconvolution" else w
        if layer.type == "InnerProduct":  # old files give it four axes
            turned = w.reshape(layer.param.inner_product_param.num_output, -1)
        outs = turned.shape[0] // group
        rows = turned.reshape(group, outs, blocks, -1).transpose(0, 2, 1, 3)
        scales = np.broadcast_to(numbers.scale_w.reshape(-1), (group * outs,))
        spread = np.broadcast_to(scales.reshape(group, 1, outs), rows.shape[:3])
        q = kernels.compensated_rounding(
            np.ascontiguousarray(rows.reshape(group * blocks, outs, -1)),
            np.ascontiguousarray(spread.reshape(group * blocks, outs)),
            sums,
            levels=self._levels,
            device=self._device,
        )
        back = q.reshape(rows.shape).transpose(0, 2, 1, 3).reshape(turned.shape)
        back = back.transpose(1, 0, 2, 3) if layer.type == "Deconvolution" else back
        return np.ascontiguousarray(back.reshape(w.shape))

    def _places(self, part: int) -> int:
        y = self._pair.get(False, self._write, part)
        return y.size // y.shape[1]

    def _columns_of(self, part: int) -> tuple[np.ndarray, ConvGeometry]:
        """Return the quantized net's input (N, C, H, W), and how the layer goes over it."""
        x = self._pair.get(True, self._read, part)
        y = self._pair.get(False, self._write, part)
        if self._layer.type == "InnerProduct":
            flat = np.ascontiguousarray(x.reshape(len(x), -1, 1, 1))
            return flat, ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1))
        p = conv_params(self._layer, x.shape)
        kernel, stride, pad, dilation = map(_pair, (p.kernel, p.stride, p.pad, p.dilation))
        return x, ConvGeometry(kernel, stride, pad, dilation, p.group, _pair(y.shape[2:]))


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    return sizes[0], sizes[1]


def _sum(moments: Sequence[ChannelMoments]) -> ChannelMoments:
    total = moments[0]
    for more in moments[1:]:
        total = total + more
    return total


def _blocks(channels: int, taps: int) -> int:
    """Return into how many blocks of channels a wide input is cut: of equal size, few."""
    return next(
        n
        for n in range(1, channels + 1)
        if channels % n == 0 and (channels // n * taps <= _MOST_COLUMNS or n == channels)
    )
