"""``[record]``: models from factors that are there already, without calibration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.base import FilePath, Table

__all__ = ["RecordConfig"]


class RecordConfig(Table):
    """``[record]``."""

    file: FilePath = Field(description="a record; layers that it does not name stay in float")
    fold: Literal["all", "convolution"] = Field(
        "all",
        description="what BatchNorm and Scale are folded into: all that calibration folds, or "
        "Convolution alone, as the original tool's conversion does",
    )
