"""Which nets a solver trains and tests, in which state, and what BVLC Caffe would refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from test_caffeio_weights import model

import caffeio
from caffeio import CaffeFileError, Net, NetError, read_net, read_solver, read_solver_net
from caffeio.proto import caffe_pb2 as pb

BASE = 'base_lr: 0.1 lr_policy: "fixed" max_iter: 10'
TESTS = "test_iter: 7 test_interval: 5"
DATA = 'layer { name: "data" type: "Input" top: "x" input_param { shape { dim: [2, 3] } } }'


def marker(name: str, rules: str = "") -> str:
    """A layer that shows by being there which net was read and in which state."""
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "x" top: "{name}" {rules} }}'


def net(name: str, *more: str) -> str:
    return " ".join([f'name: "{name}"', DATA, marker(name), *more])


def write(folder: Path, text: str, **nets: str) -> Path:
    for name, content in nets.items():
        (folder / f"{name}.prototxt").write_text(content)
    path = folder / "solver.prototxt"
    path.write_text(f"{BASE} {text}")
    return path


def names(read: Net) -> list[str]:
    return [layer.name for layer in read.layers]


# ----------------------------------------------------------------------------- nets within it


@pytest.mark.parametrize("key", ["net_param", "train_net_param"])
def test_a_training_net_within_the_solver(key: str, tmp_path: Path) -> None:
    text = net("inner", marker("t", "include { phase: TRAIN }"), marker("e", "exclude {}"))
    solver = read_solver(write(tmp_path, f"{key} {{ {text} }}"))
    assert solver.train_net == solver.path == tmp_path / "solver.prototxt"
    assert solver.train_net_param == text_format.Parse(text, pb.NetParameter())
    assert (solver.test_net, solver.test_net_param, solver.notes) == (None, None, ())
    read = read_solver_net(solver)
    assert (read.name, read.phase, read.notes) == ("inner", "TRAIN", ())
    assert names(read) == ["data", "inner", "t"]


@pytest.mark.parametrize(
    ("text", "train", "test"),
    [
        (f'net: "a" {TESTS}', "a", "a"),
        (f"net_param {{ {net('in')} }} {TESTS}", "in", "in"),
        (f'train_net: "a" test_net: "b" {TESTS}', "a", "b"),
        (f'train_net: "a" test_net_param {{ {net("in")} }} {TESTS}', "a", "in"),
        (f'train_net_param {{ {net("in")} }} test_net: "b" {TESTS}', "in", "b"),
        (f'net: "a" test_net: "b" {TESTS}', "a", "b"),
        (f'net: "a" test_net_param {{ {net("in")} }} {TESTS}', "a", "in"),
        (f'net_param {{ {net("in")} }} test_net: "b" {TESTS}', "in", "b"),
        # messages are tested before files, whatever their order in the text
        (f'net: "a" test_net: "b" test_net_param {{ {net("in")} }} test_iter: 4 {TESTS}', "a",
         "in"),
        (f'net: "a" test_net: "b" test_iter: 4 {TESTS}', "a", "b"),  # then "a", not first
        # of test_iter and test_interval one alone is no test
        ('net: "a" test_net: "b" test_interval: 5', "a", None),
        ('train_net: "a" test_net: "gone" test_iter: 5', "a", None),
    ],
)  # fmt: skip
def test_the_nets_are_those_of_caffe(
    text: str, train: str, test: str | None, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / name).write_text(net(name))
    solver = read_solver(write(tmp_path, text))
    assert read_solver_net(solver).name == train
    assert solver.train_net == (solver.path if train == "in" else tmp_path / train)
    if test is None:
        assert solver.test_net is None
        with pytest.raises(ValueError, match=r"solver\.prototxt: the solver has no TEST net"):
            read_solver_net(solver, "TEST")
        return
    assert solver.test_net == (solver.path if test == "in" else tmp_path / test)
    read = read_solver_net(solver, "TEST")
    assert (read.name, read.phase) == (test, "TEST")
    assert any("more than one net" in n for n in solver.notes) == (len(solver.param.test_iter) > 1)


def test_a_net_within_is_upgraded_as_a_file_is(tmp_path: Path) -> None:
    text = """name: "old" input: "x" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 4
    layers { name: "conv" type: CONVOLUTION bottom: "x" top: "conv" blobs_lr: 1 blobs_lr: 2
             convolution_param { num_output: 5 kernel_size: 3 } }
    layers { name: "relu" type: RELU bottom: "conv" top: "conv" include { phase: TRAIN } }"""
    (tmp_path / "old.prototxt").write_text(text)
    within = read_solver_net(read_solver(write(tmp_path, f"net_param {{ {text} }}")))
    file = read_solver_net(read_solver(write(tmp_path, 'net: "old.prototxt"')))
    assert names(within) == ["input", "conv", "relu"]
    assert within == file
    for phase in ("TRAIN", "TEST"):
        message = text_format.Parse(text, pb.NetParameter())
        before = message.SerializeToString()
        assert read_net(message, phase=phase) == read_net(tmp_path / "old.prototxt", phase=phase)
        assert message.SerializeToString() == before


def test_weights_go_to_a_net_within(tmp_path: Path) -> None:
    layer = """layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc"
                       inner_product_param { num_output: 4 } }"""
    solver = read_solver(write(tmp_path, f"net_param {{ {net('n', layer)} }}"))
    blobs = (np.ones((4, 3), np.float32), np.zeros(4, np.float32))
    path = tmp_path / "n.caffemodel"
    path.write_bytes(model(fc=blobs).SerializeToString())
    read = read_solver_net(solver, "TRAIN", path)
    np.testing.assert_array_equal(read.layer("fc").blobs[0], blobs[0])
    path.write_bytes(model(other=blobs).SerializeToString())
    with pytest.raises(NetError, match="fc"):
        read_solver_net(solver, "TRAIN", path)
    assert read_solver_net(solver, "TRAIN", path, partial=True).layer("fc").blobs == ()


def test_a_net_is_found_from_the_root_and_its_error_names_that(tmp_path: Path) -> None:
    (tmp_path / "caffe" / "models").mkdir(parents=True)
    (tmp_path / "caffe" / "models" / "n.prototxt").write_text(net("n"))
    (tmp_path / "job").mkdir()
    path = write(tmp_path / "job", 'net: "models/n.prototxt"')
    with pytest.raises(CaffeFileError, match="set root to the folder that Caffe is started from"):
        read_solver(path)
    solver = read_solver(path, tmp_path / "caffe")
    assert solver.train_net == tmp_path / "caffe" / "models" / "n.prototxt"


def test_unknown_fields_of_a_net_within_are_noted_with_their_line(tmp_path: Path) -> None:
    text = f"\nnet_param {{ {net('in')}\n foo: 1 }}"
    solver = read_solver(write(tmp_path, text))
    assert [n.split("/")[-1] for n in solver.notes] == [
        "solver.prototxt:3: field 'foo' of NetParameter is not known; it is ignored"
    ]
    assert read_solver_net(solver).name == "in"


# ------------------------------------------------------------------------------------- states


STATED = net(
    "n",
    marker("deep", "include { min_level: 2 }"),
    marker("own", 'include { stage: "own" }'),
    marker("extra", 'include { stage: "extra" stage: "own" }'),
    marker("plain", 'exclude { stage: "extra" }'),
    marker("train", "include { phase: TRAIN }"),
    marker("test", "include { phase: TEST }"),
)


def caffe_state(phase: int, own: str, given: str) -> pb.NetState:
    """Merge as InitTrainNet and InitTestNets do, by protobuf itself."""
    state = pb.NetState(phase=phase)  # type: ignore[arg-type]
    state.MergeFrom(text_format.Parse(own, pb.NetState()))
    state.MergeFrom(text_format.Parse(given, pb.NetState()))
    return state


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize(
    "own", ["", 'stage: "own"', "level: 2", "level: 1", 'level: 3 stage: "own" stage: "x"']
)
@pytest.mark.parametrize(
    "given", ["", 'stage: "extra"', "level: 2", "level: 0", 'level: 1 stage: "extra" stage: "own"']
)
def test_the_state_is_the_nets_and_over_it_the_solvers(
    given: str, own: str, phase: str, within: bool, tmp_path: Path
) -> None:
    text = f"{STATED} state {{ {own} }}"
    source = f"net_param {{ {text} }}" if within else 'net: "n.prototxt"'
    states = f"train_state {{ {given} }} test_state {{ {given} }}"
    solver = read_solver(write(tmp_path, f"{source} {TESTS} {states}", n=text))
    state = caffe_state(pb.TRAIN if phase == "TRAIN" else pb.TEST, own, given)
    stages = set(state.stage)
    kept = {
        "data": True,
        "n": True,
        "deep": state.level >= 2,
        "own": "own" in stages,
        "extra": {"own", "extra"} <= stages,
        "plain": "extra" not in stages,
        "train": state.phase == pb.TRAIN,
        "test": state.phase == pb.TEST,
    }
    assert names(read_solver_net(solver, phase)) == [name for name, keep in kept.items() if keep]


def test_without_a_state_of_its_own_the_solver_has_the_nets(tmp_path: Path) -> None:
    text = f'{STATED} state {{ stage: "own" }}'
    solver = read_solver(write(tmp_path, f'net: "n.prototxt" {TESTS}', n=text))
    assert names(read_solver_net(solver)) == ["data", "n", "own", "plain", "train"]
    assert names(read_solver_net(solver, "TEST")) == ["data", "n", "own", "plain", "test"]


def test_each_net_has_its_own_state_and_of_several_tests_the_first(tmp_path: Path) -> None:
    states = 'train_state { level: 2 } test_state { stage: "own" } test_state { level: 9 }'
    solver = read_solver(
        write(tmp_path, f'net: "n.prototxt" {TESTS} test_iter: 8 {states}', n=STATED)
    )
    assert names(read_solver_net(solver)) == ["data", "n", "deep", "plain", "train"]
    assert names(read_solver_net(solver, "TEST")) == ["data", "n", "own", "plain", "test"]


def test_read_net_takes_a_state_beside_level_and_stages(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(f"{STATED} state {{ level: 2 }}")
    state = pb.NetState(stage=["extra"])
    read = read_net(tmp_path / "n.prototxt", state=state, stages=["own"])
    assert names(read) == ["data", "n", "deep", "own", "extra", "test"]
    state.level = 1
    read = read_net(tmp_path / "n.prototxt", state=state)
    assert names(read) == ["data", "n", "test"]


@pytest.mark.parametrize(
    ("source", "phase", "says"),
    [
        ('net: "n.prototxt" train_state { phase: TEST }', "TRAIN", "n.prototxt: the TRAIN net"),
        (f'net: "n.prototxt" {TESTS} test_state {{ phase: TRAIN }}', "TEST", "n.prototxt: the TES"),
        (f"net_param {{ {net('i')} state {{ phase: TEST }} }}", "TRAIN", "solver.prototxt: the TR"),
    ],
)
def test_a_state_of_the_other_phase_is_refused(
    source: str, phase: str, says: str, tmp_path: Path
) -> None:
    solver = read_solver(write(tmp_path, source, n=STATED))
    with pytest.raises(CaffeFileError, match=f"{says}.*given the phase"):
        read_solver_net(solver, phase)


def test_a_state_may_name_the_phase_that_it_has_anyway(tmp_path: Path) -> None:
    states = "train_state { phase: TRAIN } test_state { phase: TEST }"
    solver = read_solver(write(tmp_path, f'net: "n.prototxt" {TESTS} {states}', n=STATED))
    assert "train" in names(read_solver_net(solver))
    assert "test" in names(read_solver_net(solver, "TEST"))


# ------------------------------------------------------------------------------ what is refused


WRONG = [
    ("a file and a message", f'net: "n.prototxt" net_param {{ {net("i")} }}',
     "more than one training net: net, net_param"),
    ("of the training alone", f'train_net: "n.prototxt" train_net_param {{ {net("i")} }}',
     "more than one training net: train_net, train_net_param"),
    ("a shared one and one of its own", 'net: "n.prototxt" train_net: "n.prototxt"',
     "more than one training net: net, train_net"),
    ("no training net", f'test_net: "n.prototxt" {TESTS}', "names no 'net' or 'train_net'"),
    ("an empty net within", 'train_net_param { name: "x" }', "train_net_param describes no layer"),
    ("an empty test net", f'net: "n.prototxt" test_net_param {{ name: "x" }} {TESTS}',
     "test_net_param describes no layers"),
    ("a test net that is not there", f'net: "n.prototxt" test_net: "gone" {TESTS}',
     "names the test_net 'gone'"),
    ("too few test_iter", f'net: "n.prototxt" test_net: "a" test_net: "b" {TESTS}',
     "has 1 test_iter for 2 test nets"),
    ("a test without a net", f'train_net: "n.prototxt" {TESTS}', "has 1 test_iter for 0 test nets"),
    ("too many test_iter", f'train_net: "n.prototxt" test_net: "n.prototxt" test_iter: 2 {TESTS}',
     "has 2 test_iter for 1 test nets"),
    ("a test_state too many",
     f'net: "n.prototxt" {TESTS} test_state {{ level: 1 }} test_state {{ level: 2 }}',
     "has 2 test_state for 1 test_iter"),
    ("a mistake within", 'net_param { layer { name: 5 } }', ""),
    ("a required field missing within",
     f'net_param {{ {DATA} layer {{ name: "c" type: "Clip" clip_param {{ min: 0 }} }} }}',
     r"required.*net_param\.layer.*clip_param\.max"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "text", "says"), WRONG, ids=[w[0] for w in WRONG])
def test_a_wrong_choice_of_nets_is_refused(what: str, text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(CaffeFileError, match=rf"solver\.prototxt.*: .*{says}"):
        read_solver(write(tmp_path, text, n=STATED))


def test_an_error_of_a_net_within_names_the_solver(tmp_path: Path) -> None:
    text = f"net_param {{ {marker('n', 'include { phase: TEST }')} }}"
    with pytest.raises(CaffeFileError, match=r"solver\.prototxt: has no layers for phase TRAIN"):
        read_solver_net(read_solver(write(tmp_path, text)))
    lost = marker("a").replace('bottom: "x"', 'bottom: "y"')
    text = f"net_param {{ {net('n', lost)} }}"
    with pytest.raises(NetError, match=r"layer 'a'.*'y'"):
        read_solver_net(read_solver(write(tmp_path, text)))


def test_a_message_without_a_file_is_called_one() -> None:
    with pytest.raises(CaffeFileError, match="<message>: describes no layers"):
        read_net(pb.NetParameter(name="x"))
    with pytest.raises(CaffeFileError, match=r"some\.file: describes no layers"):
        read_net(pb.NetParameter(name="x"), path="some.file")
    with pytest.raises(ValueError, match="phase is 'TEST' or 'TRAIN'"):
        caffeio.read_net(text_format.Parse(net("n"), pb.NetParameter()), phase="train")
