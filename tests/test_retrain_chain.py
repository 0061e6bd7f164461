"""One training takes up where another ended, as Caffe's examples chain their solvers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from training_jobs import edit, one_thread, write_training  # noqa: E402

import caffeio  # noqa: E402
from caffeio import SolverState  # noqa: E402
from pipeline.retrain import plan, trainer  # noqa: E402
from pipeline.retrain.solver_state import steps_passed  # noqa: E402
from pipeline.run import main  # noqa: E402

TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
#: A round of the data is 25 iterations of 8 samples: a second training begins with the first.
SETTINGS = "quantize = false\nshuffle = false"


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def solver(kind: str, rate: str, iterations: int, **more: Any) -> str:
    momentum = {"Adam": 0.9, "AdaDelta": 0.9}.get(kind, 0.0 if kind in TYPES[2:4] else 0.9)
    extra = "".join(f" {k}: {v}" for k, v in more.items())
    return f"""
net: "train_test.prototxt" type: "{kind}" {rate}
momentum: {momentum} weight_decay: 0.01 max_iter: {iterations} random_seed: 3 {extra}
"""


def job(folder: Path, text: str, retrain: str = SETTINGS, **more: Any) -> Path:
    folder.mkdir()
    path = write_training(folder, solver=text, retrain=retrain, dropout=False, **more)
    edit("config.toml", "batch_size = 16", "batch_size = 8")(folder)
    edit("config.toml", 'test_data.source = "test.npz"', "")(folder)
    return path


def last(folder: Path) -> dict[str, tuple[np.ndarray, ...]]:
    net = caffeio.read_net(folder / "deploy.prototxt", folder / "out" / "net_last.caffemodel")
    return {x.name: x.blobs for x in net.layers if x.blobs}


@pytest.mark.parametrize("kind", TYPES)
def test_two_solvers_one_after_the_other_equal_one_with_two_steps(kind: str, tmp_path: Path):
    """4,000 iterations at one rate, then 1,000 at a tenth: here 25 and 25."""
    rate = 'base_lr: 0.01 lr_policy: "fixed"'
    steps = 'base_lr: 0.01 lr_policy: "multistep" gamma: 0.1 stepvalue: 25'
    first = job(tmp_path / "first", solver(kind, rate, 25))
    second = job(tmp_path / "second", solver(kind, rate.replace("0.01", "0.001"), 50))
    whole = job(tmp_path / "whole", solver(kind, steps, 50))
    assert main([str(first), "--quiet"]) == 0
    ended = tmp_path / "first" / "out" / "net_last.solverstate"
    state = caffeio.read_solver_state(ended)
    assert (state.iteration, state.learned_net) == (25, "net_last.caffemodel")
    assert main([str(second), "--quiet", "--resume", str(ended)]) == 0
    assert main([str(whole), "--quiet"]) == 0
    got, want = last(tmp_path / "second"), last(tmp_path / "whole")
    assert got.keys() == want.keys() == {"conv1", "bn1", "scale1", "fc"}
    for layer, blobs in want.items():
        for a, b in zip(got[layer], blobs, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
    found = caffeio.read_solver_state(tmp_path / "second" / "out" / "net_last.solverstate")
    there = caffeio.read_solver_state(tmp_path / "whole" / "out" / "net_last.solverstate")
    assert (found.iteration, found.current_step, there.current_step) == (50, 0, 1)
    for a, b in zip(found.history, there.history, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_a_state_holds_every_blob_of_the_net_in_its_order(tmp_path: Path):
    """As BVLC Caffe's: BatchNorm's blobs, too, which the solver leaves alone."""
    path = job(tmp_path / "a", solver("Adam", 'base_lr: 0.01 lr_policy: "fixed"', 3))
    assert main([str(path), "--quiet"]) == 0
    state = caffeio.read_solver_state(tmp_path / "a" / "out" / "net_last.solverstate")
    sizes = [54, 6, 6, 1, 6, 6, 216, 4]
    assert [h.size for h in state.history] == 2 * sizes
    assert not any(h.any() for h in (*state.history[1:4], *state.history[9:12]))
    assert all(h.any() for h in (state.history[0], state.history[8], state.history[15]))


def test_states_of_caffe_are_taken_up_in_both_formats(tmp_path: Path):
    path = job(tmp_path / "a", solver("SGD", 'base_lr: 0 lr_policy: "fixed"', 8))
    begin = caffeio.read_net(tmp_path / "a" / "deploy.prototxt", tmp_path / "a/begin.caffemodel")
    caffeio.write_caffemodel(begin, tmp_path / "snap_iter_5.caffemodel")
    rng = np.random.default_rng(0)
    blobs = [b for layer in begin.layers for b in layer.blobs]
    history = tuple(rng.normal(size=b.shape).astype(np.float32) for b in blobs)
    state = SolverState(5, "examples/snap_iter_5.caffemodel", 0, history)
    for hdf5 in (False, True):
        file = tmp_path / f"snap_iter_5.solverstate{'.h5' if hdf5 else ''}"
        caffeio.write_solver_state(state, file, hdf5=hdf5)
        arguments = ["--quiet", "--resume", str(file), "--output", str(tmp_path / file.name[4:])]
        assert main([str(path), *arguments]) == 0
        folder = tmp_path / file.name[4:]
        ended = caffeio.read_net(tmp_path / "a/deploy.prototxt", folder / "net_last.caffemodel")
        # three steps of momentum alone: w - (0.9 + 0.81 + 0.729) h
        for layer, kept in (("conv1", history[0]), ("fc", history[6])):
            want = begin.layer(layer).blobs[0] - 2.439 * kept
            np.testing.assert_allclose(ended.layer(layer).blobs[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says", "code"),
    [
        ({"history": 3}, "holds 3 blobs of history", 1),
        ({"size": True}, "blob 0 of its history has 53 values, 'conv1/0' has 54", 1),
        ({"iteration": 25}, "there is nothing left to train", 2),
        ({"learned_net": "gone.caffemodel"}, "'gone.caffemodel' are not there", 2),
        ({"learned_net": ""}, "names no file with weights", 2),
        ({"missing": True}, "there is no file", 2),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_taken_up_is_said(change, says, code, tmp_path, capsys):
    path = job(tmp_path / "a", solver("SGD", 'base_lr: 0.1 lr_policy: "fixed"', 20))
    sizes = [53 if change.get("size") else 54, 6, 6, 1, 6, 6, 216, 4]
    history = tuple(np.zeros(n, np.float32) for n in sizes[: change.get("history")])
    weights = change.get("learned_net", "begin.caffemodel")
    state = SolverState(change.get("iteration", 5), weights, 0, history)
    file = tmp_path / "a" / "x.solverstate"
    if "missing" not in change:
        caffeio.write_solver_state(state, file)
    assert main([str(path), "--quiet", "--resume", str(file)]) == code
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert not [p for p in (tmp_path / "a" / "out").glob("*") if p.suffix != ".pt"]


def test_weights_and_state_for_caffe_lie_beside_each_snapshot(tmp_path, monkeypatch):
    path = job(tmp_path / "a", solver("SGD", 'base_lr: 0.01 lr_policy: "fixed"', 6))
    edit("config.toml", SETTINGS, SETTINGS + "\nsnapshot_interval = 2")(tmp_path / "a")
    seen: list[list[str]] = []
    right = trainer.Trainer._iterate

    def iterate(self: trainer.Trainer, *of: Any) -> None:
        seen.append(sorted(p.name for p in (tmp_path / "a" / "out").glob("*_iter_*")))
        right(self, *of)

    monkeypatch.setattr(trainer.Trainer, "_iterate", iterate)
    assert main([str(path), "--quiet"]) == 0
    two = ["net_snapshot_iter_2.caffemodel", "net_snapshot_iter_2.solverstate"]
    four = [name.replace("2", "4") for name in two]
    assert seen == [[], [], two, two, four, four]
    assert not [*(tmp_path / "a" / "out").glob("*snapshot*")]


def test_a_chain_that_is_interrupted_goes_on_to_the_same_end(tmp_path, monkeypatch):
    """Its own snapshot says where the data began."""
    rate = 'base_lr: 0.01 lr_policy: "fixed"'
    first = job(tmp_path / "first", solver("SGD", rate, 10))
    assert main([str(first), "--quiet"]) == 0
    ended = str(tmp_path / "first" / "out" / "net_last.solverstate")
    whole = job(tmp_path / "whole", solver("SGD", rate, 24))
    assert main([str(whole), "--quiet", "--resume", ended]) == 0
    part = job(tmp_path / "part", solver("SGD", rate, 24))
    right = trainer.Trainer._iterate

    def iterate(self: trainer.Trainer, *of: Any) -> None:
        if self.iteration == 17:
            self._save()
            raise plan.Interrupted("stopped")
        right(self, *of)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_iterate", iterate)
        assert main([str(part), "--quiet", "--resume", ended]) == 130
    assert main([str(part), "--quiet", "--resume"]) == 0
    for name in ("net_last.caffemodel", "net_last.solverstate"):
        one, other = ((tmp_path / f / "out" / name).read_bytes() for f in ("whole", "part"))
        assert one == other


def test_fake_quantization_takes_up_a_float_training(tmp_path: Path):
    rate = 'base_lr: 0.01 lr_policy: "fixed"'
    first = job(tmp_path / "first", solver("SGD", rate, 25))
    assert main([str(first), "--quiet"]) == 0
    tables = '[evaluate]\ndata.source = "test.npz"'
    second = job(tmp_path / "second", solver("SGD", rate, 30), "shuffle = false", tables=tables)
    ended = tmp_path / "first" / "out" / "net_last.solverstate"
    assert main([str(second), "--quiet", "--resume", str(ended)]) == 0
    assert (tmp_path / "second" / "out" / "net_record.txt").exists()
    state = caffeio.read_solver_state(tmp_path / "second" / "out" / "net_last.solverstate")
    assert state.iteration == 30


def test_a_net_within_the_solver_is_trained(tmp_path: Path):
    path = job(tmp_path / "a", solver("SGD", 'base_lr: 0.01 lr_policy: "fixed"', 5))
    net = (tmp_path / "a" / "train_test.prototxt").read_text()
    edit("solver.prototxt", 'net: "train_test.prototxt"', f"net_param {{ {net} }}")(tmp_path / "a")
    other = job(tmp_path / "b", solver("SGD", 'base_lr: 0.01 lr_policy: "fixed"', 5))
    assert main([str(path), "--quiet"]) == main([str(other), "--quiet"]) == 0
    for a, b in zip(last(tmp_path / "a").values(), last(tmp_path / "b").values(), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_the_steps_that_a_rate_has_made_are_counted_as_caffe_counts_them():
    def count(policy: str, iteration: int) -> int:
        from caffeio.proto.caffe_pb2 import SolverParameter

        p = SolverParameter(lr_policy=policy, stepsize=10, stepvalue=[5, 20])
        return steps_passed(p, iteration)

    # Caffe counts when it takes the rate of an iteration: of 20 done, the last was number 19
    assert [count("multistep", i) for i in (0, 5, 6, 20, 21)] == [0, 0, 1, 1, 2]
    assert [count("step", i) for i in (0, 10, 11, 25)] == [0, 0, 1, 2]
    assert count("fixed", 100) == 0


def test_want_of_data_to_evaluate_on_is_said_before_the_first_iteration(tmp_path, capsys):
    path = job(tmp_path / "a", solver("SGD", 'base_lr: 0.01 lr_policy: "fixed"', 5), "")
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert "[evaluate] is missing" in err
    assert "iteration" not in out + err
    with (tmp_path / "a" / "config.toml").open("a") as file:
        file.write('[evaluate]\ndata.source = "test.npz"\noutputs = ["nothing"]\n')
    assert main([str(path), "--quiet"]) == 2
    assert "no blob 'nothing'" in capsys.readouterr().err
    edit("config.toml", 'outputs = ["nothing"]', "")(tmp_path / "a")
    assert main([str(path), "--quiet"]) == 0
