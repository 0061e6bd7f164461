"""Speed of the kernels and nets, each beside peers that do the same work.

``python -m bench`` measures all sides in turns, each peer in a process of its own, and prints
medians and ratios; ``pytest bench`` runs the same workloads under pytest-benchmark. Both
first check that the sides compute the same numbers.
"""
