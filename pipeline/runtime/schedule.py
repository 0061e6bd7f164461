"""Which layers of a net one forward pass runs, and how long each value lives."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from caffeio.errors import NetError
from caffeio.graph import Layer, Net, Value
from pipeline.layers import layer_type, why_unknown

__all__ = ["Schedule", "blocked", "last_values", "optional_inputs", "schedule"]


@dataclass(frozen=True)
class Schedule:
    """What one forward pass does.

    Attributes
    ----------
    layers : tuple of int
        Positions of the layers to run, in order; sources are not among them.
    results : dict of str to Value
        What to return, by blob name.
    frees : tuple of tuple of Value
        For each entry of `layers`, the values that nothing needs after it.
    """

    layers: tuple[int, ...]
    results: dict[str, Value]
    frees: tuple[tuple[Value, ...], ...]


def schedule(
    net: Net,
    given: Collection[str],
    blobs: Sequence[str] | None = None,
    *,
    everything: bool = False,
) -> Schedule:
    """Work out which layers to run, and which values live how long.

    Parameters
    ----------
    net : Net
    given : collection of str
        Names of the inputs that will be there.
    blobs : sequence of str, optional
        Names asked for, each for its last value in the net; only what they need runs.
        Without it all layers run, and the outputs of the net are returned.
    everything : bool
        Run all layers whatever `blobs` says.

    Returns
    -------
    Schedule
        Labels (any top but the first of a data layer, such as Data or ImageData) may be
        missing, and inputs that nothing reads. The layers that depend on a missing label (losses,
        Accuracy) are then left out, as always those of an unknown type and what depends on them;
        the outputs are those of the net without them.

    Raises
    ------
    caffeio.NetError
        If `given` names what is no input, an input that is needed is missing, or `blobs`
        names what the net has not, or what depends on a missing label or an unknown type.
    """
    for name in given:
        if name not in net.inputs:
            raise NetError(
                f"'{name}' is not an input of the net{_near(name, net.inputs)}; "
                f"its inputs are {_quoted(net.inputs)}"
            )
    last = last_values(net)
    for name in blobs or ():
        if name not in last:
            raise NetError(_no_blob(net, name, last))
    requested = [last[name] for name in blobs or ()]
    needed_layers = frozenset(range(len(net.layers)))
    if blobs is not None and not everything:
        needed_layers = _ancestors(net, requested)
    absent = _absent(net, given)
    _check_missing(net, given, needed_layers, requested)
    for value in requested:
        if value in absent:
            labels = [n for n in net.inputs if n not in given]
            raise NetError(
                f"blob '{value.blob}' depends on input {_quoted(labels)}, which is not given"
            )
    layers = tuple(
        i
        for i, (layer, link) in enumerate(zip(net.layers, net.links, strict=True))
        if i in needed_layers
        and not layer.is_source
        and layer_type(layer).computes
        and not absent.intersection(link.reads)
    )
    results = _outputs(net, layers, absent)
    if blobs is not None:
        results = {value.blob: value for value in requested}
    return Schedule(layers, results, _frees(net, layers, frozenset(results.values())))


def _near(name: str, candidates: Iterable[str]) -> str:
    near = get_close_matches(name, list(candidates), n=1)
    return f"; do you mean '{near[0]}'?" if near else ""


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{n}'" for n in names) or "none"


def _absent(net: Net, input_names: Collection[str]) -> frozenset[Value]:
    """Return the values that cannot be computed for want of an input."""
    absent: set[Value] = set()
    for layer, link in zip(net.layers, net.links, strict=True):
        if layer.is_source:
            absent.update(v for v in link.writes if v.blob not in input_names)
        elif not layer_type(layer).computes or absent.intersection(link.reads):
            absent.update(link.writes)
    return frozenset(absent)


def blocked(net: Net) -> dict[int, Layer]:
    """Return the layers that cannot run: by position, the layer of unknown type that is why."""
    found: dict[int, Layer] = {}
    behind: dict[Value, Layer] = {}
    for i, (layer, link) in enumerate(zip(net.layers, net.links, strict=True)):
        why = next((behind[v] for v in link.reads if v in behind), None)
        if why is None and not layer_type(layer).computes:
            why = layer
        if why is not None:
            found[i] = why
            behind.update(dict.fromkeys(link.writes, why))
    return found


def last_values(net: Net) -> dict[str, Value]:
    """Return the last value of each blob that can be computed."""
    unknown = {v for i in blocked(net) for v in net.links[i].writes}
    return {v.blob: v for v in sorted(net.readers) if v not in unknown}


def optional_inputs(net: Net) -> frozenset[str]:
    """Return the names of the inputs that may be left out.

    All but the first of data layers, which are labels; and what only layers read that cannot run.
    """
    unable = blocked(net)
    return frozenset(
        value.blob
        for layer, link in zip(net.layers, net.links, strict=True)
        if layer.is_source
        for i, value in enumerate(link.writes)
        if (i and layer.type != "Input")
        or (net.readers[value] and all(r in unable for r in net.readers[value]))
    )


def _no_blob(net: Net, name: str, known: Iterable[str]) -> str:
    for i, why in blocked(net).items():
        if name in net.layers[i].tops:
            return f"blob '{name}' depends on layer '{why.name}': {why_unknown(why)}"
    return f"the net has no blob '{name}'{_near(name, known)}"


def _check_missing(
    net: Net,
    input_names: Collection[str],
    needed_layers: Collection[int],
    requested: Sequence[Value],
) -> None:
    """Raise if an input is missing that is no label and that a wanted layer reads."""
    optional = optional_inputs(net)
    for layer, link in zip(net.layers, net.links, strict=True):
        if not layer.is_source:
            continue
        for value in link.writes:
            used = value in requested or any(r in needed_layers for r in net.readers[value])
            if used and value.blob not in input_names and value.blob not in optional:
                needs = _quoted(n for n in net.inputs if n not in optional)
                raise NetError(f"input '{value.blob}' is missing; the net needs {needs}")


def _ancestors(net: Net, values: Sequence[Value]) -> frozenset[int]:
    """Return the positions of the layers that the values depend on."""
    needed = set(values)
    positions: set[int] = set()
    for i in range(len(net.layers) - 1, -1, -1):
        if needed.intersection(net.links[i].writes):
            positions.add(i)
            needed.update(net.links[i].reads)
    return frozenset(positions)


def _outputs(net: Net, layers: Sequence[int], absent: frozenset[Value]) -> dict[str, Value]:
    """Return the outputs of the net reduced to these layers and its given inputs."""
    running = set(layers)
    last = {v.blob: v for v in sorted(net.readers) if v not in absent}
    return {
        blob: last[blob]
        for blob in dict.fromkeys(v.blob for v in net.readers)
        if blob in last and not running.intersection(net.readers[last[blob]])
    }


def _frees(
    net: Net, layers: Sequence[int], results: frozenset[Value]
) -> tuple[tuple[Value, ...], ...]:
    seen = set(results)
    frees: list[tuple[Value, ...]] = []
    for i in reversed(layers):
        link = net.links[i]
        dead = tuple(dict.fromkeys(v for v in (*link.reads, *link.writes) if v not in seen))
        seen.update(dead)
        frees.append(dead)
    return tuple(reversed(frees))
