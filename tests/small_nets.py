"""A small Caffe net with every kind of layer that matters to quantization, and a job for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from layer_nets import with_blobs

import caffeio

CONV = "convolution_param { num_output: %d kernel_size: %d pad: %d group: %d bias_term: %s }"


def _layer(name: str, kind: str, bottoms: str, top: str, params: str = "") -> str:
    ends = " ".join(f'bottom: "{b}"' for b in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {ends} top: "{top}" {params} }}\n'


TEXT = (
    'name: "small"\n'
    'layer { name: "data" type: "Input" top: "data" '
    "input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }\n"
    + _layer("conv1", "Convolution", "data", "conv1", CONV % (8, 3, 1, 1, "false"))
    + _layer("bn1", "BatchNorm", "conv1", "conv1")
    + _layer("scale1", "Scale", "conv1", "conv1", "scale_param { bias_term: true }")
    + _layer("relu1", "ReLU", "conv1", "conv1")
    + _layer("dw", "Convolution", "conv1", "dw", CONV % (8, 3, 1, 8, "true"))
    + _layer("branch", "Convolution", "conv1", "branch", CONV % (8, 1, 0, 1, "true"))
    + _layer("sum", "Eltwise", "dw branch", "sum")
    + _layer("dilated", "Convolution", "sum", "dilated",
             "convolution_param { num_output: 4 kernel_size: 3 pad: 2 dilation: 2 }")
    + _layer("up", "Deconvolution", "dilated", "up",
             "convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 bias_term: false }")
    + _layer("up_bn", "BatchNorm", "up", "up_bn")
    + _layer("up_scale", "Scale", "up_bn", "up_scale", "scale_param { bias_term: true }")
    + _layer("avg", "Pooling", "up_scale", "avg",
             "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }")
    + _layer("max", "Pooling", "avg", "max", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    + _layer("fc", "InnerProduct", "max", "fc", "inner_product_param { num_output: 10 }")
    + _layer("prob", "Softmax", "fc", "prob")
)  # fmt: skip


def small_net(seed: int = 0) -> caffeio.Net:
    """Return the net with random weights and running averages."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        fan = np.prod(shape[1:]) if len(shape) > 1 else 4
        return rng.normal(size=shape, scale=1 / np.sqrt(fan)).astype(np.float32)

    def norm(channels: int) -> list[np.ndarray]:
        factor = np.float32(3.0)
        return [
            normal(channels) * factor,
            rng.uniform(0.5, 2, channels).astype(np.float32) * factor,
            np.array([factor]),
        ]

    return with_blobs(caffeio.parse_net(TEXT), {
        "conv1": [normal(8, 3, 3, 3)], "bn1": norm(8), "scale1": [normal(8) + 1, normal(8)],
        "dw": [normal(8, 1, 3, 3), normal(8)], "branch": [normal(8, 8, 1, 1), normal(8)],
        "dilated": [normal(4, 8, 3, 3), normal(4)], "up": [normal(4, 6, 4, 4)],
        "up_bn": norm(6), "up_scale": [normal(6) + 1, normal(6)],
        "fc": [normal(10, 6 * 7 * 6), normal(10)],
    })  # fmt: skip


def samples(count: int, seed: int = 1) -> np.ndarray:
    """Return inputs (count, 3, 12, 10)."""
    return np.random.default_rng(seed).normal(size=(count, 3, 12, 10)).astype(np.float32)


def write_job(folder: Path, net: caffeio.Net | None = None, **tables: str) -> Path:
    """Write model, data and config into a folder; return the config's path.

    `tables` add lines to a table of the config (``calibrate="exact = true"``) or, with the
    name ``extra``, at its end.
    """
    net = net or small_net()
    caffeio.write_prototxt(net, folder / "net.prototxt")
    caffeio.write_caffemodel(net, folder / "net.caffemodel")
    labels = np.arange(24) % 10
    np.savez(folder / "data.npz", data=samples(24), label=labels)
    config = folder / "config.toml"
    config.write_text(f"""
[model]
prototxt = "net.prototxt"
caffemodel = "net.caffemodel"
[calibrate]
batch_num = 2
batch_size = 4
data.source = "data.npz"
{tables.get("calibrate", "")}
[evaluate]
batch_size = 5
data.source = "data.npz"
data.start = 8
{tables.get("evaluate", "")}
[output]
directory = "out"
{tables.get("output", "")}
{tables.get("extra", "")}
""")
    return config
