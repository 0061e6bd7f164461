"""The memory that a run needs, as an estimate."""

from __future__ import annotations

from pipeline.report.cost import NetCost

__all__ = ["needed_memory"]

#: Python, its libraries and compiled kernels.
_PROGRAM = 250 << 20
#: Copies of the weights alive at once: read, packed, rounded, written (VGG-16: 3.4).
_WEIGHTS = 3.5
#: Samples run at a time where a net treats each alone: layers are corrected in parts of 8.
_PART = 8
#: Batches of samples decoded at a time: two ahead, one that runs, and one that is compared.
_DECODED = 4
#: What improvements hold beside the values that are counted, as a factor of these.
_IMPROVE = 2
#: Evaluation samples that are held from one model to the next.
_EVALUATION = 64 << 20


def needed_memory(cost: NetCost, sample: int, batch_size: int, *, apart: bool, improve: int) -> int:
    """Estimate the bytes that a run needs at its peak.

    Parameters
    ----------
    cost : NetCost
    sample : int
        Numbers in one sample of all inputs.
    batch_size : int
        The larger of calibration's and evaluation's.
    apart : bool
        The net treats every sample alone, so that batches are run in parts.
    improve : int
        Bytes of values that improvements hold; 0 without any.

    Notes
    -----
    Between 0.7 and 1.3 of what real nets take; see bench/README.md.
    """
    weights = 4 * sum(layer.weights for layer in cost.layers)
    blobs = 4 * cost.peak_values * (min(batch_size, _PART) if apart else batch_size)
    decoded = 4 * sample * batch_size * _DECODED
    fixed = _PROGRAM + _EVALUATION + _IMPROVE * improve
    return round(fixed + _WEIGHTS * weights + blobs + decoded)
