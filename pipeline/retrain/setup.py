"""What a training is made of: solver, nets, data and modules, read and opened."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import caffeio
from caffeio import Layer, Net, Solver
from caffeio.data import DATA_LAYERS, net_source
from pipeline.config.base import Data
from pipeline.config.load import Config
from pipeline.config.retrain import RetrainConfig
from pipeline.errors import ConfigError
from pipeline.layers import layer_type
from pipeline.layers.source import declared_batch
from pipeline.qat.net import has_qat, without_qat
from pipeline.quantize.feed import Feed, LabelInput, open_feed
from pipeline.quantize.prepare import as_configured
from pipeline.retrain.feed import TrainingFeed
from pipeline.retrain.group import Group
from pipeline.retrain.layers import Shape
from pipeline.retrain.module import CaffeModule
from pipeline.retrain.plan import Test
from pipeline.retrain.snapshot import fingerprint

__all__ = ["Setup", "set_up", "training_device"]

#: Settings that may differ when a training goes on.
_FREE = ("workers", "snapshot_interval", "patience", "device")


@dataclass(frozen=True)
class Setup:
    """A training before its first iteration.

    Attributes
    ----------
    config : Config
    settings : RetrainConfig
    solver : Solver
    net : Net
        The training net, without QAT layers.
    qat : Net or None
        The training net as it is, if it has such layers.
    module : CaffeModule
        In plain float.
    feed : TrainingFeed
    group : Group
    seed : int
    """

    config: Config
    settings: RetrainConfig
    solver: Solver
    net: Net
    qat: Net | None
    module: CaffeModule
    feed: TrainingFeed
    group: Group
    seed: int

    def fingerprint(self) -> dict[str, str]:
        """Return what a snapshot of this training belongs to."""
        weights = {name: [b.tobytes() for b in bs] for name, bs in self._begin().items()}
        settings = self.settings.model_dump(exclude=set(_FREE))
        return fingerprint(
            net=caffeio.to_prototxt(self.net),
            weights=weights,
            solver=str(self.solver.param),
            data=(self.settings.data, self.config.transform, self.feed.order),
            settings=settings,
        )

    def _begin(self) -> dict[str, tuple[np.ndarray, ...]]:
        return {layer.name: layer.blobs for layer in self.net.layers if layer.blobs}


def training_device(settings: RetrainConfig) -> str:
    """Return where torch computes: "cpu" or "cuda".

    Raises
    ------
    ConfigError
        If CUDA is asked for and there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("retrain.device is 'cuda', but PyTorch finds no CUDA device")
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device


def set_up(config: Config, group: Group, opened: ExitStack) -> Setup:
    """Read and open everything; what was opened is closed by `opened`.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        If something is missing or does not fit.
    """
    settings = config.retrain
    assert settings is not None
    solver = caffeio.read_solver(settings.solver, settings.root)
    seed = settings.seed if settings.seed is not None else max(solver.param.random_seed, 0)
    torch.manual_seed(seed + group.rank)
    net = caffeio.read_solver_net(solver, "TRAIN", config.model.caffemodel, partial=True)
    net = as_configured(config, net)
    qat = net if has_qat(net) else None
    if qat is not None:
        if settings.quantize:
            raise ConfigError(
                f"'{solver.train_net}' has QAT layers already: retrain.quantize = false trains "
                "it with them, and --from-qat then quantizes"
            )
        net = without_qat(qat)
    feed = _feed(config, net, solver.train_net, "retrain.data", seed, group, opened)
    shapes = _input_shapes(net, feed)
    module = CaffeModule(net, shapes, group, rng=np.random.default_rng(seed))
    return Setup(config, settings, solver, net, qat, module, feed, group, seed)


