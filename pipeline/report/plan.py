"""What a run would do and need, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.cost import NetCost

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes
    ----------
    cost : NetCost
    batch_size, samples : int
        Of the calibration; no samples: the factors are those of a record.
    choice : str
        How its samples are chosen; empty without calibration.
    memory : int
        Bytes needed, as an estimate.
    notes, warnings : tuple of str
        Those of the run, as far as they are known before it.
    """

    cost: NetCost
    batch_size: int
    samples: int
    choice: str
    memory: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
