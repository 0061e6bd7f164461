"""Weights of few values, in as many layers as the accuracy allows: `[nuq]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from caffeio import CaffeFileError
from caffeio.files import read_json
from caffeio.record import Record
from pipeline.config.improve import memory_bytes
from pipeline.config.load import Config
from pipeline.config.names import is_named, named_layers
from pipeline.config.nuq import NuqConfig
from pipeline.errors import ConfigError
from pipeline.jobs.metric import Metric
from pipeline.jobs.stages import read_samples
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.corrections import Corrected
from pipeline.quantize.fallback import fewest_in_float, order_of
from pipeline.quantize.fuse import shared_parameters
from pipeline.quantize.improve import Improved, judged_blobs
from pipeline.quantize.integers import quantize_layer
from pipeline.quantize.levels import LayerLevels, NuqResult, layer_levels
from pipeline.quantize.prepare import Prepared
from pipeline.quantize.sensitivity import sensitivities
from pipeline.report.progress import Reporter

__all__ = ["chosen_layers", "non_uniform"]


def chosen_layers(settings: NuqConfig, work: Prepared) -> tuple[str, ...]:
    """Return the layers that `[nuq]` names, in the order of the net.

    Raises
    ------
    ConfigError
        If one is not quantized, has no weights, or shares them; or the mapping file is none.
    """
    shared = shared_parameters(work.fused.net)
    able = [
        layer.name
        for layer in work.fused.net.layers
        if layer.name in work.plans and INT8_TYPES[layer.type].weighted
    ]
    named = settings.layers
    if settings.mapping_file is not None:  # which may name layers without weights, too
        bare = {x.name for x in work.fused.net.layers if x.name in work.plans} - {*able}
        named = tuple(n for n in _mapped(settings) if n not in bare)
    for name in named:
        met = named_layers(name, able)
        if not met:
            raise ConfigError(f"nuq.layers: '{name}' is no quantized layer with weights")
        if met == (name,) and name in shared:
            raise ConfigError(f"nuq.layers: layer '{name}' shares its weights with another")
    return tuple(n for n in able if n not in shared and (not named or is_named(n, named)))


def _mapped(settings: NuqConfig) -> tuple[str, ...]:
    """Return the names in a mapping file: a list, or the nodes of a run's _quant.json."""
    path = settings.mapping_file
    assert path is not None
    try:
        whole = read_json(path)
    except CaffeFileError as error:
        raise ConfigError(f"nuq.mapping_file: {error}") from None
    if isinstance(whole, dict) and isinstance(whole.get("nodes"), list):
        whole = [n.get("quantized") if isinstance(n, dict) else None for n in whole["nodes"]]
    if not isinstance(whole, list) or not all(isinstance(x, str) for x in whole):
        raise ConfigError(
            f"nuq.mapping_file: {path}: holds neither a list of layers nor the nodes of a "
            "_quant.json; what other tools write there is not known: name the layers in nuq.layers"
        )
    return tuple(whole)


def non_uniform(
    config: Config,
    work: Prepared,
    plain: Improved,
    improved: Callable[[Mapping[str, int]], Improved],
    reporter: Reporter,
    *,
    device: str,
) -> tuple[Improved, NuqResult]:
    """Quantize again with few values for the weights of the chosen layers.

    Parameters
    ----------
    config : Config
        With ``[nuq]``.
    work : Prepared
    plain : Improved
        With weights of all values.
    improved : callable
        ``improved(levels) -> Improved``: quantizes and corrects with so many values for the
        weights of some layers.
    reporter : Reporter
    device : str

    Raises
    ------
    ConfigError
        If a layer cannot have them, or the metric cannot be measured.
    """
    settings = config.nuq
    assert settings is not None
    names = chosen_layers(settings, work)

    def with_levels(keep: frozenset[str]) -> Improved:
        levels = {n: int(settings.num_steps) for n in names if n not in keep}
        return improved(levels) if levels else plain

    whole = with_levels(frozenset())
    if settings.max_drop is None:
        return whole, NuqResult(_levels(whole, names))
    metric = Metric(config, work, settings.metric, device, "nuq.metric")
    target = metric(plain.result) - settings.max_drop
    results: dict[frozenset[str], Improved] = {frozenset(): whole}

    def measure(keep: frozenset[str]) -> float:
        if keep not in results:
            results[keep] = with_levels(keep)
        value = metric(results[keep].result)
        few = len(names) - len(keep)
        reporter.say(f"nuq: {settings.metric} {value:.2f} with few values in {few} layers")
        return value

    sizes = {n: float(w.weights) for n, w in zip(names, _levels(whole, names), strict=True)}
    order = _order(config, work, whole, sizes, device)
    found = fewest_in_float(order, sizes, measure, target, take_back=False)
    kept = frozenset(found.in_float)
    left = tuple(n for n in names if n not in kept)
    return results[kept], NuqResult(_levels(results[kept], left), found)


def _levels(found: Improved, names: tuple[str, ...]) -> tuple[LayerLevels, ...]:
    """Return what few levels have done to the weights of some layers."""
    before = {layer.name: layer for layer in found.fused.net.layers}
    after = {layer.name: layer for layer in found.result.net.layers}
    records = found.result.record.layers
    return tuple(
        layer_levels(
            quantize_layer(after[name], records[name]), quantize_layer(before[name], records[name])
        )
        for name in names
    )


def _order(
    config: Config, work: Prepared, whole: Improved, sizes: Mapping[str, float], device: str
) -> tuple[str, ...]:
    """Return the layers, first the one whose few values make most noise for what they save."""
    records = whole.result.record.layers
    chosen = Record({name: records[name] for name in sizes})
    samples = read_samples(config, work).judges
    found = sensitivities(
        whole.fused.net,
        Corrected(whole.result.net, chosen),
        samples[:1],
        judged_blobs(work.net),
        device=device,
        memory=memory_bytes(config.improve.memory),
    )
    return order_of({s.layer: 10 ** (-s.weights / 10) for s in found}, sizes)
