"""A solver's prototxt: how Caffe trains a net."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from caffeio.errors import CaffeFileError
from caffeio.files import read_proto_text
from caffeio.graph import Net
from caffeio.nets import read_net
from caffeio.proto import caffe_pb2 as pb
from caffeio.prototxt import parse_text

__all__ = ["POLICIES", "SOLVERS", "Solver", "read_solver", "read_solver_net"]

SOLVERS = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")
_NEEDED = {
    "step": ("gamma", "stepsize"),
    "exp": ("gamma",),
    "inv": ("gamma", "power"),
    "multistep": ("gamma",),
    "poly": ("power", "max_iter"),
    "sigmoid": ("gamma", "stepsize"),
}


@dataclass(frozen=True)
class Solver:
    """The settings of a solver.

    Attributes
    ----------
    path : Path
        Of the solver's file.
    param : SolverParameter
        The message; never changed.
    type : str
        One of `SOLVERS`.
    train_net : Path
        The net's file, as found; the solver's own if the net stands within it.
    test_net : Path or None
        The file whose TEST phase is the test net, likewise; None if the solver does not test.
    test_iter : int
        Batches of one test.
    notes : tuple of str
        What the file holds that is not used, a sentence each.
    train_net_param, test_net_param : NetParameter or None
        The net if it stands within the solver; `read_solver_net` reads either kind.
    """

    path: Path
    param: pb.SolverParameter
    type: str
    train_net: Path
    test_net: Path | None
    test_iter: int
    notes: tuple[str, ...] = ()
    train_net_param: pb.NetParameter | None = None
    test_net_param: pb.NetParameter | None = None


def read_solver(path: str | Path, root: str | Path | None = None) -> Solver:
    """Read a solver's prototxt.

    Parameters
    ----------
    path : path-like
    root : path-like, optional
        The folder that Caffe is started from, where the solver's relative paths begin, if they do
        not lead to its nets from the solver's own folder or from one above.

    Returns
    -------
    Solver

    Raises
    ------
    CaffeFileError
        If the file cannot be read, is no solver, or lacks a setting that its policy or type
        needs, or does not give one training net and as many test nets as it tests; it names
        the setting.

    Notes
    -----
    Nets are looked for beside the solver, then where a relative path leads from its parent
    folders, as solvers are written to be started from Caffe's own folder; then from `root`.
    """
    path = Path(path)
    param, notes = parse_text(read_proto_text(path), pb.SolverParameter(), path)
    kind = _type(path, param)
    _check(path, param)
    train, train_param = _train_net(path, param, root)
    tests = bool(param.test_iter) and param.test_interval > 0
    test, test_param = _test_net(path, param, root) if tests else (None, None)
    if tests and len(param.test_iter) > 1:
        notes += (f"{path}: tests more than one net; the first is tested",)
    return Solver(
        path=path,
        param=param,
        type=kind,
        train_net=train,
        test_net=test,
        test_iter=param.test_iter[0] if tests else 0,
        notes=notes,
        train_net_param=train_param,
        test_net_param=test_param,
    )


def read_solver_net(
    solver: Solver,
    phase: str = "TRAIN",
    weights: str | Path | None = None,
    *,
    partial: bool = False,
) -> Net:
    """Read the net that a solver trains, or the one that it tests.

    Its state is that of Caffe's solver: the phase, then the net's own state, then the solver's
    train_state, or the first test_state.

    Parameters
    ----------
    solver : Solver
    phase : {"TRAIN", "TEST"}
    weights, partial
        As for `read_net`.

    Returns
    -------
    Net

    Raises
    ------
    CaffeFileError, NetError
        As for `read_net`; the file of a net within the solver is the solver's.
    ValueError
        If the test net of a solver is asked for that does not test.
    """
    param = solver.param
    if phase == "TRAIN":
        path, message, state = solver.train_net, solver.train_net_param, param.train_state
    elif solver.test_net is None:
        raise ValueError(f"{solver.path}: the solver has no {phase} net")
    else:
        path, message = solver.test_net, solver.test_net_param
        state = param.test_state[0] if param.test_state else pb.NetState()
    source = path if message is None else message
    return read_net(source, weights, phase, partial=partial, state=state, path=path)


def _type(path: Path, param: pb.SolverParameter) -> str:
    if param.HasField("solver_type"):
        return SOLVERS[param.solver_type]  # the order of the legacy enum
    types = {name.lower(): name for name in SOLVERS}
    if param.type.lower() not in types:
        raise CaffeFileError(
            path, f"type is '{param.type}'; it must be one of {', '.join(SOLVERS)}"
        )
    return types[param.type.lower()]


def _check(path: Path, param: pb.SolverParameter) -> None:
    def need(condition: bool, message: str) -> None:
        if not condition:
            raise CaffeFileError(path, message)

    need(param.HasField("base_lr"), "has no base_lr")
    need(math.isfinite(param.base_lr) and param.base_lr >= 0, f"base_lr is {param.base_lr:g}")
    need(param.max_iter > 0, "has no max_iter above 0")
    need(
        param.lr_policy in POLICIES,
        f"lr_policy is '{param.lr_policy}'; it must be one of {', '.join(POLICIES)}",
    )
    for name in _NEEDED.get(param.lr_policy, ()):
        need(param.HasField(name), f"lr_policy '{param.lr_policy}' needs {name}")
    if param.lr_policy == "step":
        need(param.stepsize > 0, "stepsize must be above 0")
    if param.lr_policy == "multistep":
        need(bool(param.stepvalue), "lr_policy 'multistep' needs stepvalue")
        steps = list(param.stepvalue)
        need(steps == sorted(steps), f"stepvalue {steps} must rise")
    need(param.iter_size > 0, f"iter_size is {param.iter_size}; it must be 1 or more")
    need(
        param.regularization_type in ("L1", "L2"),
        f"regularization_type is '{param.regularization_type}'; it must be L1 or L2",
    )
    need(not param.test_iter or min(param.test_iter) > 0, "test_iter must be 1 or more")


def _train_net(
    path: Path, param: pb.SolverParameter, root: str | Path | None
) -> tuple[Path, pb.NetParameter | None]:
    """Return the training net's file, and the net if it stands within the solver."""
    keys = ("net", "net_param", "train_net", "train_net_param")
    used_keys = [key for key in keys if param.HasField(key)]
    if not used_keys:
        raise CaffeFileError(path, "names no 'net' or 'train_net'; is it a solver?")
    if len(used_keys) > 1:
        raise CaffeFileError(
            path, f"has more than one training net: {', '.join(used_keys)}; keep one"
        )
    return _place(path, used_keys[0], getattr(param, used_keys[0]), root)


