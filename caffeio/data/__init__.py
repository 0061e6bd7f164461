"""The data a Caffe user has, as batches of float32 arrays.

>>> source = open_source("images")  # doctest: +SKIP
>>> transform = Transform(resize=(256, 256), crop=227, mean=(104, 117, 123))
>>> for batch in batches({"data": (source, transform)}, batch_size=32):  # doctest: +SKIP
...     batch.inputs["data"]  # N×C×H×W float32
"""

from __future__ import annotations

from caffeio.data.batches import Batch, batches
from caffeio.data.choose import Choice, choose_samples
from caffeio.data.databases import LevelDBSource
from caffeio.data.images import ImageSource
from caffeio.data.mean import read_mean
from caffeio.data.net_source import DATA_LAYERS, NetData, label_top, net_source
from caffeio.data.open import KINDS, detect_kind, open_source
from caffeio.data.source import NotEnoughData, Sample, Source
from caffeio.data.transform import Transform

__all__ = [
    "DATA_LAYERS",
    "KINDS",
    "Batch",
    "Choice",
    "ImageSource",
    "LevelDBSource",
    "NetData",
    "NotEnoughData",
    "Sample",
    "Source",
    "Transform",
    "batches",
    "choose_samples",
    "detect_kind",
    "label_top",
    "net_source",
    "open_source",
    "read_mean",
]
