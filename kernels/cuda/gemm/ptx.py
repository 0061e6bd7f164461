"""Instructions that have no name in Numba: `dp4a` and `mma`; the one file that speaks PTX.

In the simulator, which has no warps, `dp4a` is a Python function of the same contract and `mma`
is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.jit import SIMULATED

__all__ = ["dp4a", "mma"]

#: What `mma` runs: 16 x 32 times 32 x 8 of int8, summed in int32 without saturation.
_MMA = (
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
    "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
)

if SIMULATED:

    def dp4a(a: Any, b: Any, c: Any) -> Any:
        """Return ``c`` plus the product of two words of four int8 each, modulo 2**32."""
        left, right = (np.array([v], np.int32).view(np.int8).astype(np.int64) for v in (a, b))
        return np.int64(int(c) + int(left @ right)).astype(np.int32)

    def mma(a: Any, b: Any, c: Any) -> Any:
        """Refuse: the simulator has no warps."""
        raise NotImplementedError("the simulator has no warps")

else:
    from llvmlite import ir
    from numba.cuda import types as _types
    from numba.cuda.extending import intrinsic

    types: Any = _types
    _I32 = ir.IntType(32)

    def _call(builder: Any, result: Any, text: str, constraints: str, values: list[Any]) -> Any:
        """Emit an instruction without side effects."""
        kind = ir.FunctionType(result, [_I32] * len(values))
        return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=False), values)

    @intrinsic
    def dp4a(typing: Any, a: Any, b: Any, c: Any) -> Any:
        """Return ``c`` plus the product of two words of four int8 each, modulo 2**32."""

        def generate(context, builder, signature, values):
            return _call(builder, _I32, "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", list(values))

        return types.int32(types.int32, types.int32, types.int32), generate

    @intrinsic
    def mma(typing: Any, a: Any, b: Any, c: Any) -> Any:
        """Return a warp's ``a @ b + c``: each thread holds 4, 2 and 4 words, see `gemm`."""

        def generate(context, builder, signature, values):
            fragments = zip(values, (4, 2, 4), strict=True)
            words = [builder.extract_value(v, i) for v, n in fragments for i in range(n)]
            four = ir.LiteralStructType([_I32] * 4)
            sums = _call(builder, four, _MMA, ",".join(["=r"] * 4 + ["r"] * 10), words)
            parts = [builder.extract_value(sums, i) for i in range(4)]
            return context.make_tuple(builder, signature.return_type, parts)

        four, two = types.UniTuple(types.int32, 4), types.UniTuple(types.int32, 2)
        return four(four, two, four), generate
