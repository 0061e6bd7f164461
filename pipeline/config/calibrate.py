"""``[calibrate]``: how scales and offsets are found.

Names and defaults of the quantization settings are those of the Ascend tool for Caffe.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from caffeio.data import Choice
from kernels import METHODS
from pipeline.config.base import Data, FilePath, Names, Number, QuantizableType, Table, as_tuple
from pipeline.config.improve import Effort

__all__ = [
    "Algorithm",
    "ArqQuantize",
    "CalibrateConfig",
    "HfmgQuantize",
    "IfmrQuantize",
    "KlQuantize",
    "LayerOverride",
    "MinmaxQuantize",
    "MseQuantize",
    "PercentileQuantize",
    "TypeOverride",
]


class IfmrQuantize(Table):
    """``ifmr_quantize``: the default search."""

    search_range_start: Number = Field(0.7, gt=0)
    search_range_end: Number = 1.3
    search_step: Number = Field(0.01, gt=0)
    max_percentile: Number = Field(0.999999, gt=0.5, le=1)
    min_percentile: Number = Field(0.999999, gt=0.5, le=1)
    asymmetric: bool | None = None

    @model_validator(mode="after")
    def _ordered(self) -> IfmrQuantize:
        width = self.search_range_end - self.search_range_start
        if width <= 0:
            raise ValueError("search_range_start must be less than search_range_end")
        if self.search_step > width * (1 + 1e-6):  # 1 - 0.9 is a little below 0.1
            raise ValueError("search_step must be at most search_range_end - search_range_start")
        return self


class HfmgQuantize(Table):
    """``hfmg_quantize``."""

    num_of_bins: Literal[1024, 2048, 4096, 8192] = 4096
    asymmetric: bool | None = None


class MinmaxQuantize(Table):
    """``minmax_quantize``: the whole range."""

    asymmetric: bool | None = None


class PercentileQuantize(Table):
    """``percentile_quantize``: a range that leaves the outermost values out."""

    max_percentile: Number = Field(0.999999, gt=0.5, le=1)
    min_percentile: Number = Field(0.999999, gt=0.5, le=1)
    asymmetric: bool | None = None


class MseQuantize(Table):
    """``mse_quantize``: the range of least squared error."""

    steps: int = Field(100, ge=2)
    asymmetric: bool | None = None


class KlQuantize(Table):
    """``kl_quantize``: the range of least Kullback-Leibler divergence."""

    steps: int = Field(100, ge=2)
    asymmetric: bool | None = None


class ArqQuantize(Table):
    """``arq_quantize``: scales of weights."""

    channel_wise: bool | None = Field(
        None, description="true for Convolution and Deconvolution only; default there: true"
    )


class Algorithm(Table):
    """How to quantize a layer: at most one search for its data, and one for its weights."""

    arq_quantize: ArqQuantize | None = None
    ifmr_quantize: IfmrQuantize | None = None
    hfmg_quantize: HfmgQuantize | None = None
    minmax_quantize: MinmaxQuantize | None = None
    percentile_quantize: PercentileQuantize | None = None
    mse_quantize: MseQuantize | None = None
    kl_quantize: KlQuantize | None = None

    @property
    def data_searches(self) -> dict[str, Table]:
        """The searches that are set, by method name (``"ifmr"``, ...)."""
        tables = {name: getattr(self, f"{name}_quantize") for name in METHODS}
        return {name: search for name, search in tables.items() if search is not None}

    @model_validator(mode="after")
    def _one_search(self) -> Algorithm:
        if len(self.data_searches) > 1:
            both = " and ".join(f"{name}_quantize" for name in self.data_searches)
            raise ValueError(f"{both} exclude each other: keep one")
        return self


class TypeOverride(Algorithm):
    """``[[calibrate.override_layer_types]]``."""

    layer_type: QuantizableType


class LayerOverride(Algorithm):
    """``[[calibrate.override_layer_configs]]``."""

    layer_name: str


class CalibrateConfig(Table):
    """``[calibrate]``."""

    data: Data = ()
    batch_num: int = Field(1, ge=1)
    batch_size: int = Field(1, ge=1)
    samples: Choice | None = Field(
        None,
        description="which samples are observed; default: spread, but first with effort = "
        "'original', for kind = 'net', and for nets with a state",
    )
    seed: int | None = Field(None, ge=0, description="of samples = 'shuffle'; default: 0")
    activation_offset: bool = True
    joint_quant: bool = Field(
        False, description="shift sums to 16 bits; layers that one Eltwise adds share their scale"
    )
    skip_layers: Names = ()
    skip_layer_types: Names = ()
    only_layers: Names = Field((), description="quantize no others; default: all that can be")
    do_fusion: bool = True
    skip_fusion_layers: Names = ()
    effort: Effort | None = Field(
        None, description="default: standard; with a quant_cfg or a training: original"
    )
    exact: bool = Field(False, description="IFMR from a second pass over the data itself")
    cache: bool | FilePath = Field(
        False, description="true, or a file: keep what was observed, for runs that search otherwise"
    )
    ranges_from: FilePath | None = Field(
        None, description="ncnn's table or TensorRT's cache: ranges of the layers that it names"
    )
    common_config: Algorithm = Algorithm()
    override_layer_types: Annotated[tuple[TypeOverride, ...], BeforeValidator(as_tuple)] = ()
    override_layer_configs: Annotated[tuple[LayerOverride, ...], BeforeValidator(as_tuple)] = ()
    quant_cfg: FilePath | None = Field(
        None, description="a config of the Ascend tool (.cfg, .json), instead of the settings here"
    )

    @model_validator(mode="after")
    def _seed_is_used(self) -> CalibrateConfig:
        if self.seed is not None and self.samples != "shuffle":
            raise ValueError("seed is for samples = 'shuffle'")
        return self
