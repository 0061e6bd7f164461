"""Which samples of a source to read: the first, some of all parts of it, or any."""

from __future__ import annotations

from typing import Literal

import numpy as np

__all__ = ["Choice", "choose_samples"]

Choice = Literal["first", "spread", "shuffle"]

#: 2^32 times (√5 - 1) / 2 and √2 - 1: multiples of an irrational, modulo 1, fill the range evenly
#: however many are taken, and keep step with no period of the data.
_PLACE = np.uint64(2654435769)
_ORDER = np.uint64(1779033704)
_MASK = np.uint64(0xFFFFFFFF)


def choose_samples(how: Choice, count: int, total: int, seed: int = 0) -> tuple[int, ...]:
    """Return the places of some samples, each once, in the order in which to read them.

    Parameters
    ----------
    how : {"first", "spread", "shuffle"}
        ``"spread"``: the source is cut into `count` equal parts, of which each gives one sample;
        the parts come in an order whose beginning, and whose end, is spread over the source, too.
        Data is often sorted by class, or repeats in a period: neither the samples within the parts
        nor the order follow any period. ``"shuffle"``: any, by the seed.
    count, total : int
        Samples wanted, and those there are: ``count <= total``.
    seed : int
        Of ``"shuffle"``; the same on every machine and with every version of NumPy.

    Raises
    ------
    ValueError
        If there are not so many samples, or `how` is not one.

    Examples
    --------
    >>> choose_samples("first", 3, 10)
    (0, 1, 2)
    >>> sorted(choose_samples("spread", 5, 100))
    [0, 32, 44, 77, 89]
    """
    if not 0 <= count <= total:
        raise ValueError(f"{count} of {total} samples are asked for")
    if how == "first":
        return tuple(range(count))
    if how == "shuffle":
        # the raw bits of a generator are fixed for ever, what NumPy's shuffle makes of them is not
        keys = np.random.PCG64(seed).random_raw(total)
        return tuple(np.argsort(keys, kind="stable")[:count].tolist())
    if how != "spread":
        raise ValueError(f"samples are chosen 'first', 'spread' or 'shuffle', not '{how}'")
    if count == 0:
        return ()
    parts = np.arange(count, dtype=np.uint64)
    begin = parts * np.uint64(total) // np.uint64(count)
    width = (parts + np.uint64(1)) * np.uint64(total) // np.uint64(count) - begin
    places = begin + ((parts * _PLACE & _MASK) * width >> np.uint64(32))
    return tuple(places[np.argsort(parts * _ORDER & _MASK, kind="stable")].tolist())
