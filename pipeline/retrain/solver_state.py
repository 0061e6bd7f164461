"""Between a training here and the .solverstate of Caffe: iteration, weights and history.

A solver of Caffe's goes on from what is written here, and a training here from what Caffe wrote.
Ranges that a training with fake quantization learns have no place in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import caffeio
from caffeio import Net, Solver, SolverState
from caffeio.proto.caffe_pb2 import SolverParameter
from pipeline.errors import ConfigError, PipelineError

__all__ = ["history_of", "read_state", "state_of", "steps_passed", "trained_net", "weights_of"]

_LARGEST = np.finfo(np.float32).max


def steps_passed(param: SolverParameter, iteration: int) -> int:
    """Return Caffe's current_step after so many iterations: the steps of the last one's rate."""
    last = max(iteration - 1, 0)
    if param.lr_policy == "step":
        return last // param.stepsize
    if param.lr_policy == "multistep":
        return sum(last >= step for step in param.stepvalue)
    return 0


def state_of(
    solver: Solver,
    iteration: int,
    blobs: Mapping[str, Tensor],
    history: Mapping[str, Sequence[Tensor]],
    weights: str,
) -> SolverState:
    """Return a training's state as Caffe keeps it.

    Parameters
    ----------
    solver : Solver
    iteration : int
        Iterations done.
    blobs : mapping of blob name to Tensor
        All blobs of the net in its order, each at its first layer.
    history : mapping of blob name to list of Tensor
        Of those that are learned; others have none yet.
    weights : str
        The file with the weights.
    """
    count = max((len(h) for h in history.values()), default=1)
    arrays = []
    for part in range(count):
        for name, blob in blobs.items():
            values = history[name][part] if name in history else torch.zeros_like(blob)
            # a state holds no infinity; the largest float32 makes a solver diverge just as well
            array = np.clip(values.detach().cpu().numpy(), -_LARGEST, _LARGEST)
            arrays.append(np.ascontiguousarray(array, np.float32).reshape(array.shape))
    return SolverState(iteration, weights, steps_passed(solver.param, iteration), tuple(arrays))


def history_of(
    state: SolverState, path: Path, blobs: Mapping[str, Tensor], each: int
) -> dict[str, list[np.ndarray]]:
    """Return what a state keeps for each blob.

    Parameters
    ----------
    state : SolverState
    path : Path
        Its file, for errors.
    blobs : mapping of blob name to Tensor
        All blobs of the net in its order.
    each : int
        How many numbers this solver keeps for each value.

    Raises
    ------
    PipelineError
        If the state is of another solver or another net.
    """
    if len(state.history) != each * len(blobs):
        raise PipelineError(
            f"{path}: holds {len(state.history)} blobs of history; this solver keeps "
            f"{each * len(blobs)} for the {len(blobs)} blobs of this net: it is of another net, "
            "or of another type of solver"
        )
    histories: dict[str, list[np.ndarray]] = {}
    for i, array in enumerate(state.history):
        name = [*blobs][i % len(blobs)]
        if array.size != blobs[name].numel():
            raise PipelineError(
                f"{path}: blob {i} of its history has {array.size} values, '{name}' has "
                f"{blobs[name].numel()}: it is of another net"
            )
        histories.setdefault(name, []).append(array.reshape(tuple(blobs[name].shape)))
    return histories


def weights_of(state: SolverState, path: Path) -> Path:
    """Return the file with a state's weights: as it names it, or beside the state.

    Raises
    ------
    ConfigError
        If it names none, or it is not there.
    """
    if not state.learned_net:
        raise ConfigError(f"{path}: names no file with weights (learned_net)")
    named = Path(state.learned_net)
    places = [path.parent / named.name, named, path.parent / named]
    for place in places:
        if os.path.isfile(place):
            return place
    raise ConfigError(
        f"{path}: its weights '{state.learned_net}' are not there; put '{named.name}' beside it"
    )


def trained_net(net: Net, blobs: Mapping[str, tuple[np.ndarray, ...]]) -> Net:
    """Return a net with the blobs of a training, by the names of its layers."""
    return net.with_layers(tuple(replace(x, blobs=blobs.get(x.name, ())) for x in net.layers))


def read_state(path: Path) -> tuple[SolverState, Path]:
    """Return a state and the file with its weights.

    Raises
    ------
    ConfigError
        If there is no such file, or its weights are not there.
    caffeio.CaffeFileError
        If it is damaged.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"--resume: there is no file '{path}'")
    state = caffeio.read_solver_state(path)
    return state, weights_of(state, path)
