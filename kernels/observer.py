"""Watching data go by, to find its scale and offset: a histogram and a method together."""

from __future__ import annotations

from copy import copy
from typing import Any, TypeVar

from kernels.checks import check_bits
from kernels.dispatch import Device, check_device
from kernels.histogram import Histogram
from kernels.methods import Method, MethodName
from kernels.params import QuantParams
from kernels.search import chosen_method, search_params

__all__ = ["Observer"]

Data = TypeVar("Data")


class Observer:
    """Takes data in batches, of any number and size, and gives scale and offset for all of it.

    Parameters
    ----------
    method : {"mse", "ifmr", "hfmg", "minmax", "percentile", "kl"} or settings object
        As for `kernels.search_params`.
    bits : int
        2..8.
    device : str
        Where data is counted and searched.

    Attributes
    ----------
    histogram : Histogram
        Of all data since the last `reset`.

    Raises
    ------
    TypeError, ValueError
        If the method, bits or device is wrong.

    Notes
    -----
    Threads: may be shared, as its histogram may. What is observed while another thread resets it
    counts before or after. A forked child goes on with a copy.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import MinMax, Observer
    >>> observer = Observer(MinMax(asymmetric=False))
    >>> for batch in np.array([[1.0, -3.0], [12.7, 0.0]], np.float32):
    ...     batch = observer.observe(batch)  # what goes in comes out
    >>> round(observer.params().scale, 6)
    0.1
    >>> observer.histogram.total
    4
    """

    def __init__(
        self,
        method: MethodName | str | Method = "mse",
        *,
        bits: int = 8,
        device: Device | str = "cpu",
    ) -> None:
        check_device(device)
        self._method, self._bits, self._device = chosen_method(method), check_bits(bits), device
        self.histogram = Histogram()

    def observe(self, x: Data) -> Data:
        """Count the values of a float32 array, and return it as it is.

        A tensor of torch may require a gradient: it is only looked at.

        Raises
        ------
        NotFiniteError
            If there is a NaN or an infinity; nothing of `x` is counted then.
        """
        values: Any = x.detach() if hasattr(x, "detach") else x
        self.histogram.update(values, device=self._device)
        return x

    def params(self) -> QuantParams:
        """Return scale and offset for what was seen.

        Raises
        ------
        ValueError
            If nothing was.
        """
        seen = copy(self.histogram)  # of one moment, while others may observe
        return search_params(seen, self._method, bits=self._bits, device=self._device)

    def merge(self, other: Observer) -> None:
        """Add what another observer has seen; the order of merging makes no difference."""
        self.histogram.merge(other.histogram)

    def reset(self) -> None:
        """Forget what was seen."""
        self.histogram = Histogram()
