"""What a user writes: the config file, table by table."""

from pipeline.config.base import DataConfig, TransformConfig
from pipeline.config.calibrate import Algorithm, CalibrateConfig
from pipeline.config.load import (
    Config,
    EvaluateConfig,
    ModelConfig,
    OutputConfig,
    load_config,
)
from pipeline.config.retrain import RetrainConfig

__all__ = [
    "Algorithm",
    "CalibrateConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "ModelConfig",
    "OutputConfig",
    "RetrainConfig",
    "TransformConfig",
    "load_config",
]
