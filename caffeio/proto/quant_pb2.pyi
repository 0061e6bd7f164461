from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SingleLayerRecord(_message.Message):
    __slots__ = ("scale_d", "offset_d", "scale_w", "offset_w", "shift_bit", "channels", "height", "width", "skip_fusion", "object_layer", "num_bits_w", "record_d")
    SCALE_D_FIELD_NUMBER: _ClassVar[int]
    OFFSET_D_FIELD_NUMBER: _ClassVar[int]
    SCALE_W_FIELD_NUMBER: _ClassVar[int]
    OFFSET_W_FIELD_NUMBER: _ClassVar[int]
    SHIFT_BIT_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    SKIP_FUSION_FIELD_NUMBER: _ClassVar[int]
    OBJECT_LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_BITS_W_FIELD_NUMBER: _ClassVar[int]
    RECORD_D_FIELD_NUMBER: _ClassVar[int]
    scale_d: float
    offset_d: int
    scale_w: _containers.RepeatedScalarFieldContainer[float]
    offset_w: _containers.RepeatedScalarFieldContainer[int]
    shift_bit: _containers.RepeatedScalarFieldContainer[int]
    channels: int
    height: int
    width: int
    skip_fusion: bool
    object_layer: str
    num_bits_w: int
    record_d: _containers.RepeatedCompositeFieldContainer[RecordD]
    def __init__(self, scale_d: _Optional[float] = ..., offset_d: _Optional[int] = ..., scale_w: _Optional[_Iterable[float]] = ..., offset_w: _Optional[_Iterable[int]] = ..., shift_bit: _Optional[_Iterable[int]] = ..., channels: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., skip_fusion: bool = ..., object_layer: _Optional[str] = ..., num_bits_w: _Optional[int] = ..., record_d: _Optional[_Iterable[_Union[RecordD, _Mapping]]] = ...) -> None: ...

class RecordD(_message.Message):
    __slots__ = ("scale_d", "offset_d", "index", "channels", "height", "width", "num_bits_d")
    SCALE_D_FIELD_NUMBER: _ClassVar[int]
    OFFSET_D_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    NUM_BITS_D_FIELD_NUMBER: _ClassVar[int]
    scale_d: float
    offset_d: int
    index: int
    channels: int
    height: int
    width: int
    num_bits_d: int
    def __init__(self, scale_d: _Optional[float] = ..., offset_d: _Optional[int] = ..., index: _Optional[int] = ..., channels: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., num_bits_d: _Optional[int] = ...) -> None: ...

class MapFiledEntry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: SingleLayerRecord
    def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SingleLayerRecord, _Mapping]] = ...) -> None: ...

class ScaleOffsetRecord(_message.Message):
    __slots__ = ("record",)
    RECORD_FIELD_NUMBER: _ClassVar[int]
    record: _containers.RepeatedCompositeFieldContainer[MapFiledEntry]
    def __init__(self, record: _Optional[_Iterable[_Union[MapFiledEntry, _Mapping]]] = ...) -> None: ...

class ArqQuantize(_message.Message):
    __slots__ = ("channel_wise",)
    CHANNEL_WISE_FIELD_NUMBER: _ClassVar[int]
    channel_wise: bool
    def __init__(self, channel_wise: bool = ...) -> None: ...

class IfmrQuantize(_message.Message):
    __slots__ = ("search_range_start", "search_range_end", "search_step", "max_percentile", "min_percentile", "asymmetric")
    SEARCH_RANGE_START_FIELD_NUMBER: _ClassVar[int]
    SEARCH_RANGE_END_FIELD_NUMBER: _ClassVar[int]
    SEARCH_STEP_FIELD_NUMBER: _ClassVar[int]
    MAX_PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    MIN_PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    ASYMMETRIC_FIELD_NUMBER: _ClassVar[int]
    search_range_start: float
    search_range_end: float
    search_step: float
    max_percentile: float
    min_percentile: float
    asymmetric: bool
    def __init__(self, search_range_start: _Optional[float] = ..., search_range_end: _Optional[float] = ..., search_step: _Optional[float] = ..., max_percentile: _Optional[float] = ..., min_percentile: _Optional[float] = ..., asymmetric: bool = ...) -> None: ...

class HfmgQuantize(_message.Message):
    __slots__ = ("num_of_bins", "asymmetric")
    NUM_OF_BINS_FIELD_NUMBER: _ClassVar[int]
    ASYMMETRIC_FIELD_NUMBER: _ClassVar[int]
    num_of_bins: int
    asymmetric: bool
    def __init__(self, num_of_bins: _Optional[int] = ..., asymmetric: bool = ...) -> None: ...

