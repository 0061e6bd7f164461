"""Damaged inputs for every reader: ``python -m tests.fuzz TARGET --minutes N``, or all targets.

A target is a reader with files that it reads. They are mutated, and whatever the reader does but
read them or raise an error of the product's own is a finding: its input is kept.
"""
