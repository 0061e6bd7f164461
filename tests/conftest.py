"""Where tests find the shared models and data, and how they skip when it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = Path(__file__).resolve().parent / "goldens"
ASSETS = Path(os.environ.get("CAFFE_QUANT_ASSETS", ROOT.parent / "shared" / "assets"))


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
