"""What is to be done with a model: read, fused, and judged layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

import caffeio
from caffeio import Net, Value
from caffeio.errors import NetError
from pipeline.config.amct import with_quant_cfg
from pipeline.config.calibrate import CalibrateConfig
from pipeline.config.improve import Effort
from pipeline.config.load import Config
from pipeline.config.retrain import RetrainConfig
from pipeline.config.unused import unused_settings
from pipeline.errors import ConfigError, PipelineError
from pipeline.layers import layer_type, why_unknown
from pipeline.layers.int8 import INT8_TYPES
from pipeline.layers.own import read_types, with_types
from pipeline.layers.unknown import statement
from pipeline.log import log
from pipeline.quantize.assign import LayerPlan, check_names, layer_plan
from pipeline.quantize.depthwise import depthwise_as_convolution, depthwise_note
from pipeline.quantize.eligibility import Verdict, check_float, judge
from pipeline.quantize.fuse import Fused, fuse
from pipeline.quantize.given_ranges import layer_ranges
from pipeline.quantize.integers import check_width
from pipeline.runtime.schedule import blocked

__all__ = [
    "Prepared",
    "as_configured",
    "notes_on",
    "prepare",
    "prepare_layers",
    "read_model",
    "with_blobs",
]


@dataclass(frozen=True)
class Prepared:
    """A net, and what is to be done with it.

    Attributes
    ----------
    net : Net
        As read.
    fused : Fused
    verdicts : tuple of Verdict
    plans : dict of layer name to LayerPlan
        The layers to quantize.
    calibrate : CalibrateConfig
        The settings, those of a quant_cfg among them.
    notes : tuple of str
    effort : "original", "standard" or "best"
        What the config asks for. Without a word of it: standard, but original with a quant_cfg or
        a training, whose results are those of the original tool.
    warnings : tuple of str
        What is probably wrong.
    given : dict of layer name to float
        Largest magnitudes of their data, as another runtime has found them.
    """

    net: Net
    fused: Fused
    verdicts: tuple[Verdict, ...]
    plans: dict[str, LayerPlan]
    calibrate: CalibrateConfig
    notes: tuple[str, ...]
    effort: Effort = "original"
    warnings: tuple[str, ...] = ()
    given: Mapping[str, float] = field(default_factory=dict)

    def reads(self, net: Net) -> dict[str, Value]:
        """Return what each layer to be quantized reads in a net of these layers."""
        pairs = zip(net.layers, net.links, strict=True)
        return {layer.name: link.reads[0] for layer, link in pairs if layer.name in self.plans}


def read_model(config: Config) -> Net:
    """Read the net that ``[model]`` names.

    Raises
    ------
    caffeio.CaffeFileError, caffeio.NetError
        If a file cannot be read, or they do not belong together.
    ConfigError
        If ``layers`` is no file of layer types, or ``outputs`` names what the net has not.
    PipelineError
        If weights are NaN or infinite.
    """
    m = config.model
    # with training, layers may begin by their fillers
    partial = config.retrain is not None
    net = as_configured(
        config, caffeio.read_net(m.prototxt, m.caffemodel, m.phase, partial=partial)
    )
    if m.layers is not None:
        net = with_types(net, read_types(m.layers))
    if m.outputs:
        try:
            net = net.until(m.outputs)
        except NetError as error:
            raise ConfigError(f"model.outputs: {error}") from None
    if broken := caffeio.nonfinite_blobs(net):
        raise PipelineError(f"{m.caffemodel}: {broken[0]}; the training has diverged?")
    return net


def as_configured(config: Config, net: Net) -> Net:
    """Return a net as ``[model]`` wants its layers to be taken."""
    return depthwise_as_convolution(net) if config.model.depthwise_as_convolution else net


def prepare(config: Config, net: Net) -> Prepared:
    """Fuse the net and say for each layer what is to be done; see `prepare_layers`.

    Parameters
    ----------
    config : Config
        Its ``[retrain]`` decides what to skip and to fuse where there is one.
    net : Net
        With weights.
    """
    work = prepare_layers(net, config.calibrate, config.retrain)
    return replace(work, notes=(*work.notes, *unused_settings(config)))


def prepare_layers(
    net: Net, settings: CalibrateConfig, retrain: RetrainConfig | None = None
) -> Prepared:
    """Fuse the net and say for each layer what is to be done.

    Parameters
    ----------
    net : Net
        With weights.
    settings : CalibrateConfig
    retrain : RetrainConfig, optional
        Decides what to skip and to fuse.

    Raises
    ------
    ConfigError
        If a setting names what the net has not.
    PipelineError
        If there is nothing to quantize, or a layer is too wide for sums in int32.
    caffeio.NetError
        If the net is quantized already.
    """
    check_float(net)
    calibrate, notes = with_quant_cfg(settings)
    if retrain is not None:
        notes = (*notes, *retrain.notes)
    chosen = retrain or calibrate
    met = check_names("retrain" if retrain else "calibrate", chosen, net)
    training = retrain is not None
    fused = fuse(net, chosen.skip_fusion_layers, training=training, fold=chosen.do_fusion)
    effort = _effort(settings, training)
    verdicts = judge(fused.net, chosen.skip_layers, chosen.skip_layer_types, chosen.only_layers)
    quantized_names = {v.layer for v in verdicts if v.quantize}
    plans = {
        x.name: layer_plan(x, calibrate, effort)
        for x in fused.net.layers
        if x.name in quantized_names
    }
    for x in fused.net.layers:
        if x.name in plans:
            check_width(x, plans[x.name].channel_wise)
    for v in verdicts:
        plan = plans.get(v.layer)
        what = f"in float: {v.reason}" if plan is None else f"INT8, {plan.summary}"
        log.debug("layer '%s' (%s): %s", v.layer, v.type, what)
    if not plans:
        unknown = tuple(_unknown_layers(fused.net))
        why = unknown[0] if unknown else "--plan shows the rule for each layer"
        raise PipelineError(f"net '{net.name}' has no layer to quantize; {why}")
    given: dict[str, float] = {}
    if calibrate.ranges_from is not None:
        given, more = layer_ranges(calibrate.ranges_from, fused.net, plans)
        notes = (*notes, *more)
    notes = (*notes_on(net, fused.net), *notes, *met)
    return Prepared(net, fused, verdicts, plans, calibrate, notes, effort, given=given)


def notes_on(net: Net, fused: Net) -> tuple[str, ...]:
    """Return what there is to say of a net, of reading it and of its types, read and fused."""
    known = filter(None, (depthwise_note(net), *(layer_type(x).note(x) for x in net.layers)))
    return (*_read_notes(net), *known, *_unknown_layers(fused))


def _read_notes(net: Net) -> Iterator[str]:
    """Return the notes of reading, without those on fields that belong to types not known here."""
    theirs = {
        field.note(layer.name)
        for layer in net.layers
        if layer.own is not None or not layer_type(layer).computes
        for field in layer.unknown
    }
    return (note for note in net.notes if note not in theirs)


def _unknown_layers(net: Net) -> Iterator[str]:
    """Say of each layer of unknown type what becomes of it and of those behind it."""
    unable = blocked(net)
    for i, layer in enumerate(net.layers):
        if layer_type(layer).computes:
            continue
        behind = [j for j, why in unable.items() if why is layer and j != i]
        able = [net.layers[j].name for j in behind if net.layers[j].type in INT8_TYPES]
        kept = "it is in the exported models as it is"
        if not able:
            yield (
                f"layer '{layer.name}': {statement(layer)}; {kept}, and nothing that "
                "could be quantized depends on it"
            )
        else:
            names = ", ".join(able[:3]) + (", ..." if len(able) > 3 else "")
            left = "1 layer behind it stays" if len(able) == 1 else f"{len(able)} behind it stay"
            yield (
                f"layer '{layer.name}': {why_unknown(layer)}. For now {kept}, and {left} in float: "
                f"{names}"
            )


def _effort(settings: CalibrateConfig, training: bool) -> Effort:
    """Return the effort that settings mean."""
    if settings.effort is not None:
        return settings.effort
    return "original" if training or settings.quant_cfg is not None else "standard"


def with_blobs(net: Net, blobs: Mapping[str, tuple[np.ndarray, ...]]) -> Net:
    """Return a net with the blobs of a trained one, by the names of the layers.

    Parameters
    ----------
    net : Net
    blobs : mapping of layer name to tuple of ndarray
        Layers that are not named keep theirs.

    Raises
    ------
    caffeio.NetError
        If a layer of both has not as many, or other ones.
    """
    layers = []
    for layer in net.layers:
        own = blobs.get(layer.name, layer.blobs)
        if layer.blobs and [b.size for b in own] != [b.size for b in layer.blobs]:
            raise NetError(
                f"has blobs of the shapes {[b.shape for b in own]} in the training net, but "
                f"{[b.shape for b in layer.blobs]} in '{net.name}'",
                layer.name,
            )
        shapes = [b.shape for b in layer.blobs or own]
        own = tuple(b.reshape(s) for b, s in zip(own, shapes, strict=True))
        layers.append(replace(layer, blobs=own))
    return net.with_layers(tuple(layers))
