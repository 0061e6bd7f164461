"""The iterations of a training: forward, backward, update, test, snapshot."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import caffeio
from caffeio import Solver, SolverState
from pipeline.errors import ConfigError, PipelineError
from pipeline.report.curve import Point
from pipeline.report.progress import TrainingProgress
from pipeline.retrain.fake import clips_by_layer
from pipeline.retrain.feed import TrainingFeed
from pipeline.retrain.group import Group
from pipeline.retrain.module import CaffeModule
from pipeline.retrain.optimizer import Optimizer
from pipeline.retrain.plan import Best, Interrupted, Plan, Test
from pipeline.retrain.rate import learning_rate
from pipeline.retrain.snapshot import (
    Snapshot,
    load_snapshot,
    random_states,
    save_snapshot,
    set_random_states,
)
from pipeline.retrain.solver_state import history_of, state_of, trained_net
from pipeline.signals import signals_taken

__all__ = ["Trainer"]


class Trainer:
    """Trains a module.

    Parameters
    ----------
    module : CaffeModule
    solver : Solver
    feed : TrainingFeed
    group : Group
    plan : Plan
    test : Test, optional
    report : callable, optional
        Called after each iteration and each test.

    Attributes
    ----------
    points : list of Point
        The course so far.
    best : Best
    iteration : int
        Iterations done.
    blobs : dict of layer name to tuple of ndarray
        When a training has ended: the weights after its last iteration, which need not be the
        best. With `state` another solver goes on from there.
    clips : dict of layer name to (float, float)
        Likewise: clip_max and clip_min of the data of fake-quantized layers.
    """

    def __init__(
        self,
        module: CaffeModule,
        solver: Solver,
        feed: TrainingFeed,
        group: Group,
        plan: Plan,
        *,
        test: Test | None = None,
        report: Callable[[TrainingProgress], None] = lambda progress: None,
    ) -> None:
        self.module = module
        self.points: list[Point] = []
        self.best = Best()
        self._solver = solver
        self._feed = feed
        self._group = group
        self._plan = plan
        self._test = test
        self._report = report
        self._optimizer = Optimizer(solver, module.learned)
        self.iteration = 0
        self.blobs: dict[str, tuple[np.ndarray, ...]] = {}
        self.clips: dict[str, tuple[float, float]] = {}
        self._start = 0
        self._speed = 0.0

    def resume(self) -> None:
        """Go on from the last snapshot.

        Raises
        ------
        PipelineError
            If there is none, or it belongs to another training.
        """
        snapshot = load_snapshot(self._plan.snapshots, self._plan.made_of)
        self._restore(snapshot.state)
        self.iteration = snapshot.iteration

    def follow(self, state: SolverState, path: Path) -> None:
        """Go on from where a solver of Caffe's, or another training here, has stopped.

        The weights are the module's; as in Caffe, the data begins anew.

        Parameters
        ----------
        state : SolverState
        path : Path
            Its file, for errors.

        Raises
        ------
        ConfigError
            If there is nothing left to train.
        PipelineError
            If the state does not fit the net and the solver.
        """
        p = self._solver.param
        if state.iteration >= p.max_iter:
            raise ConfigError(
                f"{path}: has done {state.iteration} iterations, and max_iter of "
                f"'{self._solver.path}' is {p.max_iter}: there is nothing left to train"
            )
        histories = history_of(state, path, self.module.owned, self._optimizer.each)
        for name, own in self._optimizer.history.items():
            # the ranges have no history in the file: they begin anew
            for tensor, array in zip(own, histories.get(name, ()), strict=False):
                tensor.copy_(torch.from_numpy(array))
        self.iteration = self._start = state.iteration

    def state(self, weights: str) -> SolverState:
        """Return iteration and history for Caffe; `weights` is the name of their file."""
        history = self._optimizer.history
        return state_of(self._solver, self.iteration, self.module.owned, history, weights)

    def run(self) -> None:
        """Train to the end, or until no test gets better; then take the best state.

        Raises
        ------
        Interrupted
            On Ctrl-C or SIGTERM, after a snapshot.
        PipelineError
            If the loss is not finite any more: names the iteration, the layer and the rate.
        """
        p = self._solver.param
        batches = self._feed.batches((self.iteration - self._start) * p.iter_size)
        if not self.module.begun:
            self._begin()
        net = self._replicated()
        with _stop_requested() as stop:
            while self.iteration < p.max_iter:
                if self._test_due():
                    self._tested()
                if self._patience_is_over():
                    break
                if self._group.any(stop.is_set()):
                    self._save()
                    raise Interrupted(
                        f"interrupted after {self.iteration} iterations; --resume goes on"
                    )
                self._iterate(net, batches)
                if self.iteration % self._plan.interval == 0:
                    self._save()
            else:
                if self._test is not None:
                    self._tested()
        self._save()
        self.blobs = self.module.trained_blobs()
        self.clips = clips_by_layer(self.module.ranges)
        if self._group.leads and self.best.iteration >= 0:
            best = load_snapshot(self._plan.best, self._plan.made_of)
            self._restore_weights(best.state)

    def _begin(self) -> None:
        """Set the ranges that the first batch decides, and nothing else."""
        averages = [b.clone() for b in self.module.own_averages()]
        states = dict(self.module.kept)
        random = random_states(self._group.device)
        with torch.no_grad():
            self.module(next(self._feed.batches(0, 1)), True)
        set_random_states(random, self._group.device)
        self.module.kept = states
        for blob, before in zip(self.module.own_averages(), averages, strict=True):
            blob.copy_(before)

    def _replicated(self) -> torch.nn.Module:
        if self._group.size == 1:
            return self.module
        with warnings.catch_warnings():
            # torch 2.13 renames the setting, which older ones do not know by its new name
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(self.module, broadcast_buffers=False)

    def _iterate(self, net: torch.nn.Module, batches: Iterator[Mapping[str, Tensor]]) -> None:
        start = time.perf_counter()
        p = self._solver.param
        rate = learning_rate(p, self.iteration)
        total = torch.zeros((), device=self._group.device)
        for _ in range(p.iter_size):
            inputs = next(batches)
            try:
                loss = net(inputs, True).loss
            except PipelineError as error:
                raise PipelineError(
                    f"at iteration {self.iteration}, learning rate {rate:g}: {error}"
                ) from None
            self._check(loss, inputs, rate)
            if loss.requires_grad:  # else no parameter reaches a loss: all of them only decay
                loss.backward()
            total += loss.detach()
        self._optimizer.step(self.iteration, rate)
        loss_now = float(self._group.mean(total)) / p.iter_size
        self._add(Point(self.iteration, loss_now, rate))
        self.iteration += 1
        samples = self._feed.order.batch_size * p.iter_size
        now = samples / (time.perf_counter() - start)
        self._speed = now if not self._speed else 0.9 * self._speed + 0.1 * now
        self._report(replace(self._progress(), loss=loss_now, rate=rate))

    def _progress(self) -> TrainingProgress:
        p = self._solver.param
        samples = (p.max_iter - self.iteration) * self._feed.order.batch_size * p.iter_size
        left = samples / self._speed if self._speed else 0.0
        return TrainingProgress(self.iteration, p.max_iter, self._speed, left)

    def _check(self, loss: Tensor, inputs: Mapping[str, Tensor], rate: float) -> None:
        if self._group.any(not bool(loss.isfinite())):
            where = self.module.first_not_finite(inputs)
            raise PipelineError(
                f"the loss is {loss.item()} at iteration {self.iteration}, learning rate "
                f"{rate:g}: {where} is NaN or infinite first; lower base_lr, set clip_gradients, "
                "or look at the data"
            )

    def _add(self, point: Point) -> None:
        """Add what is known of an iteration to the course."""
        if self.points and self.points[-1].iteration == point.iteration:
            new_values = {k: v for k, v in asdict(point).items() if v is not None}
            self.points[-1] = Point(**{**asdict(self.points[-1]), **new_values})
        else:
            self.points.append(point)

    def _test_due(self) -> bool:
        t = self._test
        if t is None or self.iteration % t.interval:
            return False
        done = bool(self.points) and self.points[-1].iteration == self.iteration
        return not done and (self.iteration > 0 or t.first)

    def _tested(self) -> None:
        """Test; keep the state if it is the best."""
        t = self._test
        assert t is not None
        sums: dict[str, float] = {}
        loss = 0.0
        with torch.no_grad():
            for inputs in t.feed.batches(0, t.batches):
                result = t.module(inputs, False)
                loss += float(self._group.mean(result.loss))
                for name, value in result.outputs.items():
                    if value.numel() == 1:
                        mean = float(self._group.mean(value.float()).reshape(()))
                        sums[name] = sums.get(name, 0.0) + mean
        if t.metric not in sums:
            raise PipelineError(
                f"retrain.metric: the test net's output '{t.metric}' is not one number; "
                f"{', '.join(sums) or 'none of its outputs'} would do"
            )
        metric = sums[t.metric] / t.batches
        self._add(Point(self.iteration, metric=metric, test_loss=loss / t.batches))
        better = metric > self.best.metric if t.rising else metric < self.best.metric
        if better or math.isnan(self.best.metric):
            self.best = Best(metric, self.iteration, 0)
            if self._group.leads:
                save_snapshot(self._snapshot(), self._plan.best)
        else:
            self.best = replace(self.best, tests_since=self.best.tests_since + 1)
        self._report(replace(self._progress(), metric=metric))

    def _patience_is_over(self) -> bool:
        patience = self._plan.patience
        return patience is not None and self.best.tests_since >= patience

    def _save(self) -> None:
        """Write a snapshot and the two files for Caffe, whose names both hold the iteration."""
        if not self._group.leads:
            return
        save_snapshot(self._snapshot(), self._plan.snapshots)
        weights, state = self._plan.for_caffe(self.iteration)
        net = trained_net(self.module.net, self.module.trained_blobs())
        caffeio.write_caffemodel(net, weights, overwrite=True)
        caffeio.write_solver_state(self.state(weights.name), state, overwrite=True)
        for old in {*self._plan.all_for_caffe()} - {weights, state}:
            old.unlink()

    def _snapshot(self) -> Snapshot:
        state = {
            "module": self.module.state_dict(),
            "history": self._optimizer.history,
            "random": random_states(self._group.device),
            "kept": [m.kept for m in self._modules()],
            "start": self._start,
            "points": [asdict(p) for p in self.points],
            "best": asdict(self.best),
        }
        return Snapshot(self.iteration, state, self._plan.made_of)

    def _restore(self, state: dict[str, Any]) -> None:
        self._restore_weights(state)
        self._start = state["start"]
        for module, states in zip(self._modules(), state["kept"], strict=True):
            module.kept = states
        for name, tensors in state["history"].items():
            for own, stored in zip(self._optimizer.history[name], tensors, strict=True):
                own.copy_(stored)
        set_random_states(state["random"], self._group.device)
        self.points = [Point(**p) for p in state["points"]]
        self.best = Best(**state["best"])

    def _modules(self) -> list[CaffeModule]:
        """Return the modules that remember: of the training, and of the tests."""
        return [self.module, *([self._test.module] if self._test else [])]

    def _restore_weights(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM ask for a stop; a second Ctrl-C stops at once."""
    event = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    with signals_taken(ask):
        yield event
