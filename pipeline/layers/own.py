"""Layer types that a user brings: a Python file in the form of the rooms here.

The file defines ``TYPES``, a dict of a type's name to its `LayerType`, as every module of
`pipeline.layers` does. Its functions get the layer: ``layer.param`` holds the fields that Caffe's
own schema knows, ``layer.unknown`` the others as they stand in the prototxt, ``layer.blobs`` the
weights. A minimal one::

    from pipeline.layers.base import LayerType, always, any_sign

    def shapes(layer, bottoms):
        return (bottoms[0],)

    def forward(layer, bottoms, device):
        return (abs(bottoms[0]),)

    TYPES = {"Magnitude": LayerType(shapes, forward, per_image=always, sign=any_sign)}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from caffeio import Net
from pipeline.errors import ConfigError
from pipeline.layers import TABLE
from pipeline.layers.base import LayerType
from pipeline.python_file import run_file

__all__ = ["read_types", "with_types"]


def read_types(path: Path) -> dict[str, LayerType]:
    """Run a user's file and return the types that it defines.

    Parameters
    ----------
    path : Path
        It is run as a module of its own: what it does at import happens.

    Raises
    ------
    ConfigError
        If it cannot be read, fails (with its line), defines no ``TYPES`` of that form, or defines
        a type that is known already.
    """
    module = run_file(path, "model.layers")
    types = getattr(module, "TYPES", None)
    if not isinstance(types, Mapping) or not types:
        raise ConfigError(f"model.layers: '{path}' defines no TYPES, a dict of name to LayerType")
    for name, kind in types.items():
        if not isinstance(kind, LayerType):
            raise ConfigError(f"model.layers: '{path}': TYPES['{name}'] is no LayerType")
        if name in TABLE:
            raise ConfigError(f"model.layers: '{path}': the type '{name}' is known already")
    return dict(types)


def with_types(net: Net, types: Mapping[str, LayerType]) -> Net:
    """Return a net whose layers of these types are computed by them."""
    return net.with_layers(
        tuple(replace(x, own=types[x.type]) if x.type in types else x for x in net.layers)
    )
