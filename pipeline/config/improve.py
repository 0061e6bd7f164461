"""``[improve]``: what is done beyond ranges to lose less, part by part."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.config.base import Table

__all__ = ["EFFORTS", "Effort", "ImproveConfig", "memory_bytes"]

Effort = Literal["original", "standard", "best"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMG]?)")


#: Characters of a size.
_LONGEST = 24


def memory_bytes(text: str) -> int:
    """Return a size such as ``"2G"`` or ``"500M"`` in bytes.

    Raises
    ------
    ValueError
        If it is no size.
    """
    match = _SIZE.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError("must be a number of bytes, or one with K, M or G behind it, as '2G'")
    return int(float(match[1]) * _UNITS[match[2]])


def _size(text: str) -> str:
    memory_bytes(text)
    return text


class ImproveConfig(Table):
    """``[improve]``; what is left out is as ``calibrate.effort`` says."""

    search: Literal["method", "auto"] | None = Field(
        None, description="ranges as the method finds them, or the best of all methods'"
    )
    equalize: bool | None = Field(None, description="give channels like ranges")
    rounding: Literal["nearest", "compensated"] | None = Field(
        None, description="how weights become integers"
    )
    bias: bool | None = Field(None, description="correct the mean of each channel's error")
    gain: bool | None = Field(None, description="correct how much smaller a channel has become")
    memory: Annotated[str, AfterValidator(_size)] = Field(
        "128M", description="values that are held at a time; more lie in files meanwhile"
    )


#: What each effort does.
EFFORTS: dict[Effort, ImproveConfig] = {
    "original": ImproveConfig(
        search="method", equalize=False, rounding="nearest", bias=False, gain=False
    ),
    "standard": ImproveConfig(
        search="method", equalize=False, rounding="nearest", bias=True, gain=True
    ),
    "best": ImproveConfig(
        search="auto", equalize=True, rounding="compensated", bias=True, gain=True
    ),
}
