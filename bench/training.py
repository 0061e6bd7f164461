"""One step of training with fake quantization: forward, backward and the solver's update.

The peers are the same nets written by hand in torch, with torch's own fake quantization: ranges
that follow the data (``observed``), as its users train, and ranges that are learned like ours
(``learned``), for which a gradient must be computed as far as the images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import caffeio
from bench.workload import OURS, Run, Side, Workload

__all__ = ["workloads"]

_CLASSES = 10
_SOLVER = """
net: "net.prototxt" base_lr: 1e-5 momentum: 0.9 weight_decay: 0.0005 lr_policy: "fixed"
max_iter: 1000000
"""
_DATA = 'layer { name: "data" type: "Input" top: "data" top: "label" }'
_LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
_FILL = 'weight_filler { type: "xavier" }'
_LAYERS = {
    "conv": f'type: "Convolution" convolution_param {{ {_FILL} '
    "num_output: %d kernel_size: %d pad: %d }",
    "max": 'type: "Pooling" pooling_param { pool: MAX kernel_size: %d stride: %d }',
    "ave": 'type: "Pooling" pooling_param { pool: AVE kernel_size: %d stride: %d }',
    "relu": 'type: "ReLU"',
    "ip": f'type: "InnerProduct" inner_product_param {{ {_FILL} num_output: %d }}',
}


@dataclass(frozen=True)
class _Net:
    """A net as a list of steps, from which both forms are made.

    A step is ("conv", outputs, kernel, pad), ("max", kernel, stride), ("ave", kernel, stride),
    ("relu",) or ("ip", outputs).
    """

    name: str
    image: tuple[int, int, int]
    batch: int
    steps: tuple[tuple[Any, ...], ...]


_NETS = (
    _Net(
        "LeNet, batch 64",
        (1, 28, 28),
        64,
        (
            ("conv", 20, 5, 0), ("max", 2, 2), ("conv", 50, 5, 0), ("max", 2, 2),
            ("ip", 500), ("relu",), ("ip", _CLASSES),
        ),
    ),
    _Net(
        "cifar10_full, batch 100",
        (3, 32, 32),
        100,
        (
            ("conv", 32, 5, 2), ("max", 3, 2), ("relu",), ("conv", 32, 5, 2), ("relu",),
            ("ave", 3, 2), ("conv", 64, 5, 2), ("relu",), ("ave", 3, 2), ("ip", _CLASSES),
        ),
    ),
)  # fmt: skip


def workloads() -> tuple[Workload, ...]:
    """Return a step of training for each net."""
    return tuple(
        Workload(
            "training step, INT8",
            net.name,
            partial(_inputs, net),
            (
                Side(OURS, partial(_ours, net)),
                Side("torch", partial(_torch, net, False), label="torch, observed"),
                Side("torch", partial(_torch, net, True), label="torch, learned"),
            ),
            missing=_missing,
        )
        for net in _NETS
    )


def _missing() -> str | None:
    from bench import peers

    return peers.missing("torch")


def _inputs(net: _Net) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.uniform(0, 1, (net.batch, *net.image)).astype(np.float32)
    return images, rng.integers(0, _CLASSES, net.batch).astype(np.float32)


def _prototxt(net: _Net) -> str:
    """Write the net for Caffe."""
    layers, bottom = [_DATA], "data"
    for i, (kind, *numbers) in enumerate(net.steps):
        top = "ip" if i == len(net.steps) - 1 else f"b{i}"
        body = _LAYERS[kind] % tuple(numbers)
        layers.append(f'layer {{ name: "l{i}" bottom: "{bottom}" top: "{top}" {body} }}')
        bottom = top
    return "\n".join([*layers, _LOSS])


def _ours(net: _Net, inputs: tuple[np.ndarray, np.ndarray], threads: int) -> Run:
    """Set the net up as a training does, all that can be quantized in INT8."""
    torch: Any = import_module("torch")
    from caffeio import Value
    from pipeline.qat.plan import DataPlan, FakePlan, WeightPlan
    from pipeline.quantize.eligibility import judge
    from pipeline.retrain.group import Group
    from pipeline.retrain.module import CaffeModule
    from pipeline.retrain.optimizer import Optimizer

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.prototxt").write_text(_prototxt(net))
        (Path(folder) / "solver.prototxt").write_text(_SOLVER)
        solver = caffeio.read_solver(Path(folder) / "solver.prototxt")
        read = caffeio.read_net(solver.train_net, phase="TRAIN")
    batch = {name: torch.from_numpy(x) for name, x in zip(("data", "label"), inputs, strict=True)}
    shapes = {name: tuple(x.shape) for name, x in batch.items()}
    module = CaffeModule(read, shapes, Group(0, 1, torch.device("cpu")))
    quantized_types = {v.layer: v.type for v in judge(read) if v.quantize}
    links = zip(read.layers, read.links, strict=True)
    reads = {layer.name: link.reads[0] for layer, link in links if link.reads}
    data: dict[Value, list[str]] = {}
    for name in quantized_types:
        data.setdefault(reads[name], []).append(name)
    weights = {
        name: WeightPlan(0 if kind == "Convolution" else None, 0)
        for name, kind in quantized_types.items()
        if kind != "Pooling"
    }
    plans = tuple(DataPlan(value, tuple(names), False) for value, names in data.items())
    module.fake_quantize(FakePlan(plans, weights))
    optimizer = Optimizer(solver, module.learned)

    def step() -> float:
        loss = module(batch, True).loss
        loss.backward()
        optimizer.step(0, 1e-5)
        return float(loss.detach())

    return step


def _torch(net: _Net, learned: bool, inputs: tuple[np.ndarray, np.ndarray], threads: int) -> Run:
    """Write the net in torch, with its fake quantization at the same places."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    quantization: Any = import_module("torch.ao.quantization")
    f = torch.nn.functional
    module = torch.nn.Module()
    forward: list[Callable[[Any], Any]] = []
    channels, height, width = net.image
    for i, (kind, *p) in enumerate(net.steps):
        if kind in ("conv", "ip", "ave"):
            fake = _learned(torch) if learned else quantization.default_fused_act_fake_quant()
            module.add_module(f"data{i}", fake)
            forward.append(fake)
        if kind in ("conv", "ip"):
            features = channels if kind == "conv" else channels * height * width
            layer = (
                torch.nn.Conv2d(features, p[0], p[1], padding=p[2])
                if kind == "conv" else torch.nn.Linear(features, p[0])
            )  # fmt: skip
            weight = (
                quantization.default_fused_per_channel_wt_fake_quant()
                if kind == "conv" else quantization.default_fused_wt_fake_quant()
            )  # fmt: skip
            module.add_module(f"layer{i}", layer)
            module.add_module(f"weight{i}", weight)
            forward.append(partial(_conv if kind == "conv" else _linear, f, layer, weight))
            grown = 2 * p[2] - p[1] + 1 if kind == "conv" else 0
            channels, height, width = (
                (p[0], height + grown, width + grown) if kind == "conv" else (p[0], 1, 1)
            )
        elif kind in ("max", "ave"):
            pool = f.max_pool2d if kind == "max" else f.avg_pool2d
            forward.append(partial(_pool, pool, *p))
            height, width = (-(-(n - p[0]) // p[1]) + 1 for n in (height, width))
        else:
            forward.append(f.relu)
    x, label = torch.from_numpy(inputs[0]), torch.from_numpy(inputs[1]).long()
    optimizer = torch.optim.SGD(module.parameters(), 1e-5, momentum=0.9, weight_decay=0.0005)

    def step() -> float:
        y = x
        for call in forward:
            y = call(y)
        loss = f.cross_entropy(y, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _learned(torch: Any) -> Any:
    """Return torch's fake quantization with a learned scale and zero point."""
    module = torch.nn.Module()
    scale = torch.nn.Parameter(torch.tensor([0.05]))
    zero = torch.nn.Parameter(torch.tensor([128.0]))
    module.register_parameter("scale", scale)
    module.register_parameter("zero", zero)
    fake = torch._fake_quantize_learnable_per_tensor_affine
    module.forward = lambda x: fake(x, scale, zero, 0, 255, 1.0)
    return module


def _conv(f: Any, layer: Any, weight: Any, x: Any) -> Any:
    return f.conv2d(x, weight(layer.weight), layer.bias, padding=layer.padding)


def _linear(f: Any, layer: Any, weight: Any, x: Any) -> Any:
    return f.linear(x.flatten(1), weight(layer.weight), layer.bias)


def _pool(pool: Any, kernel: int, stride: int, x: Any) -> Any:
    return pool(x, kernel, stride, ceil_mode=True)
