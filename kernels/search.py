"""From a histogram to scale and offset, by any of the methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kernels._ifmr import ifmr_candidates, percentile_range
from kernels.affine import guard_scales, params_from_range
from kernels.checks import check_bits
from kernels.dispatch import Device, backend, check_device
from kernels.hfmg import hfmg_search, rebinned
from kernels.histogram import Histogram
from kernels.methods import METHODS, Hfmg, Ifmr, Kl, Method, MethodName, MinMax, Mse, Percentile
from kernels.params import QuantParams
from kernels.rounding import round_half_away

__all__ = ["SearchTrace", "chosen_method", "quantization_error", "search_params", "search_trace"]


@dataclass(frozen=True)
class SearchTrace:
    """What a search tried, and what it chose.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    params : QuantParams
    lows, highs : float64 array (R,)
        Ends of the ranges tried; the range itself for methods that try one.
    losses : float64 array (R,)
        What the method minimizes: the mean squared error of a value (IFMR, MSE), HFMG's expected
        squared error, the Kullback-Leibler divergence (KL); empty for min-max and percentile.
    best : int
        Which of them was chosen; -1 if nothing was tried.
    """

    params: QuantParams
    lows: np.ndarray
    highs: np.ndarray
    losses: np.ndarray
    best: int


def search_params(
    hist: Histogram,
    method: MethodName | str | Method = "ifmr",
    *,
    bits: int = 8,
    device: Device | str = "cpu",
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

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import Histogram, search_params
    >>> hist = Histogram()
    >>> hist.update(np.append(np.arange(256), 1020).astype(np.float32))
    >>> search_params(hist, "minmax")
    QuantParams(scale=4.0, offset=-128, bits=8)
    >>> search_params(hist, "percentile", max_percentile=0.996)  # leaves 1020 out
    QuantParams(scale=1.0, offset=-128, bits=8)
    """
    return search_trace(hist, method, bits=bits, device=device, **settings).params


def search_trace(
    hist: Histogram,
    method: MethodName | str | Method = "ifmr",
    *,
    bits: int = 8,
    device: Device | str = "cpu",
    **settings: object,
) -> SearchTrace:
    """Choose scale and offset as `search_params`, and tell what was tried.

    Parameters
    ----------
    hist : Histogram
    method : {"ifmr", "hfmg", "minmax", "percentile", "mse", "kl"} or settings object
    bits : int
        2..8.
    device : str
    **settings
        The method's settings, if it is given by name.

    Returns
    -------
    SearchTrace

    Raises
    ------
    TypeError, ValueError
        As `search_params`.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import Histogram, search_trace
    >>> hist = Histogram()
    >>> hist.update(np.arange(256, dtype=np.float32))
    >>> trace = search_trace(hist, "ifmr", search_range=(0.5, 1.5), search_step=0.5)
    >>> trace.highs, trace.best
    (array([127.5, 255. , 382.5]), 1)
    """
    check_bits(bits)
    check_device(device)
    method = chosen_method(method, **settings)
    if not hist.total:
        raise ValueError("the histogram is empty: there is nothing to search a scale for")
    return _SEARCHES[type(method)](hist, method, bits, device)


def chosen_method(method: MethodName | str | Method, **settings: object) -> Method:
    """Return a method, given by its name with settings or as the settings object itself.

    Raises
    ------
    TypeError, ValueError
        If there is no such method or setting, or settings come with an object.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method '{method}' is unknown; choose one of {', '.join(METHODS)}")
        return METHODS[method](**settings)  # type: ignore[arg-type]
    if settings:
        raise TypeError(f"settings {sorted(settings)} must be in the {type(method).__name__} given")
    if type(method) not in _SEARCHES:
        raise TypeError(f"method must be a name or a settings object, not {method!r}")
    return method


def quantization_error(
    hist: Histogram, params: QuantParams, *, device: Device | str = "cpu"
) -> float:
    """Return the mean squared error that quantizing the data of a histogram adds.

    Values are taken as evenly spread within a bin; exact zeros have no error.

    Parameters
    ----------
    hist : Histogram
    params : QuantParams
    device : str

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import Histogram, QuantParams, quantization_error
    >>> hist = Histogram()
    >>> hist.update(np.linspace(-1, 1, 1000, dtype=np.float32))
    >>> fine, coarse = (quantization_error(hist, QuantParams(s)) for s in (1 / 128, 1 / 64))
    >>> round(coarse / fine)  # scale**2 / 12 each
    4
    """
    low, high, scale = (np.array([v]) for v in (*params.range, params.scale))
    return float(_losses(hist, low, high, scale, device)[0]) / max(hist.total, 1)


def _losses(
    hist: Histogram, lows: np.ndarray, highs: np.ndarray, scales: np.ndarray, device: str
) -> np.ndarray:
    """Return the summed squared error of each of several ranges, float64 (R,)."""
    e = hist.edges()
    wide = (a.astype(np.float64) for a in (lows, highs, scales))
    return backend(device, "search").bin_errors(e.left, e.right, e.counts, *wide)


def _formats(
    lows: np.ndarray, highs: np.ndarray, asymmetric: bool, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (least value, greatest value, scale), float64 (R,), of `params_from_range` for each.

    Parameters
    ----------
    lows, highs : float64 array (R,)
        Ends of the ranges, at most and at least zero.
    """
    half = 1 << (bits - 1)
    with np.errstate(over="ignore"):
        lo, hi = lows.astype(np.float32), highs.astype(np.float32)
        if asymmetric:
            scales = guard_scales((hi - lo) / np.float32(2 * half - 1))
            offsets = np.clip(-round_half_away(lo / scales) - half, -half, half - 1)
        else:
            limits = np.where(hi > -lo, half - 1, half).astype(np.float32)
            scales, offsets = guard_scales(np.maximum(hi, -lo) / limits), np.zeros(lo.size)
    steps = scales.astype(np.float64)
    return (-half - offsets) * steps, (half - 1 - offsets) * steps, steps


