"""From a histogram to scale and offset, by any of the methods."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kernels.affine import QuantParams, params_from_range
from kernels.checks import check_bits
from kernels.dispatch import backend, check_device
from kernels.hfmg import hfmg
from kernels.histogram import Histogram
from kernels.ifmr import ifmr_candidates, percentile_range
from kernels.methods import METHODS, Hfmg, Ifmr, Kl, Method, MinMax, Mse, Percentile

__all__ = ["quantization_error", "search_params"]


def search_params(
    hist: Histogram,
    method: str | Method = "ifmr",
    *,
    bits: int = 8,
    device: str = "cpu",
    **settings: object,
) -> QuantParams:
    """Choose scale and offset for the data of a histogram.

    Parameters
    ----------
    hist : Histogram
    method : {"ifmr", "hfmg", "minmax", "percentile", "mse", "kl"} or settings object
    bits : int
        2..8.
    device : str
    **settings
        The method's settings, e.g. ``search_step`` of `kernels.Ifmr`, if it is given by name.

    Returns
    -------
    QuantParams

    Raises
    ------
    TypeError, ValueError
        If the histogram is empty, or the method or a setting is wrong.
    """
    check_bits(bits)
    check_device(device)
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method '{method}' is unknown; choose one of {', '.join(METHODS)}")
        method = METHODS[method](**settings)  # type: ignore[arg-type]
    elif settings:
        raise TypeError(f"settings {sorted(settings)} must be in the {type(method).__name__} given")
    if type(method) not in _SEARCHES:
        raise TypeError(f"method must be a name or a settings object, not {method!r}")
    if not hist.total:
        raise ValueError("the histogram is empty: there is nothing to search a scale for")
    return _SEARCHES[type(method)](hist, method, bits, device)


def quantization_error(hist: Histogram, params: QuantParams, *, device: str = "cpu") -> float:
    """Return the mean squared error that quantizing the data of a histogram adds.

    Values are taken as evenly spread within a bin; exact zeros have no error.

    Parameters
    ----------
    hist : Histogram
    params : QuantParams
    device : str
    """
    return float(_losses(hist, [params], device)[0]) / max(hist.total, 1)


def _losses(hist: Histogram, tried: list[QuantParams], device: str) -> np.ndarray:
    """Return the summed squared error under each of several parameters, float64."""
    ranges = np.array([p.range for p in tried])
    scales = np.array([p.scale for p in tried])
    e = hist.edges()
    return backend(device, "search").bin_errors(
        e.left, e.right, e.counts, ranges[:, 0].copy(), ranges[:, 1].copy(), scales
    )


def _ifmr(hist: Histogram, method: Ifmr, bits: int, device: str) -> QuantParams:
    c = ifmr_candidates(*percentile_range(hist, method), method, bits)
    e = hist.edges()
    lows, highs, scales = (a.astype(np.float64) for a in (c.lows, c.highs, c.scales))
    return c.best(
        backend(device, "search").bin_errors(e.left, e.right, e.counts, lows, highs, scales)
    )


def _hfmg(hist: Histogram, method: Hfmg, bits: int, device: str) -> QuantParams:
    return hfmg(hist, method.num_of_bins, method.asymmetric, bits, device)


def _minmax(hist: Histogram, method: MinMax, bits: int, device: str) -> QuantParams:
    return params_from_range(hist.low, hist.high, asymmetric=method.asymmetric, bits=bits)


def _percentile(hist: Histogram, method: Percentile, bits: int, device: str) -> QuantParams:
    low, high = percentile_range(hist, method)
    return params_from_range(low, high, asymmetric=method.asymmetric, bits=bits)


def _mse(hist: Histogram, method: Mse, bits: int, device: str) -> QuantParams:
    """Shrink both ends together, then each alone."""
    shares = np.arange(1, method.steps + 1) / method.steps
    low, high = min(hist.low, 0.0), max(hist.high, 0.0)
    down = up = 1.0
    for moves in ("both", "up", "down"):
        tried = [(s if moves != "up" else down, s if moves != "down" else up) for s in shares]
        params = [
            params_from_range(low * d, high * u, asymmetric=method.asymmetric, bits=bits)
            for d, u in tried
        ]
        best = int(np.argmin(_losses(hist, params, device)))
        down, up = tried[best]
    return params_from_range(low * down, high * up, asymmetric=method.asymmetric, bits=bits)


def _kl(hist: Histogram, method: Kl, bits: int, device: str) -> QuantParams:
    low, high = min(hist.low, 0.0), max(hist.high, 0.0)
    tried = [
        params_from_range(low * s, high * s, asymmetric=method.asymmetric, bits=bits)
        for s in np.arange(1, method.steps + 1) / method.steps
    ]
    e = hist.edges()
    centres, counts = (e.left + e.right) / 2, e.counts.astype(np.float64)
    if not counts.size:
        return tried[-1]
    return tried[int(np.argmin([_divergence(centres, counts, p) for p in tried]))]


def _divergence(centres: np.ndarray, counts: np.ndarray, params: QuantParams) -> float:
    """Return KL(P || Q): P clips what lies outside to the edge bins, Q spreads each level.

    A level's count (without what was clipped) is spread evenly over its non-empty bins, as
    in the calibration of "8-bit Inference with TensorRT" (Migacz, 2017). Q is not scaled
    up to a sum of 1: else a range that holds one bin, and clips all others, would look perfect.
    """
    low = params.range[0]
    level = np.rint((centres - low) / params.scale)
    # up to half a step beyond an end a value is rounded to it, not clipped
    inside = (level >= 0) & (level < 1 << params.bits)
    if not inside.any():
        return np.inf
    kept = counts[inside]
    clipped = kept.copy()
    clipped[0] += counts[level < 0].sum()
    clipped[-1] += counts[level >= 1 << params.bits].sum()
    level = level[inside].astype(np.int64)
    spread = (np.bincount(level, kept) / np.maximum(np.bincount(level), 1))[level]
    return float(np.sum(clipped * np.log(clipped / spread)) / counts.sum())


_SEARCHES: dict[type, Callable[..., QuantParams]] = {
    Ifmr: _ifmr,
    Hfmg: _hfmg,
    MinMax: _minmax,
    Percentile: _percentile,
    Mse: _mse,
    Kl: _kl,
}
