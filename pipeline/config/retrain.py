"""``[retrain]``: training with fake quantization, or in plain float.

Names and defaults of the quantization settings are those of the Ascend tool for Caffe.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from pipeline.config.base import Data, FilePath, Names, Number, QuantizableType, Table, as_tuple

__all__ = ["RetrainAlgorithm", "RetrainConfig"]


class ClipMaxMin(Table):
    """``clip_max_min``: the range that training begins with."""

    clip_max: Number = Field(gt=0)
    clip_min: Number = Field(lt=0)


class UlqQuantize(Table):
    """``ulq_quantize``: data, by a learned range."""

    clip_max_min: ClipMaxMin | None = Field(
        None, description="left out: as calibrated, or IFMR on the first batch"
    )
    fixed_min: bool | None = Field(
        None, description="the range begins at 0; left out: true after ReLU"
    )


class ArqRetrain(Table):
    """``arq_retrain``: weights, by their own range at each step."""

    channel_wise: bool | None = None


class RetrainDataQuantConfig(Table):
    """``retrain_data_quant_config``."""

    ulq_quantize: UlqQuantize = UlqQuantize()


class RetrainWeightQuantConfig(Table):
    """``retrain_weight_quant_config``."""

    arq_retrain: ArqRetrain = ArqRetrain()


class RetrainAlgorithm(Table):
    """How to fake-quantize a layer."""

    retrain_data_quant_config: RetrainDataQuantConfig | None = None
    retrain_weight_quant_config: RetrainWeightQuantConfig | None = None


class RetrainTypeOverride(RetrainAlgorithm):
    """``[[retrain.override_layer_types]]``."""

    layer_type: QuantizableType


class RetrainLayerOverride(RetrainAlgorithm):
    """``[[retrain.override_layer_configs]]``."""

    layer_name: str


class RetrainConfig(RetrainAlgorithm):
    """``[retrain]``."""

    solver: FilePath = Field(description="Caffe's solver prototxt; it names the training net")
    quantize: bool = Field(True, description="false: train in plain float")
    data: Data = Field((), description="instead of what the training net's data layer names")
    test_data: Data = Field((), description="instead of what the test net's data layer names")
    root: FilePath | None = Field(
        None, description="where relative paths of data layers begin; left out: beside the net"
    )
    batch_size: int | None = Field(
        None, ge=1, description="for training data named here; left out: the data layer's"
    )
    shuffle: bool | None = Field(
        None, description="left out: data named here yes, a data layer's as it says"
    )
    seed: int | None = Field(None, ge=0, description="left out: the solver's random_seed, or 0")
    workers: int = Field(0, ge=0, description="processes that decode samples")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data_bits: int = Field(8, ge=2, le=8)
    weight_bits: int = Field(8, ge=2, le=8)
    skip_layers: Names = ()
    skip_layer_types: Names = ()
    only_layers: Names = Field((), description="quantize no others; default: all that can be")
    do_fusion: bool = True
    skip_fusion_layers: Names = ()
    override_layer_types: Annotated[tuple[RetrainTypeOverride, ...], BeforeValidator(as_tuple)] = ()
    override_layer_configs: Annotated[
        tuple[RetrainLayerOverride, ...], BeforeValidator(as_tuple)
    ] = ()
    quant_cfg: FilePath | None = Field(
        None,
        description="a retrain config of the Ascend tool, instead of the settings here",
    )
    metric: str | None = Field(
        None, description="the test net's output to judge by; left out: its first Accuracy"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many tests without a better metric"
    )
    snapshot_interval: int | None = Field(
        None, ge=1, description="iterations between snapshots; left out: the solver's, or 1000"
    )

    #: What the file that `quant_cfg` names holds and is not used.
    _notes: tuple[str, ...] = PrivateAttr(())

    @property
    def notes(self) -> tuple[str, ...]:
        """What the file that ``quant_cfg`` names holds and is not used."""
        return self._notes

    @property
    def deployable(self) -> bool:
        """Whether an INT8 model comes of it."""
        return self.quantize and (self.data_bits, self.weight_bits) == (8, 8)
