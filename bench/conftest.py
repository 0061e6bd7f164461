"""How many threads the sides may use.

One by default: the sides share a process here, where the waiting threads of one would take
the cores from the next.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-threads", type=int, default=1, help="threads of every side")
