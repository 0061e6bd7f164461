"""Speed of the kernels and nets, each beside peers that do the same work.

``python -m bench`` measures all sides in turns, each peer in a process of its own, and prints
times, ratios and a summary; words choose among the workloads, ``--short`` the short list,
``--wrong`` scores the INT8 outputs and times nothing. ``pytest bench`` runs the short list under
pytest-benchmark. Float results, and ours, must be right or nothing is timed; INT8 peers are
compared with exact arithmetic, and their share of wrong outputs stands beside their time.
"""
