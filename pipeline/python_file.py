"""Python files that a config names."""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path
from types import ModuleType

from pipeline.errors import ConfigError

__all__ = ["place_in", "run_file"]


def run_file(path: Path, key: str) -> ModuleType:
    """Run a user's file as a module of its own, and return it.

    Parameters
    ----------
    path : Path
    key : str
        What names it in the config, for messages.

    Raises
    ------
    ConfigError
        If it is no file, or fails: with its line.
    """
    spec = importlib.util.spec_from_file_location(f"_caffe_quant_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{key}: '{path}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{key}: {place_in(path, error)}") from error
    return module


def place_in(path: Path, error: Exception) -> str:
    """Say what went wrong, and in which line of a file."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = f":{lines[-1].lineno}" if lines else ""
    return f"'{path}'{line} fails: {type(error).__name__}: {error}"