def set_up_test(setup: Setup, opened: ExitStack) -> Test | None:
    """Return how the training is tested; None if the solver does not test.

    Raises
    ------
    ConfigError
        If there is no output to judge by, or test data that no test would read.
    """
    settings, solver = setup.settings, setup.solver
    if solver.test_net is None:
        for key in ("test_data", "patience", "metric"):
            if getattr(settings, key):
                raise ConfigError(
                    f"retrain.{key}: '{solver.path}' does not test; give it test_iter and "
                    "test_interval"
                )
        return None
    net = caffeio.read_solver_net(solver, "TEST")
    net = without_qat(net) if has_qat(net) else net
    feed = _feed(
        setup.config, net, solver.test_net, "retrain.test_data", setup.seed, setup.group, opened
    )
    module = CaffeModule(net, _input_shapes(net, feed), setup.group, trained=setup.module)
    metric, rising = _metric(net, settings.metric)
    p = solver.param
    return Test(
        module, feed, solver.test_iter, p.test_interval, p.test_initialization, metric, rising
    )


def _metric(net: Net, metric: str | None) -> tuple[str, bool]:
    """Return the output to judge by, and whether more of it is better."""
    makers = {top: layer for layer in net.layers for top in layer.tops}
    kinds = {b: layer_type(makers[b]) for b in net.outputs}
    scalars = [b for b, kind in kinds.items() if kind.measures and not kind.loss]
    losses = [b for b, kind in kinds.items() if kind.loss]
    if metric is not None and metric not in net.outputs:
        raise ConfigError(
            f"retrain.metric: the test net's outputs are {', '.join(net.outputs)}, not '{metric}'"
        )
    if metric is None and not scalars + losses:
        raise ConfigError(
            "the test net has no Accuracy or loss to judge by; name an output in retrain.metric"
        )
    chosen = metric or (scalars + losses)[0]
    return chosen, not kinds[chosen].loss


def _feed(
    config: Config,
    net: Net,
    path: Path,
    where: str,
    seed: int,
    group: Group,
    opened: ExitStack,
) -> TrainingFeed:
    """Open the data of a net: the tables of the config, or what its own data layer names."""
    settings = config.retrain
    assert settings is not None
    training = where == "retrain.data"
    tables: Data = settings.data if training else settings.test_data
    shuffle = training
    if tables:
        opener = partial(open_feed, net, tables, config.transform, where)
        size = (settings.batch_size if training else None) or declared_batch(net.layers)
        size = size or settings.batch_size or 0
    else:
        layer = _data_layer(net, where)
        base = settings.root or path.parent
        opener = partial(_open_layer, layer, base)
        data = net_source(layer, base)
        for source, _ in data.inputs.values():
            source.close()
        size, shuffle = data.batch_size, training and data.shuffle
    if not size:
        raise ConfigError(f"retrain.batch_size is missing: net '{net.name}' does not say it")
    if training and settings.shuffle is not None:
        shuffle = settings.shuffle
    feed = TrainingFeed(
        opener,
        size,
        group,
        shuffle=shuffle,
        seed=seed,
        workers=settings.workers if training else 0,
        augment=training,
    )
    opened.callback(feed.close)
    return feed


def _data_layer(net: Net, where: str) -> Layer:
    makers = [x for x in net.layers if x.type in DATA_LAYERS]
    if len(makers) != 1:
        raise ConfigError(
            f"[{where}] is missing: net '{net.name}' has {len(makers)} data layers in phase "
            f"{net.phase}, so it does not say what to read"
        )
    return makers[0]


def _open_layer(layer: Layer, base: Path) -> Feed:
    data = net_source(layer, base)
    label = None if data.label_blob is None else LabelInput(data.label_blob)
    return Feed(dict(data.inputs), 0, label)


def _input_shapes(net: Net, feed: TrainingFeed) -> dict[str, Shape]:
    first = next(feed.batches(0, 1))
    absent = [name for name in net.inputs if name not in first]
    if absent:
        raise ConfigError(
            f"no data for the input '{absent[0]}' of net '{net.name}' in phase {net.phase}"
        )
    return {name: tuple(x.shape) for name, x in first.items()}
