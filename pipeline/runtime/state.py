"""What a net with recurrent layers remembers from one forward pass to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.layers.base import Kept

__all__ = ["State"]


class State:
    """The state of the recurrent layers (LSTM, RNN) of one net between forward passes.

    A net itself remembers nothing, so that threads can share it: who runs sequences longer than
    a batch makes a `State` and gives it to each `forward` in turn. As in Caffe, the markers
    `cont` then say where a sequence begins and where it goes on. A pass that fails leaves the
    state as it was. One state is for one net and one thread at a time.

    Examples
    --------
    >>> state = State()
    >>> for x, cont in batches:  # doctest: +SKIP
    ...     out = net.forward({"data": x, "cont": cont}, state=state)
    """

    def __init__(self) -> None:
        self._states: dict[int, Kept] = {}

    @contextmanager
    def advance(self) -> Iterator[dict[int, Kept]]:
        """Yield what each layer keeps, by position, to be changed; it counts if all goes well."""
        states = dict(self._states)
        yield states
        self._states = states
