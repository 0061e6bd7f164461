"""Where tests find the shared models and data, and how they skip when it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = Path(__file__).resolve().parent / "goldens"
ASSETS = Path(os.environ.get("CAFFE_QUANT_ASSETS", ROOT.parent / "shared" / "assets"))


#: Files that take longest come first, so that no worker is alone with one in the end.
_FIRST = ("models", "differential", "calibration_cache", "writing", "pipeline_run", "pipeline_nuq")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run tests of minutes, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes a minute or more; runs with --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        places = [i for i, word in enumerate(_FIRST) if word in item.path.stem]
        return min(places, default=len(_FIRST))

    items.sort(key=turn)
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="takes a minute or more: runs with --long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and data; the test is skipped without it."""
    if not (ASSETS / "models").is_dir():
        pytest.skip(f"needs the shared models and data (CAFFE_QUANT_ASSETS, looked in {ASSETS})")
    return ASSETS


@pytest.fixture(autouse=True, scope="session")
def _simulated():
    """Make numba's CUDA simulator safe and quick where a process runs in it."""
    from cuda_simulator import simulator

    with simulator():
        yield
