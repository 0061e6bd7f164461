"""What is to be done with a model: read, fused, and judged layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

import caffeio
from caffeio import Net
from caffeio.errors import NetError
from pipeline.config.amct import with_quant_cfg
from pipeline.config.calibrate import CalibrateConfig
from pipeline.config.improve import Effort
from pipeline.config.load import Config
from pipeline.errors import PipelineError
from pipeline.layers import layer_type
from pipeline.quantize.assign import LayerPlan, check_names, layer_plan
from pipeline.quantize.depthwise import depthwise_as_convolution, depthwise_note
from pipeline.quantize.eligibility import Verdict, judge
from pipeline.quantize.fuse import Fused, fuse

__all__ = ["Prepared", "as_configured", "prepare", "read_model", "with_blobs"]


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
    """

    net: Net
    fused: Fused
    verdicts: tuple[Verdict, ...]
    plans: dict[str, LayerPlan]
    calibrate: CalibrateConfig
    notes: tuple[str, ...]
    effort: Effort = "original"


def read_model(config: Config) -> Net:
    """Read the net that ``[model]`` names.

    Raises
    ------
    caffeio.CaffeFileError, caffeio.NetError
        If a file cannot be read, or they do not belong together.
    PipelineError
        If weights are NaN or infinite.
    """
    m = config.model
    # with training, layers may begin by their fillers
    partial = config.retrain is not None
    net = as_configured(
        config, caffeio.read_net(m.prototxt, m.caffemodel, m.phase, partial=partial)
    )
    if broken := caffeio.nonfinite_blobs(net):
        raise PipelineError(f"{m.caffemodel}: {broken[0]}; the training has diverged?")
    return net


def as_configured(config: Config, net: Net) -> Net:
    """Return a net as ``[model]`` wants its layers to be taken."""
    return depthwise_as_convolution(net) if config.model.depthwise_as_convolution else net


def prepare(config: Config, net: Net) -> Prepared:
    """Fuse the net and say for each layer what is to be done.

    Parameters
    ----------
    config : Config
        Its ``[retrain]`` decides what to skip and to fuse where there is one.
    net : Net
        With weights.

    Raises
    ------
    ConfigError
        If a setting names what the net has not.
    PipelineError
        If there is nothing to quantize.
    """
    calibrate, notes = with_quant_cfg(config.calibrate)
    chosen = config.retrain or calibrate
    check_names("retrain" if config.retrain else "calibrate", chosen, net)
    training = config.retrain is not None
    fused = fuse(net, chosen.skip_fusion_layers, training=training, fold=chosen.do_fusion)
    effort = _effort(config)
    verdicts = judge(fused.net, chosen.skip_layers, chosen.skip_layer_types)
    quantized_names = {v.layer for v in verdicts if v.quantize}
    plans = {
        x.name: layer_plan(x, calibrate, effort)
        for x in fused.net.layers
        if x.name in quantized_names
    }
    if not plans:
        raise PipelineError(
            f"net '{net.name}' has no layer to quantize; --plan shows the rule for each layer"
        )
    own_notes = (depthwise_note(net), *(layer_type(x).note(x) for x in net.layers))
    notes = (*net.notes, *notes, *filter(None, own_notes))
    return Prepared(net, fused, verdicts, plans, calibrate, notes, effort)


def _effort(config: Config) -> Effort:
    """Return the effort that a config means."""
    if config.calibrate.effort is not None:
        return config.calibrate.effort
    taken_over = config.retrain is not None or config.calibrate.quant_cfg is not None
    return "original" if taken_over else "standard"


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
