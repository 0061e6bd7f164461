"""A Caffe net as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from caffeio import Layer, Net, Value
from caffeio.errors import NetError
from kernels import QuantParams
from pipeline.errors import PipelineError
from pipeline.layers import layer_type
from pipeline.layers.fillers import fill
from pipeline.layers.folding import statistics_share
from pipeline.qat.plan import FakePlan, WeightPlan
from pipeline.retrain.fake import Ulq, fake_weights
from pipeline.retrain.group import Group
from pipeline.retrain.layers import Context, Shape, torch_layer
from pipeline.retrain.layers.base import Kept
from pipeline.retrain.optimizer import Learned

__all__ = ["CaffeModule", "Outcome"]

Watch = Callable[[Layer, Sequence[Tensor]], None]


@dataclass(frozen=True)
class Outcome:
    """What one pass of a net gives.

    Attributes
    ----------
    loss : Tensor
        The sum of all losses by their weights, one value.
    outputs : dict of blob name to Tensor
        Detached.
    """

    loss: Tensor
    outputs: dict[str, Tensor]


class CaffeModule(nn.Module):
    """A net of one phase, its blobs as parameters.

    Parameters
    ----------
    net : Net
        Layers without weights begin by their fillers.
    shapes : mapping of input name to shape
        Of one batch.
    group : Group
    rng : numpy.random.Generator, optional
        For the fillers.
    trained : CaffeModule, optional
        The module whose blobs this one uses, and whose fake quantization: for a test net.

    Raises
    ------
    caffeio.NetError
        If a layer cannot be trained, or its blobs do not fit.
    """

    def __init__(
        self,
        net: Net,
        shapes: Mapping[str, Shape],
        group: Group,
        *,
        rng: np.random.Generator | None = None,
        trained: CaffeModule | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self._group = group
        self._kinds = tuple(torch_layer(layer) for layer in net.layers)
        self._blobs: dict[str, tuple[Tensor, ...]] = {}
        self._learned: dict[str, Learned] = {}
        #: Every blob of the net once, in its order, by the first layer that has it.
        self.owned: dict[str, Tensor] = {}
        #: What recurrent layers remember of the batch before, by position.
        self.kept: dict[int, Kept] = {}
        self._build(dict(shapes), rng or np.random.default_rng(0), trained)
        self.ranges = nn.ModuleList()
        self._fake: FakePlan | None = None
        self._range_of: dict[str, int] = {}
        if trained is not None:
            self.ranges, self._fake = trained.ranges, trained._fake
            self._range_of = trained._range_of

    def fake_quantize(self, plan: FakePlan) -> None:
        """Compute with fake quantization from now on; without it the net is in plain float."""
        ranges = [Ulq(data, plan.data_bits) for data in plan.data]
        useful = {self.net.layers[i].name for i in _reaches_loss(self.net)}
        for ulq in ranges:
            if not useful.intersection(ulq.plan.layers):
                ulq.requires_grad_(False)
        self.ranges = nn.ModuleList(ranges).to(self._group.device)
        self._range_of = {name: i for i, u in enumerate(ranges) for name in u.plan.layers}
        self._fake = plan

    @property
    def learned(self) -> tuple[Learned, ...]:
        """Everything that the solver changes: blobs first, then the ranges of data."""
        clips = [
            Learned(f"{ulq.plan.layers[0]}/{name}", getattr(ulq, name), 1.0, 0.0)
            for ulq in self._ulqs()
            for name in ("clip_max", "clip_min")
        ]
        return (*self._learned.values(), *clips)

    def forward(
        self, inputs: Mapping[str, Tensor], train: bool, watch: Watch | None = None
    ) -> Outcome:
        """Run the net.

        Parameters
        ----------
        inputs : mapping of str to Tensor
        train : bool
            Phase TRAIN.
        watch : callable, optional
            ``watch(layer, tops)``, called after each layer.
        """
        context = Context(train, self._group.total, self._group.size)
        values: dict[Value, Tensor] = {}
        faked: dict[tuple[Value, int], Tensor] = {}
        loss = torch.zeros((), device=self._group.device)
        for i, (layer, link) in enumerate(zip(self.net.layers, self.net.links, strict=True)):
            if layer.is_source:
                values.update((v, inputs[v.blob]) for v in link.writes)
                continue
            bottoms = [values[v] for v in link.reads]
            if (at := self._range_of.get(layer.name)) is not None:
                key = (link.reads[0], at)
                if key not in faked:
                    faked[key] = self.ranges[at](bottoms[0], self._group.gather)
                bottoms[0] = faked[key]
            tops = self._run(i, bottoms, context)
            values.update(zip(link.writes, tops, strict=True))
            for top, weight in zip(tops, _loss_weights(layer), strict=False):
                if weight:
                    loss = loss + weight * top.sum()
            if watch is not None:
                watch(layer, tops)
        last = {v.blob: v for v in sorted(values)}
        outputs = {b: values[last[b]].detach() for b in self.net.outputs if b in last}
        return Outcome(loss, outputs)

    def trained_blobs(self) -> dict[str, tuple[np.ndarray, ...]]:
        """Return the blobs of every layer that has some, as float32 arrays of their own."""
        return {
            name: tuple(b.detach().cpu().numpy().copy() for b in blobs)
            for name, blobs in self._blobs.items()
            if blobs
        }

    @torch.no_grad()
    def load_blobs(self, net: Net) -> None:
        """Take the blobs of a net of the same layers; layers without any there keep theirs.

        Raises
        ------
        caffeio.NetError
            If a layer has other blobs there.
        """
        for layer in net.layers:
            own = self._blobs.get(layer.name, ())
            if layer.blobs and len(layer.blobs) != len(own):
                raise NetError(f"has {len(layer.blobs)} blobs, needs {len(own)}", layer.name)
            for index, tensor in enumerate(own if layer.blobs else ()):
                tensor.copy_(torch.from_numpy(_fitting(layer, index, tuple(tensor.shape))))

    @property
    def begun(self) -> bool:
        """Whether every range is known: else the first batch decides it."""
        return all(bool(ulq.ready) for ulq in self._ulqs())

    def ranges_by_layer(self) -> dict[str, QuantParams]:
        """Return scale and offset of the data that each fake-quantized layer reads."""
        return {name: ulq.params() for ulq in self._ulqs() for name in ulq.plan.layers}

    def own_averages(self) -> list[Tensor]:
        """Return the blobs that layers change by themselves in training (BatchNorm's)."""
        return [
            b
            for layer, kind in zip(self.net.layers, self._kinds, strict=True)
            if not kind.learned
            for b in self._blobs[layer.name]
        ]

    def first_not_finite(self, inputs: Mapping[str, Tensor]) -> str:
        """Return what is NaN or infinite first: the weights or the output of a layer."""
        places: list[str] = []

        def watch(layer: Layer, tops: Sequence[Tensor]) -> None:
            if places:
                return
            if not all(bool(b.isfinite().all()) for b in self._blobs[layer.name]):
                places.append(f"the weights of layer '{layer.name}'")
            elif not all(bool(t.isfinite().all()) for t in tops):
                places.append(f"the output of layer '{layer.name}'")

        try:
            with torch.no_grad():
                self(inputs, True, watch)
        except PipelineError as error:
            return places[0] if places else str(error)
        return places[0] if places else "the loss"

    def _build(
        self, shapes: dict[str, Shape], rng: np.random.Generator, trained: CaffeModule | None
    ) -> None:
        """Make, or take, the blobs of every layer, checking each by the shapes it meets."""
        value_shapes: dict[Value, Shape] = {}
        shared: dict[str, tuple[str, Tensor]] = {}
        factors = _factors(self.net)
        useful = _reaches_loss(self.net)
        # the first user owns a shared blob, whichever user a loss depends on
        useful_params = {s.name for i in useful for s in self.net.layers[i].param.param if s.name}
        for i, (layer, link) in enumerate(zip(self.net.layers, self.net.links, strict=True)):
            if layer.is_source:
                value_shapes.update((v, shapes[v.blob]) for v in link.writes if v.blob in shapes)
                continue
            bottoms = [value_shapes[v] for v in link.reads]
            if trained is not None and layer.name in trained._blobs:
                blobs = trained._blobs[layer.name]
            else:
                blobs = self._new_blobs(
                    i, bottoms, rng, shared, factors, i in useful, useful_params
                )
            self._blobs[layer.name] = blobs
            checked = replace(layer, blobs=tuple(b.detach().cpu().numpy() for b in blobs))
            tops = layer_type(layer).shapes(checked, bottoms)
            value_shapes.update(zip(link.writes, tops, strict=True))

    def _new_blobs(
        self,
        i: int,
        bottoms: Sequence[Shape],
        rng: np.random.Generator,
        shared: dict[str, tuple[str, Tensor]],
        factors: Mapping[str, tuple[float, float]],
        useful: bool,
        useful_params: Collection[str],
    ) -> tuple[Tensor, ...]:
        layer, kind = self.net.layers[i], self._kinds[i]
        specs = kind.blobs(layer, bottoms)
        if layer.blobs and len(layer.blobs) != len(specs):
            raise NetError(f"has {len(layer.blobs)} blobs, needs {len(specs)}", layer.name)
        blobs = []
        for index, spec in enumerate(specs):
            param_spec = layer.param.param[index] if index < len(layer.param.param) else None
            if param_spec is not None and param_spec.name in shared:
                blobs.append(_shared_blob(layer, index, shared[param_spec.name], spec.shape))
                continue
            data = fill(layer, spec.filler, spec.shape, rng) if not layer.blobs else None
            if data is None:
                data = _fitting(layer, index, spec.shape)
            tensor = torch.from_numpy(np.array(data, np.float32)).to(self._group.device)
            name = f"{layer.name}/{index}"
            lr, decay = factors.get(param_spec.name if param_spec is not None else "", (1.0, 1.0))
            if param_spec is not None and not param_spec.name:
                lr, decay = param_spec.lr_mult, param_spec.decay_mult
            learned = bool(kind.learned and lr)
            if learned and (
                useful or (param_spec is not None and param_spec.name in useful_params)
            ):
                tensor = nn.Parameter(tensor)
                self.register_parameter(_attribute(name), tensor)
            else:
                self.register_buffer(_attribute(name), tensor)
            self.owned[name] = tensor
            if learned:  # no loss depends on it: it decays, as in Caffe
                self._learned[name] = Learned(name, tensor, lr, decay)
            if param_spec is not None and param_spec.name:
                shared[param_spec.name] = (f"{layer.name}/{index}", tensor)
            blobs.append(tensor)
        return tuple(blobs)

    def _run(self, i: int, bottoms: list[Tensor], context: Context) -> tuple[Tensor, ...]:
        layer, kind = self.net.layers[i], self._kinds[i]
        blobs = list(self._blobs[layer.name])
        fixed = layer.param.propagate_down
        bottoms = [
            x.detach() if j < len(fixed) and not fixed[j] else x for j, x in enumerate(bottoms)
        ]
        try:
            if self._fake is not None and layer.name in self._fake.weights:
                plan = self._fake.weights[layer.name]
                k = self._folding(plan, blobs[0].ndim)
                blobs[0] = fake_weights(blobs[0], plan, self._fake.weight_bits, k)
            if kind.resume is not None:
                tops, self.kept[i] = kind.resume(layer, bottoms, blobs, self.kept.get(i, ()))
                return tops
            return kind.forward(layer, bottoms, blobs, context)
        except NetError:
            raise
        except (ValueError, RuntimeError) as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in bottoms) or "no bottoms"
            raise PipelineError(
                f"layer '{layer.name}': {layer.type} failed on {shapes}: {error}"
            ) from error

    @torch.no_grad()
    def _folding(self, plan: WeightPlan, axes: int) -> Tensor | None:
        """Return what BatchNorm and Scale will multiply each output channel by: float64."""
        if plan.folds is None:
            return None
        bn, scale = (self.net.layer(name) for name in plan.folds)
        _, variance, count = (b.double() for b in self._blobs[bn.name])
        share = statistics_share(count.item())
        eps = bn.param.batch_norm_param.eps
        gamma = self._blobs[scale.name][0].double().reshape(-1)
        k = gamma / (variance.reshape(-1) * share + eps).sqrt()
        shape = [1] * axes
        shape[plan.channel_axis] = -1
        return k.reshape(shape)

    def _ulqs(self) -> Iterator[Ulq]:
        for ulq in self.ranges:
            assert isinstance(ulq, Ulq)
            yield ulq


