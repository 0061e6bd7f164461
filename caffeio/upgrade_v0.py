"""The oldest form of a net, V0: layers whose parameters are one flat list."""

from __future__ import annotations

from collections.abc import Sequence

from caffeio.errors import NetError
from caffeio.proto import caffe_pb2 as pb

__all__ = ["upgrade_v0_layers"]

_TYPES = {
    "accuracy": "Accuracy", "bnll": "BNLL", "concat": "Concat", "conv": "Convolution",
    "data": "Data", "dropout": "Dropout", "euclidean_loss": "EuclideanLoss",
    "flatten": "Flatten", "hdf5_data": "HDF5Data", "hdf5_output": "HDF5Output",
    "im2col": "Im2col", "images": "ImageData", "infogain_loss": "InfogainLoss",
    "innerproduct": "InnerProduct", "lrn": "LRN",
    "multinomial_logistic_loss": "MultinomialLogisticLoss", "pool": "Pooling",
    "relu": "ReLU", "sigmoid": "Sigmoid", "softmax": "Softmax",
    "softmax_loss": "SoftmaxWithLoss", "split": "Split", "tanh": "TanH",
    "window_data": "WindowData",
}  # fmt: skip

#: For each V0 type: its parameter message and the V0 names that go there under another name.
_PARAMS: dict[str, tuple[str, dict[str, str]]] = {
    "conv": ("convolution_param", {
        "num_output": "num_output", "biasterm": "bias_term", "weight_filler": "weight_filler",
        "bias_filler": "bias_filler", "pad": "pad", "kernelsize": "kernel_size",
        "group": "group", "stride": "stride"}),
    "innerproduct": ("inner_product_param", {
        "num_output": "num_output", "biasterm": "bias_term", "weight_filler": "weight_filler",
        "bias_filler": "bias_filler"}),
    "pool": ("pooling_param", {
        "pad": "pad", "kernelsize": "kernel_size", "stride": "stride", "pool": "pool"}),
    "dropout": ("dropout_param", {"dropout_ratio": "dropout_ratio"}),
    "lrn": ("lrn_param", {"local_size": "local_size", "alpha": "alpha", "beta": "beta",
                          "k": "k"}),
    "concat": ("concat_param", {"concat_dim": "concat_dim"}),
    "infogain_loss": ("infogain_loss_param", {"source": "source"}),
    "hdf5_output": ("hdf5_output_param", {}),
    "hdf5_data": ("hdf5_data_param", {"source": "source", "batchsize": "batch_size"}),
    "data": ("data_param", {"source": "source", "batchsize": "batch_size",
                            "rand_skip": "rand_skip"}),
    "images": ("image_data_param", {
        "source": "source", "batchsize": "batch_size", "rand_skip": "rand_skip",
        "shuffle_images": "shuffle", "new_height": "new_height", "new_width": "new_width"}),
    "window_data": ("window_data_param", {
        "source": "source", "batchsize": "batch_size", "det_fg_threshold": "fg_threshold",
        "det_bg_threshold": "bg_threshold", "det_fg_fraction": "fg_fraction",
        "det_context_pad": "context_pad", "det_crop_mode": "crop_mode"}),
}  # fmt: skip
_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size",
              "mirror": "mirror"}  # fmt: skip
_GENERAL = {"name", "type", "blobs", "blobs_lr", "weight_decay", "unknown_field"}


def upgrade_v0_layers(
    layers: Sequence[pb.V1LayerParameter],
) -> tuple[list[pb.LayerParameter], list[str]]:
    """Upgrade V0 layers, merging each padding layer into the convolutions that read it.

    Parameters
    ----------
    layers : sequence of V1LayerParameter
        Each holds a V0 `layer` and its connections. They are not changed.

    Returns
    -------
    layers : list of LayerParameter
    notes : list of str
        V0 parameters that mean nothing for their layer's type.

    Raises
    ------
    NetError
        For a layer that is not V0, a type that is not known, or a padding layer read by
        something that cannot pad.
    """
    padding: dict[str, tuple[str, int]] = {}  # the padded blob: its source and its padding
    upgraded: list[pb.LayerParameter] = []
    notes: list[str] = []
    for outer in layers:
        old = outer.layer
        if not outer.HasField("layer"):
            raise NetError("the net mixes V0 and V1 layers", outer.name)
        if old.type == "padding":
            if len(outer.bottom) != 1 or len(outer.top) != 1:
                raise NetError("a padding layer has one bottom and one top", old.name)
            padding[outer.top[0]] = (outer.bottom[0], old.pad)
            continue
        layer = _upgrade_layer(outer, notes)
        for i, blob in enumerate(layer.bottom):
            if blob in padding:
                _merge_padding(layer, i, *padding[blob])
        for blob in layer.top:
            padding.pop(blob, None)
        upgraded.append(layer)
    return upgraded, notes


def _merge_padding(layer: pb.LayerParameter, index: int, source: str, pad: int) -> None:
    if layer.type == "Convolution":
        layer.convolution_param.pad[:] = [pad]
    elif layer.type == "Pooling":
        layer.pooling_param.pad = pad
    else:
        raise NetError(f"reads a padding layer, but a {layer.type} layer cannot pad", layer.name)
    layer.bottom[index] = source


def _upgrade_layer(outer: pb.V1LayerParameter, notes: list[str]) -> pb.LayerParameter:
    old = outer.layer
    if old.type not in _TYPES:
        raise NetError(f"has the type '{old.type}', which V0 nets do not have", old.name)
    layer = pb.LayerParameter(
        name=old.name, type=_TYPES[old.type], bottom=outer.bottom, top=outer.top
    )
    for i in range(max(len(old.blobs_lr), len(old.weight_decay))):
        spec = layer.param.add()
        if i < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[i]
        if i < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[i]
    layer.unknown_field.extend((*outer.unknown_field, *old.unknown_field))
    group, names = _PARAMS.get(old.type, ("", {}))
    for field, value in old.ListFields():
        if field.name in _GENERAL:
            continue
        if field.name in names:
            _assign(getattr(layer, group), names[field.name], value)
        elif field.name in _TRANSFORM and old.type in {"data", "images", "window_data"}:
            _assign(layer.transform_param, _TRANSFORM[field.name], value)
        elif field.name == group:
            getattr(layer, group).CopyFrom(value)
        else:
            notes.append(
                f"layer '{old.name}': parameter '{field.name}' means nothing for a "
                f"{layer.type} layer; it is ignored"
            )
    return layer


def _assign(message: object, name: str, value: object) -> None:
    """Set a field, whether it is a message, a list or a plain value."""
    target = getattr(message, name)
    if hasattr(target, "CopyFrom"):
        target.CopyFrom(value)
    elif hasattr(target, "append"):
        target.append(value)
    else:
        setattr(message, name, value)
