"""Old forms of a net, made into the current one: V1 layers and legacy inputs.

The rules are those of Caffe's ``upgrade_proto.cpp``.
"""

from __future__ import annotations

from caffeio.errors import NetError
from caffeio.proto import caffe_pb2 as pb
from caffeio.prototxt import parse_text
from caffeio.upgrade_v0 import upgrade_v0_layers

__all__ = ["upgrade_net"]

#: V1 layer types whose name in the current format is not the same word in CamelCase.
_V1_TYPES = {
    "ABSVAL": "AbsVal", "ARGMAX": "ArgMax", "BNLL": "BNLL", "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output", "IM2COL": "Im2col", "LRN": "LRN", "MVN": "MVN",
    "RELU": "ReLU", "SOFTMAX_LOSS": "SoftmaxWithLoss", "TANH": "TanH",
    # of forks, beyond the enum
    "BN": "BN", "ELU": "ELU", "LSTM": "LSTM", "PRELU": "PReLU", "PSROI_POOLING": "PSROIPooling",
    "RELU6": "ReLU6", "RNN": "RNN", "ROI_POOLING": "ROIPooling", "SPP": "SPP",
}  # fmt: skip
_DATA_FIELDS = {"Data": "data_param", "ImageData": "image_data_param",
                "WindowData": "window_data_param"}  # fmt: skip


def upgrade_net(net: pb.NetParameter) -> tuple[pb.NetParameter, tuple[str, ...]]:
    """Return a net in the current format.

    Parameters
    ----------
    net : NetParameter
        A net in any format. It is not changed.

    Returns
    -------
    net : NetParameter
        With `layer` only: V0 and V1 layers upgraded, padding layers merged into the
        convolutions that read them, legacy inputs made into an Input layer.
    notes : tuple of str
        Parameters that have no place in the current format.

    Raises
    ------
    NetError
        If layers of the old and the current format are mixed, or if the legacy inputs do
        not fit their shapes.
    """
    upgraded = pb.NetParameter()
    upgraded.CopyFrom(net)
    notes: list[str] = []
    if net.layers:
        if net.layer:
            raise NetError("the net mixes 'layer' and the older 'layers'; use one of them")
        del upgraded.layers[:]
        layers = list(net.layers)
        if any(layer.HasField("layer") for layer in layers):
            current, notes = upgrade_v0_layers(layers)
        else:
            current = [_from_v1(layer) for layer in layers]
            notes = [
                _crop_note(x.name) for x in current if x.type == "Crop" and not x.crop_param.offset
            ]
        upgraded.layer.extend(current)
    for layer in upgraded.layer:
        if layer.HasField("convolution_param"):
            _upgrade_holes(layer.convolution_param)
    if net.input:
        _upgrade_inputs(upgraded)
    return upgraded, tuple(notes)


def _upgrade_holes(p: pb.ConvolutionParameter) -> None:
    """Say DeepLab's `hole` as Caffe does: dilation."""
    holes = [p.hole_h or p.hole or 1, p.hole_w or p.hole or 1]
    if max(holes) > 1 and not p.dilation:
        p.dilation.extend(holes[:1] if holes[0] == holes[1] else holes)
    for name in ("hole", "hole_h", "hole_w"):
        p.ClearField(name)


def _crop_note(layer: str) -> str:
    return (
        f"layer '{layer}': the fork that has CROP finds the offset by itself, from the layers "
        "before; here it is 0, as in Caffe's Crop: give crop_param { offset: ... }"
    )


def _v1_type(old: pb.V1LayerParameter) -> str:
    name = old.unknown_type or pb.V1LayerParameter.LayerType.Name(old.type)
    if name == "NONE":
        return ""
    return _V1_TYPES.get(name, "".join(word.capitalize() for word in name.split("_")))


def _from_v1(old: pb.V1LayerParameter) -> pb.LayerParameter:
    layer = pb.LayerParameter(
        name=old.name, type=_v1_type(old), bottom=old.bottom, top=old.top,
        include=old.include, exclude=old.exclude, loss_weight=old.loss_weight,
    )  # fmt: skip
    if not layer.type:
        raise NetError("has no type", old.name)
    for field, value in old.ListFields():
        if field.name.endswith("_param") and field.message_type is not None:
            getattr(layer, field.name).CopyFrom(value)
    count = max(len(old.param), len(old.blob_share_mode), len(old.blobs_lr),
                len(old.weight_decay))  # fmt: skip
    for i in range(count):
        spec = layer.param.add()
        if i < len(old.param):
            spec.name = old.param[i]
        if i < len(old.blob_share_mode):
            spec.share_mode = old.blob_share_mode[i]  # type: ignore[assignment]
        if i < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[i]
        if i < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[i]
    _move_transform(layer)
    for unknown in old.unknown_field:
        if not unknown.path and unknown.name in pb.LayerParameter.DESCRIPTOR.fields_by_name:
            layer.MergeFrom(_of_the_current_format(unknown))
        else:
            layer.unknown_field.append(unknown)
    return layer


def _of_the_current_format(unknown: pb.UnknownField) -> pb.LayerParameter:
    """Return a layer with a field that V1 lacks: forks gave it to old layers (bn_param)."""
    lines = "\n" * (unknown.line - 1)  # so that errors and notes name the right one
    net, _ = parse_text(f"{lines}layer {{ {unknown.text} }}", pb.NetParameter(), unknown.file)
    return net.layer[0]


def _move_transform(layer: pb.LayerParameter) -> None:
    """Move what old data layers say of preprocessing into transform_param."""
    if layer.type not in _DATA_FIELDS:
        return
    data = getattr(layer, _DATA_FIELDS[layer.type])
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if data.HasField(name):
            setattr(layer.transform_param, name, getattr(data, name))
            data.ClearField(name)


def _upgrade_inputs(net: pb.NetParameter) -> None:
    """Put an Input layer before the others that makes the net's legacy inputs."""
    names = {layer.name for layer in net.layer}
    name = next(n for n in ("input", *(f"input_{i}" for i in range(len(names) + 1)))
                if n not in names)  # fmt: skip
    layer = pb.LayerParameter(name=name, type="Input", top=net.input)
    count = len(net.input)
    if net.input_shape:
        if len(net.input_shape) not in {1, count}:
            raise NetError(f"the net has {count} inputs but {len(net.input_shape)} input_shape")
        layer.input_param.shape.extend(net.input_shape)
    elif net.input_dim:
        if len(net.input_dim) != 4 * count:
            raise NetError(
                f"the net has {count} inputs but {len(net.input_dim)} input_dim; "
                "four are needed for each"
            )
        for i in range(count):
            layer.input_param.shape.add().dim.extend(net.input_dim[4 * i : 4 * i + 4])
    others = list(net.layer)
    for field in ("input", "input_shape", "input_dim", "layer"):
        net.ClearField(field)
    net.layer.append(layer)
    net.layer.extend(others)
