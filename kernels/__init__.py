"""Numerical kernels of INT8 quantization, usable without Caffe.

Every operation validates its arguments, then runs on the device named: ``"reference"``
(NumPy, the definition of the result) or ``"cpu"`` (numba, all cores). Importing this
package compiles nothing and does not import numba; a kernel is compiled, and cached on
disk, when it is first called.
"""

from kernels._ifmr import (
    IfmrCandidates,
    IfmrPass,
    ifmr,
    ifmr_candidates,
    percentile_range,
    tail_rank,
)
from kernels.affine import (
    QuantParams,
    dequantize,
    dequantize_weights,
    fake_quantize,
    fake_quantize_weights,
    params_from_range,
    quantize,
    quantize_weights,
    requantize,
)
from kernels.avg_pool import avg_pool2d, avg_pool2d_int8
from kernels.compiling import on_compile
from kernels.conv import ConvGeometry, conv2d, conv2d_int8, conv_output_size, prepare_conv2d
from kernels.deconv import deconv2d, deconv2d_int8, deconv_output_size
from kernels.dispatch import DEVICES, best_device, device_count, select_device
from kernels.histogram import Histogram, NotFiniteError
from kernels.inner_product import inner_product, inner_product_int8
from kernels.max_pool import max_pool2d
from kernels.methods import METHODS, Hfmg, Ifmr, Kl, Method, MinMax, Mse, Percentile
from kernels.output import OutputStage, check_output, float_stage
from kernels.pool import PoolGeometry, pool_output_size
from kernels.programs import packed, resident
from kernels.search import quantization_error, search_params
from kernels.ulq import ClipRange, UlqGrid, guard_clips, ulq_backward, ulq_forward, ulq_grid
from kernels.weights import arq, arq_fake_quantize

__all__ = [
    "DEVICES",
    "METHODS",
    "ClipRange",
    "ConvGeometry",
    "Hfmg",
    "Histogram",
    "Ifmr",
    "IfmrCandidates",
    "IfmrPass",
    "Kl",
    "Method",
    "MinMax",
    "Mse",
    "NotFiniteError",
    "OutputStage",
    "Percentile",
    "PoolGeometry",
    "QuantParams",
    "UlqGrid",
    "arq",
    "arq_fake_quantize",
    "avg_pool2d",
    "avg_pool2d_int8",
    "best_device",
    "check_output",
    "conv2d",
    "conv2d_int8",
    "conv_output_size",
    "deconv2d",
    "deconv2d_int8",
    "deconv_output_size",
    "dequantize",
    "dequantize_weights",
    "device_count",
    "fake_quantize",
    "fake_quantize_weights",
    "float_stage",
    "guard_clips",
    "ifmr",
    "ifmr_candidates",
    "inner_product",
    "inner_product_int8",
    "max_pool2d",
    "on_compile",
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
    "select_device",
    "tail_rank",
    "ulq_backward",
    "ulq_forward",
    "ulq_grid",
]