def _ifmr(hist: Histogram, method: Ifmr, bits: int, device: str) -> SearchTrace:
    c = ifmr_candidates(*percentile_range(hist, method), method, bits)
    losses = _losses(hist, c.lows, c.highs, c.scales, device)
    lows, highs = c.lows.astype(np.float64), c.highs.astype(np.float64)
    best = int(np.argmin(losses))
    return SearchTrace(c.best(losses), lows, highs, losses / hist.total, best)


def _hfmg(hist: Histogram, method: Hfmg, bits: int, device: str) -> SearchTrace:
    low, high = hist.low, hist.high
    counts = rebinned(hist, method.num_of_bins)
    result = hfmg_search(counts, low, high, asymmetric=method.asymmetric, bits=bits, device=device)
    width = (high - low) / method.num_of_bins
    left, right = (result.candidates[:, i].astype(np.float64) for i in (0, 1))
    lows, highs = low + left * width, low + (right + 1) * width
    if result.best_index < 0:
        return _one(result.params, low, high)
    return SearchTrace(result.params, lows, highs, result.losses, result.best_index)


def _minmax(hist: Histogram, method: MinMax, bits: int, device: str) -> SearchTrace:
    low, high = hist.low, hist.high
    params = params_from_range(low, high, asymmetric=method.asymmetric, bits=bits)
    return _one(params, low, high)


def _percentile(hist: Histogram, method: Percentile, bits: int, device: str) -> SearchTrace:
    low, high = percentile_range(hist, method)
    params = params_from_range(low, high, asymmetric=method.asymmetric, bits=bits)
    return _one(params, low, high)


def _one(params: QuantParams, low: float, high: float) -> SearchTrace:
    """Return the trace of a method that tries one range."""
    return SearchTrace(params, np.array([low]), np.array([high]), np.zeros(0), -1)


def _mse(hist: Histogram, method: Mse, bits: int, device: str) -> SearchTrace:
    """Shrink both ends together, then each alone."""
    shares = np.arange(1, method.steps + 1) / method.steps
    low, high = min(hist.low, 0.0), max(hist.high, 0.0)
    down = up = 1.0
    tried: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    best = 0
    for moves in ("both", "up", "down"):
        downs = shares if moves != "up" else np.full(method.steps, down)
        ups = shares if moves != "down" else np.full(method.steps, up)
        formats = _formats(low * downs, high * ups, method.asymmetric, bits)
        losses = _losses(hist, *formats, device)
        best = int(np.argmin(losses))
        down, up = float(downs[best]), float(ups[best])
        tried.append((low * downs, high * ups, losses / hist.total))
    params = params_from_range(low * down, high * up, asymmetric=method.asymmetric, bits=bits)
    lows, highs, all_losses = (np.concatenate(parts) for parts in zip(*tried, strict=True))
    return SearchTrace(params, lows, highs, all_losses, 2 * method.steps + best)


def _kl(hist: Histogram, method: Kl, bits: int, device: str) -> SearchTrace:
    low, high = min(hist.low, 0.0), max(hist.high, 0.0)
    shares = np.arange(1, method.steps + 1) / method.steps
    lows, _, scales = _formats(low * shares, high * shares, method.asymmetric, bits)
    e = hist.edges()
    best, losses = method.steps - 1, np.zeros(method.steps)
    if e.counts.size:
        centres, counts = (e.left + e.right) / 2, e.counts.astype(np.float64)
        divergences = backend(device, "search").divergences
        losses = divergences(centres, counts, lows, scales, 1 << bits)
        best = int(np.argmin(losses))
    share = float(shares[best])
    params = params_from_range(low * share, high * share, asymmetric=method.asymmetric, bits=bits)
    return SearchTrace(params, low * shares, high * shares, losses, best)


_SEARCHES: dict[type, Callable[..., SearchTrace]] = {
    Ifmr: _ifmr,
    Hfmg: _hfmg,
    MinMax: _minmax,
    Percentile: _percentile,
    Mse: _mse,
    Kl: _kl,
}
