"""Numerical kernels of INT8 quantization, usable without Caffe.

Numbers in, numbers out: NumPy arrays, or arrays of a CUDA device. Tensors of torch and any other
arrays on the CPU that NumPy can read are taken as well. By theme:

Number format
    `QuantParams`, of each channel `ChannelParams`, `params_from_range`; `quantize`, `dequantize`,
    `fake_quantize`, `requantize`
Weights
    `arq`, `arq_fake_quantize`, `quantize_weights`, `dequantize_weights`,
    `fake_quantize_weights`; rounded so that errors cancel: `column_moments`, `ColumnMoments`,
    `compensated_rounding`; of few values: `best_levels`, `level_table`, `entropy_bits`;
    of low rank: `decompositions`, `LowRank`, `output_error`
Layers, in float32 and in INT8
    `conv2d`, `conv2d_int8`, `prepare_conv2d`, `deconv2d`, `deconv2d_int8`, `inner_product`,
    `inner_product_int8`, `avg_pool2d`, `avg_pool2d_int8`, `max_pool2d`
What becomes of the sums of an INT8 layer
    `OutputStage`; whether they fit: `int32_room`, `ANY_PRODUCTS`; the shift to 16 bits:
    `ShiftSearch`
Sizes of results
    `conv_output_size`, `deconv_output_size`, `pool_output_size`
Observing data, in one pass and constant memory
    `Histogram`, `NotFiniteError`
From a histogram to scale and offset
    `search_params`, by one of `METHODS` (a `MethodName`) or its settings: `Method` is any of
    `Ifmr`, `Hfmg`, `MinMax`, `Percentile`, `Mse`, `Kl`; `search_trace`, what it tried
    (`SearchTrace`); `quantization_error`; histogram and search together: `Observer`
How far quantized values are from exact ones, by channel
    `channel_moments`, `ChannelMoments`
IFMR on the data itself
    `ifmr`, or in batches `percentile_range`, `tail_rank`, `ifmr_candidates`, `IfmrCandidates`,
    `IfmrPass`
Training with a learned range
    `ClipRange`, `guard_clips`, `UlqGrid`, `ulq_grid`, `ulq_forward`, `ulq_backward`
Devices and compiling
    `DEVICES` and their type `Device`, `DeviceError`, `best_device`, `device_count`,
    `select_device`; `on_compile`, `cache_problem`, `CacheWarning`
For programs that run whole nets
    `packed`, `resident`, `check_output`, `float_stage`, `ConvGeometry`, `PoolGeometry`

A module of this folder holds one operation: its arguments are checked there, once. Then it runs
on the device named, in the module of the same name under ``kernels/<device>``: ``"reference"``
(NumPy, the definition of the result), ``"cpu"`` (all cores, by numba and generated machine
code) or ``"cuda"``. ``kernels/README.md`` derives the arithmetic and says how to add to it.

Importing this package compiles nothing and does not import numba; a kernel is compiled, and
on the CPU cached on disk, when it is first called.
"""

from kernels import methods
from kernels._ifmr import (
    IfmrCandidates,
    IfmrPass,
    ifmr,
    ifmr_candidates,
    percentile_range,
    tail_rank,
)
from kernels.affine import (
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
    requantize,
)
from kernels.avg_pool import avg_pool2d, avg_pool2d_int8
from kernels.checks import ANY_PRODUCTS, int32_room
from kernels.compensation import ColumnMoments, column_moments, compensated_rounding
from kernels.compiling import CacheWarning, cache_problem, on_compile
from kernels.conv import ConvGeometry, conv2d, conv2d_int8, conv_output_size, prepare_conv2d
from kernels.decomposition import LowRank, decompositions, output_error
from kernels.deconv import deconv2d, deconv2d_int8, deconv_output_size
from kernels.dispatch import (
    DEVICES,
    Device,
    DeviceError,
    best_device,
    device_count,
    select_device,
)
from kernels.histogram import Histogram, NotFiniteError
from kernels.inner_product import inner_product, inner_product_int8
from kernels.levels import best_levels, entropy_bits, level_table
from kernels.max_pool import max_pool2d
from kernels.methods import *  # noqa: F403 - a new method needs no line here
from kernels.moments import ChannelMoments, channel_moments
from kernels.observer import Observer
from kernels.output import OutputStage, check_output, float_stage
from kernels.params import ChannelParams, QuantParams
from kernels.pool import PoolGeometry, pool_output_size
from kernels.programs import packed, resident
from kernels.search import SearchTrace, quantization_error, search_params, search_trace
from kernels.search_n import ShiftSearch
from kernels.ulq import ClipRange, UlqGrid, guard_clips, ulq_backward, ulq_forward, ulq_grid
from kernels.weights import (
    arq,
    arq_fake_quantize,
    dequantize_weights,
    fake_quantize_weights,
    quantize_weights,
)

__version__ = "0.2.0"

# caffe-quant: kernels (by this line `pipeline.installed` knows that the package is this one)

__all__ = [
    "ANY_PRODUCTS",
    "DEVICES",
    "CacheWarning",
    "ChannelMoments",
    "ChannelParams",
    "ClipRange",
    "ColumnMoments",
    "ConvGeometry",
    "Device",
    "DeviceError",
    "Histogram",
    "IfmrCandidates",
    "IfmrPass",
    "LowRank",
    "NotFiniteError",
    "Observer",
    "OutputStage",
    "PoolGeometry",
    "QuantParams",
    "SearchTrace",
    "ShiftSearch",
    "UlqGrid",
    "arq",
    "arq_fake_quantize",
    "avg_pool2d",
    "avg_pool2d_int8",
    "best_device",
    "best_levels",
    "cache_problem",
    "channel_moments",
    "check_output",
    "column_moments",
    "compensated_rounding",
    "conv2d",
    "conv2d_int8",
    "conv_output_size",
    "decompositions",
    "deconv2d",
    "deconv2d_int8",
    "deconv_output_size",
    "dequantize",
    "dequantize_weights",
    "device_count",
    "entropy_bits",
    "fake_quantize",
    "fake_quantize_weights",
    "float_stage",
    "guard_clips",
    "ifmr",
    "ifmr_candidates",
    "inner_product",
    "inner_product_int8",
    "int32_room",
    "level_table",
    "max_pool2d",
    "on_compile",
    "output_error",
    "packed",
    "params_from_range",
    "percentile_range",
    "pool_output_size",
    "prepare_conv2d",
    "quantization_error",
    "quantize",
    "quantize_weights",
    "requantize",
    "resident",
    "search_params",
    "search_trace",
    "select_device",
    "tail_rank",
    "ulq_backward",
    "ulq_forward",
    "ulq_grid",
]
__all__ += methods.__all__
