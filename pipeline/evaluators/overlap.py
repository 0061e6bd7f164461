"""How far boxes overlap."""

from __future__ import annotations

import numpy as np

__all__ = ["overlaps"]


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes.

    Parameters
    ----------
    a, b : array (N, 4) and (M, 4)
        xmin, ymin, xmax, ymax, in any unit.

    Returns
    -------
    float64 ndarray (N, M)
        0 where both boxes are empty.

    Examples
    --------
    >>> import numpy as np
    >>> overlaps(np.array([[0, 0, 2, 1]]), np.array([[1, 0, 3, 1], [5, 5, 6, 6]]))
    array([[0.33333333, 0.        ]])
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
