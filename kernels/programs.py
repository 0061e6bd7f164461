"""What a whole net is compiled with: images with channels last, packed weights, steps.

A layer's public function takes arrays with channels first, and packs weights at every call.
A program of many layers keeps its data in the layout that is fastest and packs weights
once: see `pipeline.runtime.compiler`, which is made of these parts.
"""

from __future__ import annotations

from types import ModuleType

from kernels.dispatch import backend

__all__ = ["packed", "resident"]


def packed(device: str) -> ModuleType | None:
    """Return the parts for a device, or None if nets are not compiled for it.

    Parameters
    ----------
    device : str

    Returns
    -------
    module or None
        With `Builder` (steps and buffers), `ConvWeights`, `DeconvWeights`, `Writes` (the
        output stage), and the rules for borders.
    """
    return backend(device, "programs") if device == "cpu" else None


def resident(device: str) -> ModuleType | None:
    """Return what nets that stay on a device need, or None for the host's own.

    Parameters
    ----------
    device : str

    Returns
    -------
    module or None
        With `on_device` and `on_host`, and the maps, sums and moves that are no operations of
        this package.
    """
    return backend(device, "elementwise") if device == "cuda" else None
