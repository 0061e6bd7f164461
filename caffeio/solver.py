"""A solver's prototxt: how Caffe trains a net."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from caffeio.errors import CaffeFileError
from caffeio.proto import caffe_pb2 as pb
from caffeio.prototxt import parse_text, read_text_file

__all__ = ["POLICIES", "SOLVERS", "Solver", "read_solver"]

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
        The net's file, as found.
    test_net : Path or None
        The file whose TEST phase is the test net; None if the solver does not test.
    test_iter : int
        Batches of one test.
    notes : tuple of str
        What the file holds that is not used, a sentence each.
    """

    path: Path
    param: pb.SolverParameter
    type: str
    train_net: Path
    test_net: Path | None
    test_iter: int
    notes: tuple[str, ...] = ()


def read_solver(path: str | Path) -> Solver:
    """Read a solver's prototxt.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Solver

    Raises
    ------
    CaffeFileError
        If the file cannot be read, is no solver, or lacks a setting that its policy or type
        needs; it names the setting.

    Notes
    -----
    Nets are looked for beside the solver, then where a relative path leads from its parent
    folders, as solvers are written to be started from Caffe's own folder.
    """
    path = Path(path)
    param, notes = parse_text(read_text_file(path), pb.SolverParameter(), path)
    kind = _type(path, param)
    _check(path, param)
    train, train_key = _net(path, param, ("net", "train_net"))
    test, _ = _net(path, param, ("net", "test_net"))
    if train is None:
        raise CaffeFileError(path, "names no 'net' or 'train_net'; is it a solver?")
    tests = bool(param.test_iter) and param.test_interval > 0
    if len(param.test_net) + len(param.test_net_param) > 1:
        notes += (f"{path}: tests more than one net; the first is tested",)
    return Solver(
        path=path,
        param=param,
        type=kind,
        train_net=_existing(path, train, train_key),
        test_net=_existing(path, test, "test_net") if tests and test else None,
        test_iter=param.test_iter[0] if tests else 0,
        notes=notes,
    )


def _type(path: Path, param: pb.SolverParameter) -> str:
    if param.HasField("solver_type"):
        return SOLVERS[param.solver_type]  # the order of the legacy enum
    known = {name.lower(): name for name in SOLVERS}
    if param.type.lower() not in known:
        raise CaffeFileError(
            path, f"type is '{param.type}'; it must be one of {', '.join(SOLVERS)}"
        )
    return known[param.type.lower()]


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


def _net(path: Path, param: pb.SolverParameter, keys: tuple[str, str]) -> tuple[str | None, str]:
    """Return the name of the net's file and the key that gives it."""
    given = {f.name: value for f, value in param.ListFields()}
    for key in keys:
        if f"{key}_param" in given:
            raise CaffeFileError(
                path, f"holds a net within it ({key}_param); write it to a file of its own"
            )
        if key in given:
            return (given[key] if isinstance(given[key], str) else given[key][0]), key
    return None, keys[0]


def _existing(path: Path, name: str, key: str) -> Path:
    folders = [path.parent, *path.resolve().parent.parents]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise CaffeFileError(
        path, f"names the {key} '{name}', which is neither beside it nor in a folder above"
    )
