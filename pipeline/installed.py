"""Whether the package `kernels` that Python finds is this project's.

The name is not ours alone: another published package of that name, installed into the same
environment, overwrites files of this one without a word.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_kernels"]

#: What stands in the first file of this project's package, and of no other.
_MARK = "caffe-quant: kernels"


def check_kernels() -> None:
    """Raise unless `kernels` is this project's; reads one file and imports nothing.

    Raises
    ------
    ImportError
        With what to do.
    """
    spec = find_spec("kernels")
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    try:
        if origin is not None and _MARK in origin.read_text(encoding="utf-8", errors="replace"):
            return
    except OSError:
        pass
    problem = "is missing" if origin is None else f"at {origin.parent} is another project's"
    raise ImportError(
        f"the package 'kernels' {problem}: caffe-quant has one of that name, and of two in one "
        "environment the later overwrites the other's files. Install caffe-quant into a virtual "
        "environment of its own; or: pip uninstall kernels, then "
        "pip install --force-reinstall --no-deps caffe-quant"
    )