def _attribute(name: str) -> str:
    """Return a blob's name as torch allows it: without dots."""
    return name.replace("%", "%25").replace(".", "%2E")


def _fitting(layer: Layer, index: int, shape: Shape) -> np.ndarray:
    """Return a given blob in the shape that the layer needs, or raise `NetError`."""
    blob = layer.blobs[index]
    if blob.size != int(np.prod(shape)):
        raise NetError(
            f"blob {index} has shape {blob.shape}, needs {shape}: weights and prototxt do not "
            "belong together",
            layer.name,
        )
    return blob.reshape(shape)


def _shared_blob(layer: Layer, index: int, owner: tuple[str, Tensor], shape: Shape) -> Tensor:
    name, tensor = owner
    if tensor.numel() != int(np.prod(shape)):
        raise NetError(
            f"blob {index} shares the one of {name}, whose shape is {tuple(tensor.shape)}; "
            f"{shape} is needed",
            layer.name,
        )
    return tensor


def _loss_weights(layer: Layer) -> Sequence[float]:
    """Return the weight of each top in the loss; a loss layer's first top has 1 by default."""
    if layer.param.loss_weight:
        return layer.param.loss_weight
    return (1.0,) if layer_type(layer).loss else ()


def _factors(net: Net) -> dict[str, tuple[float, float]]:
    """Return lr_mult and decay_mult of each shared blob: of the first layer that gives them.

    Raises
    ------
    caffeio.NetError
        If two layers give different ones, as in Caffe.
    """
    factors: dict[str, dict[str, float]] = {}
    for layer in net.layers:
        for spec in layer.param.param:
            if not spec.name:
                continue
            param_factors = factors.setdefault(spec.name, {})
            for key in ("lr_mult", "decay_mult"):
                if not spec.HasField(key):
                    continue
                if param_factors.setdefault(key, getattr(spec, key)) != getattr(spec, key):
                    raise NetError(
                        f"shared blob '{spec.name}' has {key} {getattr(spec, key):g} here and "
                        f"{param_factors[key]:g} in a layer before; give it once",
                        layer.name,
                    )
    return {n: (k.get("lr_mult", 1.0), k.get("decay_mult", 1.0)) for n, k in factors.items()}


def _reaches_loss(net: Net) -> set[int]:
    """Return the positions of the layers that a loss depends on."""
    needed: set[Value] = set()
    positions = set()
    for i in reversed(range(len(net.layers))):
        layer, link = net.layers[i], net.links[i]
        if any(_loss_weights(layer)) or needed.intersection(link.writes):
            positions.add(i)
            needed.update(link.reads)
    return positions
