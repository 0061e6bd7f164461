"""Which blobs a training changes: shared ones, those that reach no loss; and what it remembers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
h5py = pytest.importorskip("h5py")
pytest.importorskip("matplotlib")

from training_jobs import one_thread  # noqa: E402

import caffeio  # noqa: E402
from pipeline.config.load import load_config  # noqa: E402
from pipeline.retrain import plan, trainer  # noqa: E402
from pipeline.retrain.group import Group  # noqa: E402
from pipeline.retrain.setup import Setup, set_up  # noqa: E402
from pipeline.run import main  # noqa: E402

DATA = """layer { name: "d" type: "HDF5Data" top: "x" top: "target"
  hdf5_data_param { source: "d.txt" batch_size: 4 } }
"""
LOSS = 'layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "target" top: "loss" }\n'
SOLVER = 'net: "n.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 6 weight_decay: 0.5 '


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def dense(name: str, bottom: str, top: str, spec: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" {spec} '
        "inner_product_param { num_output: 2 bias_term: false "
        'weight_filler { type: "gaussian" std: 1 } } }\n'
    )


def write(folder: Path, net: str, **arrays: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    arrays = arrays or {"x": rng.normal(size=(8, 3)), "target": rng.normal(size=(8, 2))}
    with h5py.File(folder / "d.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values.astype(np.float32)
    (folder / "d.txt").write_text("d.h5\n")
    (folder / "n.prototxt").write_text('name: "n"\n' + net)
    (folder / "s.prototxt").write_text(SOLVER)
    config = folder / "c.toml"
    config.write_text(
        '[model]\nprototxt = "n.prototxt"\nphase = "TRAIN"\n[retrain]\nsolver = "s.prototxt"\n'
        'quantize = false\ndevice = "cpu"\n[output]\ndirectory = "o"\nprefix = "n"\n'
    )
    return config


@contextmanager
def opened(config: Path) -> Iterator[Setup]:
    with ExitStack() as stack:
        yield set_up(load_config(config), Group(0, 1, torch.device("cpu")), stack)


def trained(folder: Path) -> dict[str, tuple[np.ndarray, ...]]:
    net = caffeio.read_net(folder / "n.prototxt", folder / "o" / "n_trained.caffemodel", "TRAIN")
    return {x.name: x.blobs for x in net.layers if x.blobs}


SHARED = (
    DATA
    + dense("a", "x", "a", 'param { name: "w" }')
    + 'layer { name: "sil" type: "Silence" bottom: "a" }\n'
    + dense("b", "x", "b", 'param { name: "w" %s }')
    + dense("c", "b", "y")
    + LOSS
)


def test_a_shared_blob_is_trained_whichever_of_its_users_a_loss_depends_on(tmp_path: Path):
    config = write(tmp_path, SHARED % "")
    with opened(config) as setup:
        assert [p.name for p in setup.module.learned] == ["a/0", "c/0"]
        begin = setup.module.trained_blobs()["a"][0]
    assert main([str(config), "--quiet"]) == 0
    end = trained(tmp_path)
    np.testing.assert_array_equal(end["a"][0], end["b"][0])
    decayed = begin * 0.95**6
    assert np.abs(end["a"][0] - decayed).max() > 0.01


def test_factors_of_a_shared_blob_are_those_of_the_first_who_gives_them(tmp_path: Path, capsys):
    with opened(write(tmp_path, SHARED % "lr_mult: 3 decay_mult: 2")) as setup:
        shared = setup.module.learned[0]
        assert (shared.name, shared.lr_mult, shared.decay_mult) == ("a/0", 3, 2)
    net = (SHARED % "lr_mult: 3").replace('param { name: "w" }', 'param { name: "w" lr_mult: 2 }')
    assert main([str(write(tmp_path, net)), "--quiet"]) == 1
    err = capsys.readouterr().err
    assert "layer 'b': shared blob 'w' has lr_mult 3 here and 2 in a layer before" in err


def test_what_no_loss_depends_on_decays(tmp_path: Path):
    """Caffe's solver knows no difference between no gradient and one of zero."""
    config = write(tmp_path, DATA + dense("a", "x", "a") + dense("c", "x", "y") + LOSS)
    with opened(config) as setup:
        begin = setup.module.trained_blobs()
    assert main([str(config), "--quiet"]) == 0
    np.testing.assert_allclose(trained(tmp_path)["a"][0], begin["a"][0] * 0.95**6, rtol=1e-5)


def test_a_net_of_which_nothing_reaches_a_loss_is_trained_as_caffe_does(tmp_path: Path):
    config = write(tmp_path, DATA + dense("a", "x", "a") + LOSS.replace('"y"', '"target"'))
    with opened(config) as setup:
        begin = setup.module.trained_blobs()
    assert main([str(config), "--quiet"]) == 0
    np.testing.assert_allclose(trained(tmp_path)["a"][0], begin["a"][0] * 0.95**6, rtol=1e-5)


LSTM = """layer { name: "d" type: "HDF5Data" top: "x" top: "cont" top: "target"
  hdf5_data_param { source: "d.txt" batch_size: 2 } }
layer { name: "l" type: "LSTM" bottom: "x" bottom: "cont" top: "y"
  recurrent_param { num_output: 2 weight_filler { type: "gaussian" std: 0.5 } } }
"""


def test_a_resumed_training_remembers_the_batch_before(tmp_path: Path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(6, 3, 4)),
        "cont": (rng.random((6, 3)) < 0.8) * 1.0,
        "target": rng.normal(size=(6, 3, 2)),
    }
    (tmp_path / "whole").mkdir()
    (tmp_path / "part").mkdir()
    whole, part = (write(tmp_path / f, LSTM + LOSS, **arrays) for f in ("whole", "part"))
    assert main([str(whole), "--quiet"]) == 0
    right = trainer.Trainer._iterate

    def iterate(self: trainer.Trainer, *of: object) -> None:
        if self.iteration == 4:
            self._save()
            raise plan.Interrupted("stopped")
        right(self, *of)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_iterate", iterate)
        assert main([str(part), "--quiet"]) == 130
    assert main([str(part), "--quiet", "--resume"]) == 0
    one, other = ((tmp_path / f / "o" / "n_last.caffemodel") for f in ("whole", "part"))
    assert one.read_bytes() == other.read_bytes()
    # and what is remembered matters
    forgotten = write(tmp_path / "part", LSTM + LOSS, **arrays | {"cont": 0 * arrays["cont"]})
    assert main([str(forgotten), "--quiet", "--output", str(tmp_path / "part" / "p")]) == 0
    assert (tmp_path / "part" / "p" / "n_last.caffemodel").read_bytes() != one.read_bytes()
