"""The kernels of the CUDA backend and what they are given: module -> kernel -> signature."""

from __future__ import annotations

from typing import Any

F32, F64, I8, I32, I64 = (f"{t}[::1]" for t in ("float32", "float64", "int8", "int32", "int64"))
TABLE = "float32[:, ::1]"
FORMAT = "float32, float32, float32, float32"  # scale, offset, low, high
ROWS = f"int64, int64, {F32}, {F32}, float32, float32"  # inner, lanes, scales, offsets, low, high

PAIR = "UniTuple(int64, 2)"
#: Of the GEMM: words, places, weights, phases, bias, sizes, kind, stage, result.
GEMM = "void({0}, {1}, {0}, int64[:, ::1], {0}, GemmSizes, int64, {2}, {3})"
FLOAT_TILES, WORD_TILES = GEMM.format(F32, I64, F32, F32), GEMM.format(I32, I64, F32, I8)
POOL = f"UniTuple(int64, 5), {PAIR}, {PAIR}, {PAIR}, int64"  # sizes, window, stride, pad, lanes
ONE_CHANNEL = "void({0}, {0}, {1}, ConvSizes, {2}, UniTuple(int64, 2), int64, {3}, {0})"

SIGNATURES: dict[str, dict[str, str]] = {
    "affine": {
        "_quantize": f"void({F32}, {FORMAT}, {I8}, {I64})",
        "_fake_quantize": f"void({F32}, {FORMAT}, {F32}, {I64})",
        "_dequantize": f"void({I8}, {FORMAT}, {F32})",
        "_quantize_rows": f"void({F32}, {ROWS}, {I8}, {I64})",
        "_fake_quantize_rows": f"void({F32}, {ROWS}, {F32}, {I64})",
        "_dequantize_rows": f"void({I8}, {ROWS}, {F32})",
        "_requantize": f"void({I32}, int64, int64, {F32}, {FORMAT}, {I8})",
    },
    "weights": {
        "_row_ranges": f"void({TABLE}, {F32}, {F32})",
        "_fake_quantize_rows": f"void({F32}, int64, int64, {F32}, float32, float32, {F32})",
        "_swapped": f"void(float32[:, :, ::1], {F32})",
    },
    "moments": {
        "_planes": f"void({TABLE}, {TABLE}, float64[:, ::1])",
    },
    "search_n": {
        "_planes": "void(int32[:, ::1], boolean, int64[:, :, ::1])",
    },
    "compensation": {
        "_round_rows": (
            "void(float64[:, :, ::1], float64[:, ::1], float64[:, :, ::1], float64, int8[::1], "
            "float64[:, :, ::1], int8[:, :, ::1])"
        ),
    },
    "ulq": {
        "_forward": f"void({F32}, float32, float32, float32, {F32})",
        "_backward": f"void({F32}, {F32}, float32, {FORMAT}, {F32}, float64[:, ::1])",
    },
    "histogram": {
        "_scan": f"void({F32}, float32, int64, {I32}, {F64}, float32, float32, {F32}, {F32}, {I64})",
        "_gather": f"void({F32}, float32, float32, {F32}, {I64})",
    },
    "elementwise": {
        "affine_kernel": f"void({F32}, {F32}, {F32}, int64, {F32})",
        "prelu_kernel": f"void({F32}, {F32}, int64, {F32})",
        "combine_kernel": f"void({F32}, {F32}, int64, float32, float32, {F32})",
        "softmax_kernel": f"void({F32}, int64, int64, {F32})",
        "copy_kernel": f"void({F32}, int64, int64, int64, int64, int64, {F32})",
        "permute_kernel": f"void({F32}, {I64}, {I64}, {F32})",
        "lrn_kernel": f"void({F32}, int64, int64, int64, float32, float32, float32, {F32})",
    },
    "ifmr": {
        "_squared_errors": f"void({F32}, {F32}, {F32}, {F32}, float64[:, ::1])",
    },
    "search": {
        "_bin_errors": f"void({F64}, {F64}, {F64}, {F64}, {F64}, {F64}, {F64})",
        "_divergences": f"void({F64}, {F64}, {F64}, {F64}, {F64}, int64, {F64})",
        "_hfmg_errors": f"void({F64}, int64[:, ::1], float64, int64, {F64})",
    },
    "gemm.tiles": {
        "float_tiles": FLOAT_TILES,
        "plain_tiles": WORD_TILES,
        "dp4a_tiles": WORD_TILES,
    },
    "gemm.mma": {"mma_tiles": WORD_TILES},
    "gemm.packing": {
        "_pad_floats": f"void({F32}, ImageSizes, float32, {F32})",
        "_pack_words": f"void({I8}, ImageSizes, int64, {I32})",
        "_order_floats": f"void({F32}, int64[:, ::1], WeightSizes, {F32})",
        "_order_words": f"void({I8}, int64[:, ::1], WeightSizes, {I32}, {I32})",
        "_repeat": f"void({I32}, {I32})",
    },
    "conv": {
        "_one_channel": ONE_CHANNEL.format(I8, I32, "int32", F32),
        "_one_channel_floats": ONE_CHANNEL.format(F32, F32, "float32", F32),
    },
    "inner_product": {
        "_few_rows": f"void(int8[:, ::1], int8[:, ::1], {I32}, int32, int64, {F32}, {I8})",
        "_few_rows_floats": f"void({TABLE}, {TABLE}, {F32}, float32, int64, {F32}, {F32})",
    },
    "avg_pool": {
        "_avg_pool": f"void({I8}, {POOL}, int32, int64, {F32}, {I8})",
        "_avg_pool_floats": f"void({F32}, {POOL}, float32, int64, {F32}, {F32})",
    },
    "max_pool": {
        "_max_pool": f"void({F32}, {PAIR}, {PAIR}, {PAIR}, {PAIR}, {PAIR}, {F32}, {I64})",
    },
}

#: Kernels that quantize nothing: there a product and a sum may round once.
FLOAT_SUMS = {
    ("elementwise", name)
    for name in ("affine_kernel", "combine_kernel", "softmax_kernel", "lrn_kernel")
} | {
    ("gemm.tiles", "float_tiles"),
    ("conv", "_one_channel_floats"),
    ("inner_product", "_few_rows_floats"),
}


def signature(module: str, name: str) -> Any:
    """Return a kernel's signature as numba's types."""
    from numba.core import types

    from kernels.cuda.conv import Sizes as ConvSizes
    from kernels.cuda.gemm.packing import ImageSizes, WeightSizes
    from kernels.cuda.gemm.tiles import Sizes as GemmSizes

    tuples = {
        name: types.NamedUniTuple(types.int64, len(fields._fields), fields)
        for name, fields in {
            "ConvSizes": ConvSizes,
            "GemmSizes": GemmSizes,
            "ImageSizes": ImageSizes,
            "WeightSizes": WeightSizes,
        }.items()
    }
    return eval(SIGNATURES[module][name], {**vars(types), **tuples})
