"""Solvers: what their files must say, learning rates, updates; and how weights begin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from layer_nets import one_layer  # noqa: E402

from caffeio import CaffeFileError, NetError, read_solver  # noqa: E402
from caffeio.proto.caffe_pb2 import FillerParameter, SolverParameter  # noqa: E402
from caffeio.solver import POLICIES, SOLVERS, Solver  # noqa: E402
from pipeline.layers.fillers import fill  # noqa: E402
from pipeline.retrain.optimizer import Learned, Optimizer  # noqa: E402
from pipeline.retrain.rate import learning_rate  # noqa: E402

PLAIN = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 10'


def write(folder: Path, text: str = PLAIN, net: str = "net.prototxt") -> Path:
    (folder / net).write_text('name: "net"')
    path = folder / "solver.prototxt"
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------ reading


def test_a_plain_solver(tmp_path):
    solver = read_solver(write(tmp_path))
    assert (solver.type, solver.train_net) == ("SGD", tmp_path / "net.prototxt")
    assert (solver.test_net, solver.test_iter, solver.notes) == (None, 0, ())
    assert solver.param.base_lr == pytest.approx(0.1)


@pytest.mark.parametrize("kind", SOLVERS)
def test_types_by_name_by_legacy_number_and_in_any_case(kind, tmp_path):
    assert read_solver(write(tmp_path, f'{PLAIN} type: "{kind}"')).type == kind
    assert read_solver(write(tmp_path, f'{PLAIN} type: "{kind.upper()}"')).type == kind
    assert read_solver(write(tmp_path, f"{PLAIN} solver_type: {kind.upper()}")).type == kind


def test_the_test_net_is_that_of_the_training_or_one_of_its_own(tmp_path):
    tests = "test_iter: 7 test_interval: 5"
    solver = read_solver(write(tmp_path, f"{PLAIN} {tests}"))
    assert (solver.test_net, solver.test_iter) == (tmp_path / "net.prototxt", 7)
    (tmp_path / "other.prototxt").write_text('name: "other"')
    text = PLAIN.replace("net:", "train_net:") + f' test_net: "other.prototxt" {tests}'
    solver = read_solver(write(tmp_path, text))
    assert solver.train_net == tmp_path / "net.prototxt"
    assert solver.test_net == tmp_path / "other.prototxt"
    assert read_solver(write(tmp_path, f"{PLAIN} test_iter: 7")).test_net is None


def test_of_several_test_nets_the_first_is_tested_and_a_note_says_so(tmp_path):
    names = 'test_net: "net.prototxt" test_net: "net.prototxt" test_iter: 3 test_iter: 4'
    text = f"{PLAIN.replace('net:', 'train_net:')} {names} test_interval: 5"
    solver = read_solver(write(tmp_path, text))
    assert solver.test_iter == 3
    assert any("more than one" in note for note in solver.notes)


def test_a_net_is_found_where_a_path_from_a_parent_folder_leads(tmp_path):
    """``net: "examples/mnist/net.prototxt"`` is meant from Caffe's own folder."""
    inner = tmp_path / "caffe" / "examples" / "mnist"
    inner.mkdir(parents=True)
    path = write(inner, PLAIN.replace("net.prototxt", "examples/mnist/net.prototxt"))
    assert read_solver(path).train_net.samefile(inner / "net.prototxt")
    (tmp_path / "far.prototxt").write_text('name: "far"')
    path = write(inner, PLAIN.replace("net.prototxt", "far.prototxt"))
    assert read_solver(path).train_net.samefile(tmp_path / "far.prototxt")
    write(inner, net="far.prototxt")  # what lies beside the solver comes first
    assert read_solver(write(inner, path.read_text())).train_net.samefile(inner / "net.prototxt")


