"""Which layers of a prototxt belong to a phase: Caffe's include and exclude rules."""

from __future__ import annotations

from collections.abc import Iterable

from caffeio.errors import NetError
from caffeio.proto import caffe_pb2 as pb

__all__ = ["filter_layers", "meets_rule"]


def meets_rule(state: pb.NetState, rule: pb.NetStateRule) -> bool:
    """Tell whether a state meets a rule, as Caffe's ``StateMeetsRule``.

    Every condition that the rule states must hold: the phase, the level's range, all of its
    stages present and none of its "not stages".
    """
    if rule.HasField("phase") and rule.phase != state.phase:
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    stages = set(state.stage)
    return set(rule.stage) <= stages and stages.isdisjoint(rule.not_stage)


def filter_layers(
    layers: Iterable[pb.LayerParameter], state: pb.NetState
) -> list[pb.LayerParameter]:
    """Return the layers that a state includes, as Caffe's ``FilterNet``.

    Raises
    ------
    NetError
        If a layer has both include and exclude rules.
    """
    included = []
    for layer in layers:
        if layer.include and layer.exclude:
            raise NetError("has include and exclude rules; keep one kind", layer.name)
        if layer.include:
            is_included = any(meets_rule(state, rule) for rule in layer.include)
        else:
            is_included = not any(meets_rule(state, rule) for rule in layer.exclude)
        if is_included:
            included.append(layer)
    return included
