"""Pictures of a report for notebooks, by Matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.report.values import Report

__all__ = ["draw_errors", "draw_layer"]


def _axes(ax: Axes | None, width: float) -> Axes:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need Matplotlib: pip install 'caffe-quant[plot]'") from None
    if ax is not None:
        return ax
    try:  # where there is an IPython, the figure is shown below the cell
        import matplotlib.pyplot as plt
    except ImportError:  # pragma: no cover - Matplotlib without a way to show anything
        return Figure(figsize=(width, 4), layout="constrained").add_subplot()
    return plt.subplots(figsize=(width, 4), layout="constrained")[1]


def draw_layer(report: Report, name: str, ax: Axes | None = None) -> Axes:
    """Draw what was seen of a layer's data, on a log scale, and the ranges found in it.

    Parameters
    ----------
    report : Report
    name : str
        A quantized layer.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    KeyError
        If nothing is known of the layer's data: it is in float, or was not observed.
    ImportError
        Without Matplotlib.
    """
    if name not in report.details:
        known = ", ".join(report.details) or "none"
        raise KeyError(f"no data of layer '{name}' was observed; of these it was: {known}")
    detail, ax = report.details[name], _axes(ax, 7)
    edges = np.linspace(detail.low, detail.high, len(detail.counts) + 1)
    ax.stairs(np.maximum(detail.counts, 0.5), edges, fill=True, alpha=0.5, label="data")
    ax.set(yscale="log", xlabel="value", ylabel="how many", title=f"{name}: {detail.method}")
    ranges: dict[str, Any] = {"chosen": detail.range, **detail.winners}
    for i, (method, (low, high)) in enumerate(ranges.items()):
        color = "black" if i == 0 else f"C{i}"
        ax.axvline(high, color=color, ls="-" if i == 0 else ":", label=method)
        if low < detail.low or low < 0:
            ax.axvline(low, color=color, ls="-" if i == 0 else ":")
    ax.legend()
    return ax


def draw_errors(report: Report, ax: Axes | None = None) -> Axes:
    """Draw the error at each quantized layer's output: what it adds, and with all before it.

    Parameters
    ----------
    report : Report
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        If nothing was measured: the run had no evaluation data.
    ImportError
        Without Matplotlib.
    """
    layers = [(x.layer, x.error) for x in report.layers if x.error is not None]
    if not layers:
        raise ValueError(f"the report of '{report.net}' has no errors: it had no [evaluate] data")
    ax = _axes(ax, max(7.0, 0.22 * len(layers)))
    ax.plot([e.sqnr for _, e in layers], "o-", alpha=0.5, label="what it adds")
    ax.plot([e.sqnr_in_net for _, e in layers], "o-", label="with all before it")
    if report.sensitivity:
        lost = {s.layer: s.alone for s in report.sensitivity}
        ax.plot([lost.get(name, np.nan) for name, _ in layers], "o-", label="of the whole net")
    ax.set_xticks(range(len(layers)), [name for name, _ in layers], rotation=90)
    ax.set(ylabel="SQNR, dB", title=f"{report.net}: error of each layer")
    ax.legend()
    return ax