class CalibrationParameter(_message.Message):
    __slots__ = ("arq_quantize", "ifmr_quantize", "hfmg_quantize")
    ARQ_QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    IFMR_QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    HFMG_QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    arq_quantize: ArqQuantize
    ifmr_quantize: IfmrQuantize
    hfmg_quantize: HfmgQuantize
    def __init__(self, arq_quantize: _Optional[_Union[ArqQuantize, _Mapping]] = ..., ifmr_quantize: _Optional[_Union[IfmrQuantize, _Mapping]] = ..., hfmg_quantize: _Optional[_Union[HfmgQuantize, _Mapping]] = ...) -> None: ...

class OverrideLayerType(_message.Message):
    __slots__ = ("layer_type", "calibration_config")
    LAYER_TYPE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    layer_type: str
    calibration_config: CalibrationParameter
    def __init__(self, layer_type: _Optional[str] = ..., calibration_config: _Optional[_Union[CalibrationParameter, _Mapping]] = ...) -> None: ...

class OverrideLayer(_message.Message):
    __slots__ = ("layer_name", "calibration_config")
    LAYER_NAME_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    layer_name: str
    calibration_config: CalibrationParameter
    def __init__(self, layer_name: _Optional[str] = ..., calibration_config: _Optional[_Union[CalibrationParameter, _Mapping]] = ...) -> None: ...

class CalibrationConfig(_message.Message):
    __slots__ = ("batch_num", "activation_offset", "joint_quant", "skip_layers", "skip_layer_types", "do_fusion", "skip_fusion_layers", "common_config", "override_layer_types", "override_layer_configs", "conv_calibration_config", "fc_calibration_config")
    BATCH_NUM_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_OFFSET_FIELD_NUMBER: _ClassVar[int]
    JOINT_QUANT_FIELD_NUMBER: _ClassVar[int]
    SKIP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    SKIP_LAYER_TYPES_FIELD_NUMBER: _ClassVar[int]
    DO_FUSION_FIELD_NUMBER: _ClassVar[int]
    SKIP_FUSION_LAYERS_FIELD_NUMBER: _ClassVar[int]
    COMMON_CONFIG_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_LAYER_TYPES_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_LAYER_CONFIGS_FIELD_NUMBER: _ClassVar[int]
    CONV_CALIBRATION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    FC_CALIBRATION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    batch_num: int
    activation_offset: bool
    joint_quant: bool
    skip_layers: _containers.RepeatedScalarFieldContainer[str]
    skip_layer_types: _containers.RepeatedScalarFieldContainer[str]
    do_fusion: bool
    skip_fusion_layers: _containers.RepeatedScalarFieldContainer[str]
    common_config: CalibrationParameter
    override_layer_types: _containers.RepeatedCompositeFieldContainer[OverrideLayerType]
    override_layer_configs: _containers.RepeatedCompositeFieldContainer[OverrideLayer]
    conv_calibration_config: CalibrationParameter
    fc_calibration_config: CalibrationParameter
    def __init__(self, batch_num: _Optional[int] = ..., activation_offset: bool = ..., joint_quant: bool = ..., skip_layers: _Optional[_Iterable[str]] = ..., skip_layer_types: _Optional[_Iterable[str]] = ..., do_fusion: bool = ..., skip_fusion_layers: _Optional[_Iterable[str]] = ..., common_config: _Optional[_Union[CalibrationParameter, _Mapping]] = ..., override_layer_types: _Optional[_Iterable[_Union[OverrideLayerType, _Mapping]]] = ..., override_layer_configs: _Optional[_Iterable[_Union[OverrideLayer, _Mapping]]] = ..., conv_calibration_config: _Optional[_Union[CalibrationParameter, _Mapping]] = ..., fc_calibration_config: _Optional[_Union[CalibrationParameter, _Mapping]] = ...) -> None: ...

class ClipMaxMin(_message.Message):
    __slots__ = ("clip_max", "clip_min")
    CLIP_MAX_FIELD_NUMBER: _ClassVar[int]
    CLIP_MIN_FIELD_NUMBER: _ClassVar[int]
    clip_max: float
    clip_min: float
    def __init__(self, clip_max: _Optional[float] = ..., clip_min: _Optional[float] = ...) -> None: ...

class UlqQuantize(_message.Message):
    __slots__ = ("clip_max_min", "fixed_min")
    CLIP_MAX_MIN_FIELD_NUMBER: _ClassVar[int]
    FIXED_MIN_FIELD_NUMBER: _ClassVar[int]
    clip_max_min: ClipMaxMin
    fixed_min: bool
    def __init__(self, clip_max_min: _Optional[_Union[ClipMaxMin, _Mapping]] = ..., fixed_min: bool = ...) -> None: ...

