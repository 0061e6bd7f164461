"""``[decompose]``: convolutions as two of lower rank, which need fewer multiplications."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.base import Names, Number, Table

__all__ = ["DecomposeConfig"]


class DecomposeConfig(Table):
    """``[decompose]``, for ``--decompose``."""

    max_error: Number = Field(
        0.1, gt=0, lt=1, description="of a layer's output, relative to how much it varies"
    )
    min_saving: Number = Field(
        1 / 3, gt=0, lt=1, description="share of a layer's MACs that must be saved"
    )
    layers: Names = Field((), description="only these; default: all convolutions")
    skip_layers: Names = ()
