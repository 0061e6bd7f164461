"""Configs of the Ascend quantization tool, in either of their forms: text (.cfg) or config.json."""

from __future__ import annotations

from pathlib import Path

from caffeio.calibration_config import QuantConfig, parse_quant_cfg
from caffeio.config_json import is_json, parse_config_json, parse_retrain_json
from caffeio.errors import CaffeFileError
from caffeio.files import read_proto_text
from caffeio.retrain_config import RetrainQuantConfig, parse_retrain_cfg

__all__ = ["read_any_cfg", "read_quant_cfg", "read_retrain_cfg"]


def read_quant_cfg(path: str | Path) -> QuantConfig:
    """Read a calibration config.

    Parameters
    ----------
    path : path-like
        A simplified config, in protobuf's text format, or a config.json; told by the content.

    Returns
    -------
    QuantConfig
        Its notes name, with their lines, the blocks that are not known.

    Raises
    ------
    CaffeFileError
        If the file cannot be read, has a mistake in its text or a value out of range, or is a
        config for retraining.
    """
    text = read_proto_text(path)
    if is_json(text):
        return parse_config_json(text, path)
    return parse_quant_cfg(text, path)


def read_retrain_cfg(path: str | Path) -> RetrainQuantConfig:
    """Read a retrain config; as `read_quant_cfg`."""
    text = read_proto_text(path)
    if is_json(text):
        return parse_retrain_json(text, path)
    return parse_retrain_cfg(text, path)


def read_any_cfg(path: str | Path) -> QuantConfig | RetrainQuantConfig:
    """Read a config of either purpose; errors as for `read_quant_cfg`."""
    try:
        return read_quant_cfg(path)
    except CaffeFileError as error:
        if "is a config for retraining" not in str(error):
            raise
    return read_retrain_cfg(path)
