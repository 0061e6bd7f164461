"""``[fallback]``: leave layers in float until the accuracy suffices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Number, Table

__all__ = ["FallbackConfig"]


class FallbackConfig(Table):
    """``[fallback]``."""

    metric: str = Field(
        "top1",
        description="'top1', 'top5' (percent), 'sqnr' (mean dB of the samples at the outputs), or "
        "what the evaluator calls its own",
    )
    max_drop: Number | None = Field(None, ge=0, description="below the float net, in percent")
    floor: Number | None = Field(None, description="what the metric must reach")
    cost: Literal["macs", "layers"] = "macs"
    strategy: Literal["sensitivity", "original"] = "sensitivity"

    @model_validator(mode="after")
    def _one_target(self) -> FallbackConfig:
        if (self.max_drop is None) == (self.floor is None):
            raise ValueError("give max_drop or floor, one of them")
        if self.metric == "sqnr" and self.floor is None:
            raise ValueError("metric = 'sqnr' needs floor, in dB: the float net has no SQNR")
        return self
