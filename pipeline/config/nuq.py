"""``[nuq]``: weights of few values, which compress well and stay int8 weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import FilePath, Names, Number, Table

__all__ = ["NuqConfig"]


class NuqConfig(Table):
    """``[nuq]``."""

    layers: Names = Field((), description="default: all quantized layers with weights")
    mapping_file: FilePath | None = Field(
        None, description="a file with their names: a list in JSON, or a run's _quant.json"
    )
    num_steps: Literal[16, 32] = Field(32, description="values that a layer's weights may take")
    num_of_iteration: int = Field(
        0, ge=0, description="has no effect: the values are the best ones, not found by iteration"
    )
    max_drop: Number | None = Field(
        None, ge=0, description="as many layers as lose no more than this against plain INT8"
    )
    metric: str = Field(
        "top1", description="what max_drop is of: as in [fallback]; in dB for 'sqnr'"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> NuqConfig:
        if self.layers and self.mapping_file is not None:
            raise ValueError("give layers or mapping_file, one of them")
        return self