class RetrainDataQuantConfig(_message.Message):
    __slots__ = ("ulq_quantize",)
    ULQ_QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    ulq_quantize: UlqQuantize
    def __init__(self, ulq_quantize: _Optional[_Union[UlqQuantize, _Mapping]] = ...) -> None: ...

class ArqRetrain(_message.Message):
    __slots__ = ("channel_wise",)
    CHANNEL_WISE_FIELD_NUMBER: _ClassVar[int]
    channel_wise: bool
    def __init__(self, channel_wise: bool = ...) -> None: ...

class RetrainWeightQuantConfig(_message.Message):
    __slots__ = ("arq_retrain",)
    ARQ_RETRAIN_FIELD_NUMBER: _ClassVar[int]
    arq_retrain: ArqRetrain
    def __init__(self, arq_retrain: _Optional[_Union[ArqRetrain, _Mapping]] = ...) -> None: ...

class RetrainOverrideLayerType(_message.Message):
    __slots__ = ("layer_type", "retrain_data_quant_config", "retrain_weight_quant_config")
    LAYER_TYPE_FIELD_NUMBER: _ClassVar[int]
    RETRAIN_DATA_QUANT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    RETRAIN_WEIGHT_QUANT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    layer_type: str
    retrain_data_quant_config: RetrainDataQuantConfig
    retrain_weight_quant_config: RetrainWeightQuantConfig
    def __init__(self, layer_type: _Optional[str] = ..., retrain_data_quant_config: _Optional[_Union[RetrainDataQuantConfig, _Mapping]] = ..., retrain_weight_quant_config: _Optional[_Union[RetrainWeightQuantConfig, _Mapping]] = ...) -> None: ...

class RetrainOverrideLayer(_message.Message):
    __slots__ = ("layer_name", "retrain_data_quant_config", "retrain_weight_quant_config")
    LAYER_NAME_FIELD_NUMBER: _ClassVar[int]
    RETRAIN_DATA_QUANT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    RETRAIN_WEIGHT_QUANT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    layer_name: str
    retrain_data_quant_config: RetrainDataQuantConfig
    retrain_weight_quant_config: RetrainWeightQuantConfig
    def __init__(self, layer_name: _Optional[str] = ..., retrain_data_quant_config: _Optional[_Union[RetrainDataQuantConfig, _Mapping]] = ..., retrain_weight_quant_config: _Optional[_Union[RetrainWeightQuantConfig, _Mapping]] = ...) -> None: ...

class RetrainConfig(_message.Message):
    __slots__ = ("batch_num", "skip_layers", "skip_layer_types", "quant_skip_layers", "quant_skip_types", "override_layer_types", "override_layer_configs", "retrain_data_quant_config", "retrain_weight_quant_config")
    BATCH_NUM_FIELD_NUMBER: _ClassVar[int]
    SKIP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    SKIP_LAYER_TYPES_FIELD_NUMBER: _ClassVar[int]
    QUANT_SKIP_LAYERS_FIELD_NUMBER: _ClassVar[int]
    QUANT_SKIP_TYPES_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_LAYER_TYPES_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_LAYER_CONFIGS_FIELD_NUMBER: _ClassVar[int]
    RETRAIN_DATA_QUANT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    RETRAIN_WEIGHT_QUANT_CONFIG_FIELD_NUMBER: _ClassVar[int]
    batch_num: int
    skip_layers: _containers.RepeatedScalarFieldContainer[str]
    skip_layer_types: _containers.RepeatedScalarFieldContainer[str]
    quant_skip_layers: _containers.RepeatedScalarFieldContainer[str]
    quant_skip_types: _containers.RepeatedScalarFieldContainer[str]
    override_layer_types: _containers.RepeatedCompositeFieldContainer[RetrainOverrideLayerType]
    override_layer_configs: _containers.RepeatedCompositeFieldContainer[RetrainOverrideLayer]
    retrain_data_quant_config: RetrainDataQuantConfig
    retrain_weight_quant_config: RetrainWeightQuantConfig
    def __init__(self, batch_num: _Optional[int] = ..., skip_layers: _Optional[_Iterable[str]] = ..., skip_layer_types: _Optional[_Iterable[str]] = ..., quant_skip_layers: _Optional[_Iterable[str]] = ..., quant_skip_types: _Optional[_Iterable[str]] = ..., override_layer_types: _Optional[_Iterable[_Union[RetrainOverrideLayerType, _Mapping]]] = ..., override_layer_configs: _Optional[_Iterable[_Union[RetrainOverrideLayer, _Mapping]]] = ..., retrain_data_quant_config: _Optional[_Union[RetrainDataQuantConfig, _Mapping]] = ..., retrain_weight_quant_config: _Optional[_Union[RetrainWeightQuantConfig, _Mapping]] = ...) -> None: ...
