"""The data that a net's own layers name: Data, ImageData and HDF5Data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from caffeio.data.hdf5 import open_hdf5_list
from caffeio.data.images import open_list
from caffeio.data.mean import read_mean
from caffeio.data.open import detect_kind, open_source
from caffeio.data.source import Source
from caffeio.data.transform import Transform
from caffeio.errors import CaffeFileError, NetError
from caffeio.graph import Layer
from caffeio.proto import caffe_pb2 as pb

__all__ = ["DATA_LAYERS", "NetData", "label_top", "net_source"]

#: Layer types that name their data.
DATA_LAYERS = ("Data", "ImageData", "HDF5Data")


@dataclass(frozen=True)
class NetData:
    """What a net's data layer reads.

    Attributes
    ----------
    inputs : mapping of str to (Source, Transform)
        By the blob that the layer makes.
    label_blob : str or None
        The blob that the layer fills with the samples' labels.
    batch_size : int
    shuffle : bool
        Whether the layer asks for another order in each round.
    """

    inputs: Mapping[str, tuple[Source, Transform]]
    label_blob: str | None
    batch_size: int
    shuffle: bool = False


def net_source(layer: Layer, base: str | Path = ".") -> NetData:
    """Open what a net's data layer names.

    The transform crops from the centre and does not mirror, unless it is told to train.

    Parameters
    ----------
    layer : Layer
        Of the type Data, ImageData or HDF5Data.
    base : path-like
        Where relative paths begin. Caffe takes the folder that it is started in.

    Returns
    -------
    NetData

    Raises
    ------
    NetError
        If the layer is of another type, lacks its source, asks for what is not supported, or
        names a path that does not exist; it names the layer and the path.
    CaffeFileError
        If the data is damaged.
    """
    base = Path(base)
    if layer.type == "Data":
        return _database(layer, base)
    if layer.type == "ImageData":
        return _image_data(layer, base)
    if layer.type == "HDF5Data":
        return _hdf5_data(layer, base)
    raise NetError(
        f"is a {layer.type} layer; only Data, ImageData and HDF5Data name their data", layer.name
    )


def _existing(layer: Layer, base: Path, name: str, what: str) -> Path:
    if not name:
        raise NetError(f"names no {what}", layer.name)
    path = base / name
    if not os.path.exists(path):
        raise NetError(
            f"names the {what} '{path}', which does not exist; set root to the folder that Caffe "
            "is started from, where relative paths begin",
            layer.name,
        )
    return path


def _batch_size(layer: Layer, size: int) -> int:
    if size < 1:
        raise NetError("has no batch_size", layer.name)
    return size


def label_top(layer: Layer) -> str | None:
    """Return the top of a data layer that Caffe fills with labels; None if it has none."""
    if layer.type == "HDF5Data":  # its tops are the names of the datasets
        return "label" if "label" in layer.tops[1:] else None
    labelled = layer.type in ("Data", "ImageData", "MemoryData") and len(layer.tops) > 1
    return layer.tops[1] if labelled else None


def _database(layer: Layer, base: Path) -> NetData:
    p = layer.param.data_param
    path = _existing(layer, base, p.source, "source")
    t = layer.param.transform_param
    color = True if t.force_color or p.force_encoded_color else False if t.force_gray else None
    kind = detect_kind(path)
    if kind not in {"lmdb", "leveldb"}:
        raise NetError(f"names the source '{path}', which is no LMDB or LevelDB", layer.name)
    source = open_source(path, kind, color=color)
    try:
        transform = _transform(layer, base, None)
    except (NetError, CaffeFileError):
        source.close()
        raise
    return NetData(
        {layer.tops[0]: (source, transform)}, label_top(layer), _batch_size(layer, p.batch_size)
    )


def _image_data(layer: Layer, base: Path) -> NetData:
    p = layer.param.image_data_param
    path = _existing(layer, base, p.source, "source")
    root = base / p.root_folder
    if (p.new_height > 0) != (p.new_width > 0):
        raise NetError("sets one of new_height and new_width; Caffe needs both", layer.name)
    resize = (p.new_height, p.new_width) if p.new_height else None
    transform = _transform(layer, base, resize)
    source = open_list(path, root, p.is_color)
    return NetData(
        {layer.tops[0]: (source, transform)},
        label_top(layer),
        _batch_size(layer, p.batch_size),
        p.shuffle,
    )


def _hdf5_data(layer: Layer, base: Path) -> NetData:
    p = layer.param.hdf5_data_param
    path = _existing(layer, base, p.source, "source")
    label = label_top(layer)
    data = [top for top in layer.tops if top != label]
    inputs = {
        top: (
            open_hdf5_list(path, top, label if i == 0 else None, base, exact=True),
            Transform(),
        )
        for i, top in enumerate(data)
    }
    return NetData(inputs, label, _batch_size(layer, p.batch_size), p.shuffle)


def _transform(layer: Layer, base: Path, resize: tuple[int, int] | None) -> Transform:
    t = layer.param.transform_param
    if t.HasField("resize_param"):
        r = t.resize_param
        if r.resize_mode != pb.ResizeParameter.WARP:
            raise NetError(
                "asks for a resize_mode other than WARP, which is not supported", layer.name
            )
        resize = (r.height, r.width)
    crop: tuple[int, int] | int | None = t.crop_size or None
    if t.crop_h or t.crop_w:
        crop = (t.crop_h, t.crop_w)
    if t.mean_file and t.mean_value:
        raise NetError("sets mean_file and mean_value; keep one", layer.name)
    mean: object = tuple(t.mean_value) or None
    if t.mean_file:
        mean = read_mean(_existing(layer, base, t.mean_file, "mean_file"))
    try:
        return Transform(resize, crop, "BGR", mean, t.scale, mirror=t.mirror)  # type: ignore[arg-type]
    except ValueError as error:
        raise NetError(str(error), layer.name) from None
