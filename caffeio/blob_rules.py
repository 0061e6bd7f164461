"""Which blobs a layer learns, as far as its parameters alone tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caffeio.graph import Layer

__all__ = ["BlobRule", "expected_blobs"]

#: A blob's shape, None where it depends on the input; None for the whole if the rank does too.
BlobRule = tuple[int | None, ...] | None


def _convolution(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    p = layer.param.convolution_param
    kernel: tuple[int | None, ...]
    if p.HasField("kernel_h") or p.HasField("kernel_w"):
        kernel = (p.kernel_h, p.kernel_w)
    elif len(p.kernel_size) > 1:
        kernel = tuple(p.kernel_size)
    else:
        kernel = (p.kernel_size[0] if p.kernel_size else None,) * spatial
    # ConvolutionDepthwise never reads num_output: it has the channels of its bottom
    read = p.HasField("num_output") and layer.type != "ConvolutionDepthwise"
    outputs = p.num_output if read else None
    weight: BlobRule = (outputs, None, *kernel)
    if layer.type == "Deconvolution":
        weight = (None, outputs // max(p.group, 1) if outputs is not None else None, *kernel)
    return (weight, (outputs,)) if p.bias_term else (weight,)


def _inner_product(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    p = layer.param.inner_product_param
    weight = (None, p.num_output) if p.transpose else (p.num_output, None)
    return (weight, (p.num_output,)) if p.bias_term else (weight,)


def _batch_norm(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    own = layer.param.batch_norm_param.scale_bias  # NVCaffe: a scale and a bias of its own
    return ((None,), (None,), (1,), *(((None,), (None,)) if own else ()))


def _axes(count: int) -> BlobRule:
    return None if count < 0 else (None,) * count


def _scale(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    p = layer.param.scale_param
    if len(layer.bottoms) > 1:
        return (None,) if p.bias_term else ()
    return (_axes(p.num_axes),) * (2 if p.bias_term else 1)


def _bias(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    return () if len(layer.bottoms) > 1 else (_axes(layer.param.bias_param.num_axes),)


def _prelu(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    return ((),) if layer.param.prelu_param.channel_shared else ((None,),)


def _normalize(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    return ((),) if layer.param.norm_param.channel_shared else ((None,),)


def _embed(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    p = layer.param.embed_param
    weight = (p.input_dim, p.num_output)
    return (weight, (p.num_output,)) if p.bias_term else (weight,)


def _recurrent(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    p = layer.param.recurrent_param
    n = p.num_output
    gates = 4 * n if layer.type == "LSTM" else n
    hidden = (2 if layer.type == "LSTM" else 1) if p.expose_hidden else 0
    rules: list[BlobRule] = [(gates, None), (gates,)]
    if len(layer.bottoms) - hidden > 2:  # a third bottom: input that is the same at all times
        rules.append((gates, None))
    rules.append((gates, n))
    if layer.type == "RNN":
        rules += [(n, n), (n,)]
    return tuple(rules)


def _parameter(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    return (tuple(layer.param.parameter_param.shape.dim),)


def _dequant(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    return ((None,), (None,), (None,))  # deq_scale, shift_bit, offset_w


def _qat(layer: Layer, spatial: int) -> tuple[BlobRule, ...]:
    return (None, None)  # clip_max, clip_min; or quantized weights, float weights


_RULES: dict[str, Callable[[Layer, int], tuple[BlobRule, ...]]] = {
    "Convolution": _convolution, "Deconvolution": _convolution,
    "DepthwiseConvolution": _convolution, "ConvolutionDepthwise": _convolution,
    "InnerProduct": _inner_product, "BatchNorm": _batch_norm, "Scale": _scale, "Bias": _bias,
    "PReLU": _prelu, "Normalize": _normalize, "Embed": _embed, "LSTM": _recurrent,
    "RNN": _recurrent, "Parameter": _parameter, "DeQuant": _dequant, "ActivationQAT": _qat,
    "WeightQAT": _qat,
}  # fmt: skip


def expected_blobs(layer: Layer, spatial_axes: int = 2) -> tuple[BlobRule, ...] | None:
    """Return the shapes of the blobs that a layer learns.

    Parameters
    ----------
    layer : Layer
    spatial_axes : int
        How many axes a convolution slides over, where its parameters leave it open.

    Returns
    -------
    tuple of BlobRule, or None
        A rule for each blob, empty for a layer without weights; None if the layer's type is
        not one that is known to learn, so that any count may be right.
    """
    rule = _RULES.get(layer.type)
    return rule(layer, spatial_axes) if rule else None