NEEDED = {
    "fixed": "",
    "step": "gamma: 0.5 stepsize: 10",
    "exp": "gamma: 0.5",
    "inv": "gamma: 0.5 power: 0.75",
    "multistep": "gamma: 0.5 stepvalue: 3 stepvalue: 5",
    "poly": "power: 2",
    "sigmoid": "gamma: 0.5 stepsize: 10",
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_needs_its_settings(policy, tmp_path):
    base = f'net: "net.prototxt" base_lr: 0.1 max_iter: 10 lr_policy: "{policy}"'
    assert read_solver(write(tmp_path, f"{base} {NEEDED[policy]}")).param.lr_policy == policy
    words = NEEDED[policy].split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    for name in given:
        kept = " ".join(f"{key} {value}" for key, value in given.items() if key != name)
        with pytest.raises(CaffeFileError, match=rf"solver\.prototxt.*'{policy}'.*{name[:-1]}"):
            read_solver(write(tmp_path, f"{base} {kept}"))


WRONG = [
    ("no net", PLAIN.replace('net: "net.prototxt"', ""), "net"),
    ("a net that is not there", PLAIN.replace("net.pro", "nit.pro"), r"net 'nit\.prototxt'"),
    ("a net within", PLAIN.replace('net: "net.prototxt"', 'net_param { name: "x" }'), "net_param"),
    ("no base_lr", PLAIN.replace("base_lr: 0.1", ""), "base_lr"),
    ("a rate below 0", PLAIN.replace("0.1", "-0.1"), "base_lr"),
    ("an infinite rate", PLAIN.replace("0.1", "inf"), "base_lr"),
    ("no max_iter", PLAIN.replace("max_iter: 10", ""), "max_iter"),
    ("an unknown policy", PLAIN.replace("fixed", "cosine"), "lr_policy.*'cosine'.*multistep"),
    ("no policy", PLAIN.replace('lr_policy: "fixed"', ""), "lr_policy"),
    ("an unknown type", PLAIN + ' type: "LBFGS"', "type.*'LBFGS'.*Nesterov"),
    ("an unknown regularization", PLAIN + ' regularization_type: "L3"', "regularization_type.*L3"),
    ("iter_size 0", PLAIN + " iter_size: 0", "iter_size"),
    ("test_iter 0", PLAIN + " test_iter: 0 test_interval: 1", "test_iter"),
    ("a stepsize of 0", PLAIN.replace("fixed", "step") + " gamma: 0.5 stepsize: 0", "stepsize"),
    ("steps that fall",
     PLAIN.replace("fixed", "multistep") + " gamma: 0.5 stepvalue: 5 stepvalue: 3", "stepvalue"),
    ("no solver at all", 'layer { name: "x" type: "ReLU" }', ""),
    ("a syntax error", PLAIN + " {", ""),
]  # fmt: skip


@pytest.mark.parametrize(("what", "text", "message"), WRONG, ids=[w[0] for w in WRONG])
def test_an_error_names_the_file_and_the_setting(what, text, message, tmp_path):
    with pytest.raises(CaffeFileError, match=rf"solver\.prototxt.*{message}"):
        read_solver(write(tmp_path, text))


def test_a_missing_solver_is_named(tmp_path):
    with pytest.raises(CaffeFileError, match=r"nowhere\.prototxt"):
        read_solver(tmp_path / "nowhere.prototxt")


# ------------------------------------------------------------------------------ learning rates


def naive_rate(p: SolverParameter, iteration: int) -> float:
    """Caffe's policies, counted up one iteration after the other where they count."""
    rate = float(p.base_lr)
    match p.lr_policy:
        case "step":
            for i in range(1, iteration + 1):
                rate *= p.gamma if i % p.stepsize == 0 else 1.0
        case "exp":
            for _ in range(iteration):
                rate *= p.gamma
        case "inv":
            rate /= (1 + p.gamma * iteration) ** p.power
        case "multistep":
            passed = 0
            for i in range(iteration + 1):
                if passed < len(p.stepvalue) and i >= p.stepvalue[passed]:
                    passed += 1
                    rate *= p.gamma
        case "poly":
            rate *= math.pow(1 - iteration / p.max_iter, p.power)
        case "sigmoid":
            x = p.gamma * (iteration - p.stepsize)
            rate *= 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
    return rate


@cases.examples(200)
@given(
    st.sampled_from(POLICIES), st.floats(0.01, 1), st.floats(0.1, 3), st.integers(1, 50),
    st.lists(st.integers(1, 90), min_size=1, max_size=4, unique=True), st.integers(0, 99),
)  # fmt: skip
def test_rates_equal_the_oracle(policy, gamma, power, stepsize, steps, iteration):
    p = SolverParameter(
        base_lr=0.3, lr_policy=policy, gamma=gamma, power=power, stepsize=stepsize,
        stepvalue=sorted(steps), max_iter=100,
    )  # fmt: skip
    assert learning_rate(p, iteration) == pytest.approx(naive_rate(p, iteration), rel=1e-9)


@pytest.mark.parametrize(
    ("gamma", "stepsize", "iteration"), [(0.2, 5000, 0), (-0.01, 5000, 100_000)]
)
def test_the_ends_of_a_sigmoid_are_rates_of_0(gamma, stepsize, iteration):
    p = SolverParameter(base_lr=1.0, lr_policy="sigmoid", gamma=gamma, stepsize=stepsize)
    assert learning_rate(p, iteration) == pytest.approx(0.0, abs=1e-30)


# --------------------------------------------------------------------------------- the solvers


@dataclass
class NaiveParameter:
    """Python floats, and what a solver remembers of each."""

    values: list[float]
    lr_mult: float
    decay_mult: float
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = [0.0] * len(self.values)
        self.second = [0.0] * len(self.values)


def naive_step(
    kind: str, p: SolverParameter, all_of: list[NaiveParameter], grads: list[list[float]],
    rate: float, iteration: int,
) -> None:  # fmt: skip
    """One update as Caffe's Solver: clip, normalize, regularize, compute, apply."""
    norm = math.sqrt(sum(g * g for gs in grads for g in gs))
    clip = p.clip_gradients / norm if 0 <= p.clip_gradients < norm else 1.0
    for one, gs in zip(all_of, grads, strict=True):
        for i, (w, accumulated) in enumerate(zip(one.values, gs, strict=True)):
            g = accumulated * clip / p.iter_size
            decay = p.weight_decay * one.decay_mult
            sign = (w > 0) - (w < 0)
            g += decay * (sign if p.regularization_type == "L1" else w)
            one.values[i] = w - naive_update(kind, p, one, i, g, rate * one.lr_mult, iteration)


def naive_update(
    kind: str, p: SolverParameter, one: NaiveParameter, i: int, g: float, rate: float, it: int
) -> float:
    m, m2, delta = p.momentum, p.momentum2, p.delta
    before = one.first[i]
    if kind in ("SGD", "Nesterov"):
        one.first[i] = m * before + rate * g
        if kind == "SGD":
            return one.first[i]
        return (1 + m) * one.first[i] - m * before
    if kind == "AdaGrad":
        one.first[i] += g * g
        return rate * g / (math.sqrt(one.first[i]) + delta)
    if kind == "RMSProp":
        one.first[i] = p.rms_decay * before + (1 - p.rms_decay) * g * g
        return rate * g / (math.sqrt(one.first[i]) + delta)
    if kind == "AdaDelta":
        one.first[i] = m * before + (1 - m) * g * g
        step = g * math.sqrt((one.second[i] + delta) / (one.first[i] + delta))
        one.second[i] = m * one.second[i] + (1 - m) * step * step
        return rate * step
    one.first[i] = m * before + (1 - m) * g
    one.second[i] = m2 * one.second[i] + (1 - m2) * g * g
    correction = math.sqrt(1 - m2 ** (it + 1)) / (1 - m ** (it + 1))
    return rate * correction * one.first[i] / (math.sqrt(one.second[i]) + delta)


def solver_of(kind: str, **settings: Any) -> Solver:
    param = SolverParameter(base_lr=0.1, lr_policy="fixed", max_iter=10, **settings)
    return Solver(Path("s"), param, kind, Path("n"), None, 0)


@pytest.mark.parametrize("kind", SOLVERS)
@cases.examples(25)
@given(
    st.data(), st.sampled_from(["L1", "L2"]), st.sampled_from([0.0, 0.01, 0.3]),
    st.sampled_from([-1.0, 0.0, 0.5, 1e6]), st.integers(1, 3), st.sampled_from([0.5, 0.9, 0.95]),
)  # fmt: skip
def test_updates_equal_the_oracle(kind, data, regularization, decay, clip, iter_size, momentum):
    solver = solver_of(
        kind, momentum=momentum, weight_decay=decay, regularization_type=regularization,
        clip_gradients=clip, iter_size=iter_size, delta=1e-4, rms_decay=0.9,
    )  # fmt: skip
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    mults = [(1.0, 1.0), (2.0, 0.0), (0.25, 3.0)]
    oracle = [NaiveParameter(rng.normal(size=3).tolist(), *m) for m in mults]
    oracle[0].values[1] = 0.0  # L1 leaves it alone
    learned = [
        Learned(f"l/{i}", torch.nn.Parameter(torch.tensor(one.values).double()), *mults[i])
        for i, one in enumerate(oracle)
    ]
    optimizer = Optimizer(solver, learned)
    for iteration in range(4):
        grads = [[0.0] * 3 for _ in oracle]
        for _ in range(iter_size):
            for one, total in zip(learned, grads, strict=True):
                g = rng.normal(size=3) * rng.choice([0.01, 3])
                (one.tensor * torch.from_numpy(g)).sum().backward()
                total[:] = [a + b for a, b in zip(total, g.tolist(), strict=True)]
        rate = 0.1 / (iteration + 1)
        optimizer.step(iteration, rate)
        naive_step(kind, solver.param, oracle, grads, rate, iteration)
        for one, want in zip(learned, oracle, strict=True):
            assert one.tensor.grad is None
            assert one.tensor.tolist() == pytest.approx(want.values, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_parameter_that_no_loss_depends_on_decays(kind):
    """As in Caffe, whose solver knows no difference between no gradient and one of zero."""
    still, zero, free, moved = (torch.nn.Parameter(torch.ones(2)) for _ in range(4))
    learned = [
        Learned("a/0", still, 1.0, 1.0),
        Learned("b/0", zero, 1.0, 1.0),
        Learned("c/0", free, 1.0, 0.0),
        Learned("d/0", moved, 1.0, 1.0),
    ]
    optimizer = Optimizer(solver_of(kind, weight_decay=0.1, clip_gradients=1.0), learned)
    (moved.sum() + 0 * zero.sum()).backward()
    optimizer.step(0, 0.1)
    assert still.tolist() == zero.tolist()
    assert (still < 1).all()
    assert free.tolist() == [1.0, 1.0]
    assert (moved < still).all() or kind in ("AdaGrad", "RMSProp", "AdaDelta", "Adam")


# --------------------------------------------------------------------------------- the fillers


def filled(shape: tuple[int, ...], seed: int = 0, **settings: Any) -> np.ndarray:
    layer = one_layer("Convolution", "convolution_param { num_output: 1 }", [(1,)]).layer("l")
    rng = np.random.default_rng(seed)
    out = fill(layer, FillerParameter(**settings), shape, rng)
    assert out.dtype == np.float32
    assert out.shape == shape
    return out


def test_a_constant_is_0_unless_it_is_given():
    assert (filled((2, 3)) == 0).all()
    assert (filled((), type="constant", value=2.5) == 2.5).all()


def test_uniform_fills_its_range():
    x = filled((100, 100), type="uniform", min=-1, max=3)
    assert (x.min(), x.max()) == (pytest.approx(-1, abs=1e-2), pytest.approx(3, abs=1e-2))
    assert x.mean() == pytest.approx(1, abs=0.05)
    assert x.std() == pytest.approx(4 / math.sqrt(12), rel=0.02)


def test_gaussian_has_its_mean_and_spread():
    x = filled((100, 100), type="gaussian", mean=2, std=0.5)
    assert x.mean() == pytest.approx(2, abs=0.02)
    assert x.std() == pytest.approx(0.5, rel=0.03)
    assert np.abs(x - 2).max() > 1.5


def test_a_sparse_gaussian_keeps_a_share_of_sparse_over_outputs():
    x = filled((50, 400), type="gaussian", std=1, sparse=10)
    assert (x != 0).mean() == pytest.approx(10 / 50, rel=0.05)
    assert x[x != 0].std() == pytest.approx(1, rel=0.05)


#: Caffe's fans of (outputs, inputs, h, w): what a blob counts by its first and second axis.
FANS = {"FAN_IN": 20 * 9, "FAN_OUT": 40 * 9, "AVERAGE": 30 * 9}


@pytest.mark.parametrize("norm", FANS)
def test_xavier_and_msra_spread_by_the_fan(norm):
    mode = FillerParameter.VarianceNorm.Value(norm)
    limit = math.sqrt(3 / FANS[norm])
    x = filled((40, 20, 3, 3), type="xavier", variance_norm=mode)
    assert np.abs(x).max() <= limit
    assert x.std() == pytest.approx(limit / math.sqrt(3), rel=0.03)
    x = filled((40, 20, 3, 3), type="msra", variance_norm=mode)
    assert x.std() == pytest.approx(math.sqrt(2 / FANS[norm]), rel=0.03)
    assert np.abs(x).max() > 2.5 * x.std()


def test_the_rows_of_a_positive_unitball_sum_to_1():
    x = filled((5, 4, 3), type="positive_unitball")
    assert (x >= 0).all()
    np.testing.assert_allclose(x.reshape(5, -1).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 5, 8, 9])
def test_bilinear_is_a_tent(size):
    factor = math.ceil(size / 2)
    line = [1 - abs(x - (size - 1) / 2) / factor for x in range(size)]
    for image in filled((3, 1, size, size), type="bilinear")[:, 0]:
        np.testing.assert_allclose(image, np.outer(line, line), rtol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_bilinear_deconvolution_enlarges_a_plane_without_a_dent(factor):
    """Kernel 2f - f % 2, stride f, as Caffe's documentation says: inside, a constant stays."""
    size = 2 * factor - factor % 2
    kernel = torch.from_numpy(filled((1, 1, size, size), type="bilinear"))
    out = torch.conv_transpose2d(torch.ones(1, 1, 6, 6), kernel, stride=factor)
    inside = out[..., size:-size, size:-size]
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_blobs_of_the_same_seed_are_the_same_and_of_another_are_not():
    one, same, other = (filled((9, 9), seed, type="xavier") for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((3, 3), {"type": "orthogonal"}, "orthogonal.*xavier"),
        ((3, 3), {"type": "bilinear"}, "bilinear"),
        ((1, 1, 2, 3), {"type": "bilinear"}, "square"),
    ],
)
def test_a_filler_that_does_not_fit_names_the_layer(shape, settings, message):
    with pytest.raises(NetError, match=f"'l'.*{message}"):
        filled(shape, **settings)
