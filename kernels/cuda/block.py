"""What kernels share: threads of a block that add up, and passes that stream values."""

from __future__ import annotations

from typing import Any

from kernels.cuda.jit import cuda, device_jit

__all__ = ["fold", "stream", "sum_block"]


def fold(combine: Any) -> Any:
    """Return a function that combines one value of each thread, in a fixed order.

    Parameters
    ----------
    combine : device function
        Of two values.

    Returns
    -------
    device function
        ``(shared, lane, count)``, which all threads of the block call. `shared` is an array in
        shared memory with an entry for each thread. `count` neighbours, a power of two, of which
        this thread is number `lane`, leave their result in the entry of the first of them; it
        may be read at once, and must be read before a barrier that precedes new entries.
    """

    @device_jit
    def combined(shared, lane, count):
        """Leave the result of so many neighbours in the first one's entry."""
        t = cuda.threadIdx.x
        cuda.syncthreads()
        left = count // 2
        while left:
            if lane < left:
                shared[t] = combine(shared[t], shared[t + left])
            cuda.syncthreads()
            left //= 2

    return combined


@device_jit
def _add(a, b):
    """Return the sum of two values."""
    return a + b


sum_block = fold(_add)


def stream(put: Any) -> Any:
    """Return a function that takes a thread's share of values, four at a time.

    Four values are loaded before one is stored, each `step` apart: loads of neighbouring threads
    lie together, and enough of them are under way to fill the memory's bandwidth. Indices are
    unsigned, so that no code for negative indices is generated.

    Parameters
    ----------
    put : device function
        ``(value, numbers, out, i)``: stores what becomes of a value, and returns whether that
        is to be counted.

    Returns
    -------
    device function
        ``(x, first, end, step, numbers, out)``, all places uint64; returns how many counted.
    """

    @device_jit
    def streamed(x, first, end, step, numbers, out):
        """Take a thread's values, from `first` on in steps."""
        i, counted = first, 0
        while i + step + step + step < end:
            j, k, m = i + step, i + step + step, i + step + step + step
            a, b, c, d = x[i], x[j], x[k], x[m]
            counted += put(a, numbers, out, i)
            counted += put(b, numbers, out, j)
            counted += put(c, numbers, out, k)
            counted += put(d, numbers, out, m)
            i = m + step
        while i < end:
            counted += put(x[i], numbers, out, i)
            i += step
        return counted

    return streamed
