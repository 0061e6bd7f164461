"""Calibration in a loop of one's own, for batches that come from a program and not from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from caffeio import Net
from caffeio.record import Record
from pipeline.config.calibrate import CalibrateConfig
from pipeline.config.improve import ImproveConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.jobs.quantized import QuantizedModel
from pipeline.jobs.stages import Ranges, improved_by, ranges_of
from pipeline.quantize.calibrate import search
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.joint import joint_notes, with_shifts
from pipeline.quantize.observe import Observations, RangeObserver
from pipeline.quantize.prepare import Prepared, prepare_layers
from pipeline.quantize.samples import samples_of
from pipeline.report.progress import Reporter
from pipeline.runtime.executor import FloatNet

__all__ = ["Calibration", "create_config"]


def create_config(net: Net, **settings: Any) -> CalibrateConfig:
    """Return settings of a calibration, checked against a net.

    Parameters
    ----------
    net : Net
        With weights.
    **settings
        Keys of ``[calibrate]`` by their names there: ``batch_num``, ``effort``, ``skip_layers``,
        ``activation_offset``, ``common_config``, ``quant_cfg``, ...

    Raises
    ------
    ConfigError
        If a key or a value is wrong, or names what the net has not.
    PipelineError
        If there is nothing to quantize.

    Examples
    --------
    >>> config = pipeline.create_config(net, batch_num=2, skip_layers=["fc"])  # doctest: +SKIP
    """
    try:
        config = CalibrateConfig.model_validate(settings)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise ConfigError(f"'{key}': {wrong['msg'].removeprefix('Value error, ')}") from None
    prepare_layers(net, config)
    return config


class Calibration:
    """Calibrates a net on batches that are fed to it, one by one.

    Parameters
    ----------
    net : Net
        Float, with weights, as `caffeio.read_net` returns it.
    config : CalibrateConfig, optional
        As `create_config` makes it. Its ``batch_num`` is the number of batches that will be fed,
        at most; with ``joint_quant``, or efforts other than ``"original"``, the inputs are kept.
    device : str
        One of `kernels.DEVICES`.

    Raises
    ------
    ConfigError
        If the config asks for ``exact``, whose second pass needs all batches again.
    PipelineError, caffeio.NetError
        If nothing can be quantized, or the net is quantized already.

    Examples
    --------
    >>> observer = pipeline.Calibration(net, pipeline.create_config(net))  # doctest: +SKIP
    >>> observer.feed({"data": x})  # float32 (N, 3, 224, 224), as the net reads it
    ... # doctest: +SKIP
    >>> record = observer.finish()  # doctest: +SKIP
    >>> observer.save("Both", "results/net")  # doctest: +SKIP
    """

    def __init__(
        self, net: Net, config: CalibrateConfig | None = None, *, device: str = "cpu"
    ) -> None:
        self._config = config or create_config(net)
        if self._config.exact:
            raise ConfigError(
                "exact = true reads all batches twice: leave it out, or let quantize_model read "
                "them from files"
            )
        self._work = prepare_layers(net, self._config)
        self._device = device
        self._observer = RangeObserver(
            FloatNet(self._work.fused.net, device=device),
            self._work.plans,
            self._work.calibrate.batch_num,
        )
        self._fed = 0
        self._kept: list[dict[str, np.ndarray]] = []
        self._model: QuantizedModel | None = None

    @property
    def batch_num(self) -> int:
        """How many batches may be fed."""
        return self._work.calibrate.batch_num

    def feed(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Observe a batch.

        Parameters
        ----------
        inputs : mapping of blob name to array
            What the net's inputs are to hold, batch first, as `FloatNet.forward` takes them.

        Raises
        ------
        PipelineError
            If it is one batch more than ``batch_num``, comes after `finish`, or a layer reads NaN
            or infinity in it.
        caffeio.NetError
            If the net cannot take it.
        """
        if self._model is not None:
            raise PipelineError("the calibration is finished: begin another to feed more")
        if self._fed == self.batch_num:
            raise PipelineError(
                f"batch_num is {self.batch_num}, but another batch was fed: raise it in "
                "create_config"
            )
        self._observer.feed(self._fed, inputs)
        self._fed += 1
        if self._work.effort != "original" or self._work.calibrate.joint_quant:
            self._kept.append({name: np.array(x) for name, x in inputs.items()})

    def finish(self) -> Record:
        """Search all ranges, correct what the effort asks for, and return the record.

        Raises
        ------
        PipelineError
            If nothing was fed, or a layer has no scale.
        """
        return self.model.record

    @property
    def model(self) -> QuantizedModel:
        """The quantized model; it is made when it is first asked for."""
        if self._model is None:
            self._model = self._quantized()
        return self._model

    def save(self, save_type: str, save_path: str | Path) -> dict[str, Path]:
        """Write the model; see `QuantizedModel.save`."""
        return self.model.save(save_type, save_path)

    def _quantized(self) -> QuantizedModel:
        if not self._fed:
            raise PipelineError("no batch was fed: there is nothing to find ranges from")
        work, device = self._work, self._device
        ranges = _found(work, self._observer.seen, device)

        def again(changed: Prepared) -> Ranges:
            net = FloatNet(changed.fused.net, device=device)
            observer = RangeObserver(net, changed.plans, self._work.calibrate.batch_num)
            for i, inputs in enumerate(self._kept):
                observer.feed(i, inputs)
            return _found(changed, observer.seen, device)

        better = improved_by(
            ImproveConfig(),
            work,
            ranges,
            lambda: samples_of(work.fused.net, self._kept),
            again,
            Reporter(quiet=True),
            device=device,
        )
        record, net = better.result.record, better.result.net
        notes = (*work.notes, *better.notes)
        if work.calibrate.joint_quant:
            record = with_shifts(net, record, self._kept, ranges.shapes, device=device)
            notes = (*notes, *joint_notes(net, record))
        int8 = Int8Net.of_fused(net, record, device=device)
        return QuantizedModel(record, int8, better.fused, notes, work.warnings)


def _found(work: Prepared, seen: Observations, device: str) -> Ranges:
    net = work.fused.net
    return ranges_of(work, net, seen, search(net, work.plans, seen, device))
