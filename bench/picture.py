"""A picture of what was measured: our time over the fastest peer's, a bar for each workload."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.contest import Result

__all__ = ["draw", "no_picture"]

_SUFFIXES = (".png", ".svg")


def no_picture(path: Path) -> str | None:
    """Return why no picture can be written there, with the cure, or None."""
    if path.suffix not in _SUFFIXES:
        return f"{path}: must end in {' or '.join(_SUFFIXES)}"
    if not path.parent.is_dir():
        return f"{path}: its folder does not exist"
    if find_spec("matplotlib") is None:
        return "needs matplotlib: pip install 'caffe-quant[bench]'"
    return None


def draw(results: Sequence[Result], path: Path) -> None:
    """Write the picture; workloads without a peer have no bar."""
    import_module("matplotlib").use("Agg")
    plt: Any = import_module("matplotlib.pyplot")
    shown = [(r, r.ratio) for r in reversed(results) if r.ratio]
    colors = {
        key: f"C{i}" for i, key in enumerate(dict.fromkeys(r.workload.family for r in results))
    }
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.2 * len(shown)), layout="constrained")
    for y, (result, (low, middle, high)) in enumerate(shown):
        # bars begin at 1 on a scale of factors: left of it we are faster
        axes.barh(y, middle - 1, left=1, color=colors[result.workload.family])
        axes.plot([low, high], [y, y], color="black", linewidth=0.8)
    axes.set_yticks(
        range(len(shown)), [f"{r.workload.title}  ({r.fastest})" for r, _ in shown], fontsize=7
    )
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _position: f"{x:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    figure.supxlabel("our time / time of the fastest peer (in brackets); below 1 we are faster")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    figure.legend(handles, colors, fontsize=7, loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)
