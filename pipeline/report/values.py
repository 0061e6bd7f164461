"""The result of a run as a value, and as ``report.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffeio import Net
from caffeio.record import Record
from pipeline.quantize.data_seen import DataSeen
from pipeline.quantize.evaluate import LayerError, ModelScore
from pipeline.quantize.fallback import FallbackResult
from pipeline.quantize.improve import Trial
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.levels import NuqResult
from pipeline.quantize.sensitivity import Sensitivity
from pipeline.report.curve import Training
from pipeline.report.details import LayerCostSeen, LayerDetail

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SCHEMA", "LayerReport", "Report", "to_json"]

#: Of report.json; it changes when the meaning of a key does.
SCHEMA = 1


@dataclass(frozen=True)
class LayerReport:
    """One layer of the fused net.

    Attributes
    ----------
    layer, type : str
    quantized : bool
    reason : str
        Why it stays in float; empty if quantized.
    absorbed : tuple of str
        BatchNorm and Scale layers folded into it.
    scale_d, offset_d : float, int or None
        Of its input; None in float.
    error : LayerError or None
        None in float, or if nothing was measured.
    """

    layer: str
    type: str
    quantized: bool
    reason: str = ""
    absorbed: tuple[str, ...] = ()
    scale_d: float | None = None
    offset_d: int | None = None
    error: LayerError | None = None


@dataclass(frozen=True)
class Report:
    """What a run found and wrote.

    Attributes
    ----------
    net : str
    record : Record
        Factors of the quantized layers.
    accuracy : tuple of ModelScore
        Float, fakequant and INT8; empty without evaluation data.
    layers : tuple of LayerReport
    files : dict of str to Path
        What was written, by kind.
    samples : int
        Samples that were observed.
    seconds : dict of str to float
        Time of each stage.
    notes : tuple of str
        What the user should know.
    effort : str
        ``"original"``, ``"standard"`` or ``"best"``.
    trials : tuple of Trial
        What each improvement did.
    fallback : FallbackResult or None
        What ``[fallback]`` tried.
    nuq : NuqResult or None
        What ``[nuq]`` did to the weights.
    data : DataSeen or None
        The samples that were observed.
    warnings : tuple of str
        What is probably wrong, above all with the data.
    details : dict of layer name to LayerDetail
        What was seen and searched, of each quantized layer.
    costs : dict of layer name to LayerCostSeen
    about : dict
        Product, config, hashes of inputs, machine and peak memory.
    judgement : str
        How good the result is, and what to try next.
    sensitive : tuple of str
        The layers that add most error, the worst first.
    sensitivity : tuple of Sensitivity
        What the whole net loses by each layer alone, the worst first; if it was asked for.
    training : Training or None
        Its course, where there was one.
    net_quantized : Net or None
        The folded float net whose weights the integers stand for: with `record` it makes them.
    """

    net: str
    record: Record
    accuracy: tuple[ModelScore, ...]
    layers: tuple[LayerReport, ...]
    files: dict[str, Path]
    samples: int
    seconds: dict[str, float]
    notes: tuple[str, ...]
    effort: str = "original"
    trials: tuple[Trial, ...] = ()
    fallback: FallbackResult | None = None
    nuq: NuqResult | None = None
    data: DataSeen | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, LayerDetail] = field(default_factory=dict)
    costs: Mapping[str, LayerCostSeen] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    judgement: str = ""
    sensitive: tuple[str, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    training: Training | None = None
    net_quantized: Net | None = None

    def int8_net(self, *, device: str = "cpu") -> Int8Net:
        """Return the integer net.

        Parameters
        ----------
        device : str
            One of `kernels.DEVICES`.

        Raises
        ------
        ValueError
            If the report was made without a net.
        """
        if self.net_quantized is None:
            raise ValueError(f"the report of '{self.net}' holds no net")
        return Int8Net.of_fused(self.net_quantized, self.record, device=device)

    def plot_layer(self, name: str, ax: Axes | None = None) -> Axes:
        """Draw the data of a quantized layer and the ranges found in it; see `draw_layer`."""
        from pipeline.report.plots import draw_layer

        return draw_layer(self, name, ax)

    def plot_errors(self, ax: Axes | None = None) -> Axes:
        """Draw the error at each quantized layer's output; see `draw_errors`."""
        from pipeline.report.plots import draw_errors

        return draw_errors(self, ax)

    def _repr_html_(self) -> str:
        """Return the page in a frame, as notebooks show it."""
        from html import escape

        from pipeline.report.page import page_of

        page = escape(page_of(json.loads(to_json(self))), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 720px; border: 0"></iframe>'


def to_json(report: Report) -> str:
    """Return the report as JSON; an infinite dB, which is exact, is "inf", NaN is null."""
    whole = {"schema": SCHEMA, **asdict(replace(report, net_quantized=None))}
    del whole["net_quantized"]
    whole["record"] = {name: asdict(layer) for name, layer in report.record.layers.items()}
    whole["files"] = {kind: path.name for kind, path in report.files.items()}
    return json.dumps(_plain(whole), indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value > 0 else None  # of what is exact: JSON has no infinity
    return value