def _test_net(
    path: Path, param: pb.SolverParameter, root: str | Path | None
) -> tuple[Path, pb.NetParameter | None]:
    """Return the first test net, as `_train_net`; the order is that of ``InitTestNets``."""
    own: list[tuple[str, str | pb.NetParameter]]
    own = [("test_net_param", net) for net in param.test_net_param]
    own += [("test_net", name) for name in param.test_net]
    shared = next((key for key in ("net", "net_param") if param.HasField(key)), None)
    count = len(param.test_iter)
    if count < len(own) or (count > len(own) and shared is None):
        raise CaffeFileError(
            path, f"has {count} test_iter for {len(own)} test nets; give one for each"
        )
    if len(param.test_state) not in {0, count}:
        raise CaffeFileError(
            path,
            f"has {len(param.test_state)} test_state for {count} test_iter; "
            "give one for each or none",
        )
    if own:
        return _place(path, *own[0], root)
    assert shared is not None
    return _place(path, shared, getattr(param, shared), root)


def _place(
    path: Path, key: str, net: str | pb.NetParameter, root: str | Path | None
) -> tuple[Path, pb.NetParameter | None]:
    if isinstance(net, str):
        return _existing(path, net, key, root), None
    if not net.layer and not net.layers:
        raise CaffeFileError(path, f"{key} describes no layers")
    return path, net


def _existing(path: Path, name: str, key: str, root: str | Path | None) -> Path:
    folders = [path.parent, *path.resolve().parent.parents]
    folders += [] if root is None else [Path(root)]
    for folder in folders:
        if os.path.isfile(folder / name):
            return folder / name
    raise CaffeFileError(
        path,
        f"names the {key} '{name}', which is neither beside it nor in a folder above; set root to "
        "the folder that Caffe is started from, where relative paths begin",
    )
