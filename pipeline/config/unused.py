"""Settings that are given and have no effect, each with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.base import no_effect
from pipeline.config.calibrate import CalibrateConfig
from pipeline.config.load import Config

__all__ = ["unused_settings"]

#: What the samples of a calibration are; the rest of ``[calibrate]`` says how it quantizes.
_SAMPLES = {"data", "batch_num", "batch_size", "samples", "seed"}
#: What ``[retrain]`` has keys of its own for.
_CHOICE = {
    "do_fusion",
    "joint_quant",
    "only_layers",
    "skip_fusion_layers",
    "skip_layer_types",
    "skip_layers",
}


def unused_settings(config: Config) -> tuple[str, ...]:
    """Return a note on each setting that a config gives and that nothing asks for.

    Parameters
    ----------
    config : Config
        As read: what is given counts, even if it is the default.
    """
    return tuple(_unused(config))


def _unused(config: Config) -> Iterator[str]:
    given = config.calibrate.model_fields_set
    if config.decompose is not None:
        yield "[decompose] has no effect here: --decompose makes a net of lower rank"
    if config.record is not None:
        rest = set(CalibrateConfig.model_fields) - _SAMPLES
        yield from no_effect("calibrate", given & rest, "the factors are those of the record")
        given = config.improve.model_fields_set
        yield from no_effect("improve", given, "a record is taken as it is")
        return
    if config.nuq is not None and config.nuq.num_of_iteration:
        yield "nuq.num_of_iteration has no effect: the best values are found at once"
    if config.retrain is None:
        return
    yield from no_effect("calibrate", given & _CHOICE, "with a training [retrain] decides")
    why = "a training observes its samples anew"
    yield from no_effect("calibrate", given & {"cache"}, why)
    why = "after a training nothing is corrected: the weights have learned their rounding"
    yield from no_effect("improve", config.improve.model_fields_set, why)
    for table in ("fallback", "nuq"):
        if getattr(config, table) is not None:
            yield f"[{table}] has no effect: it is for calibration, the config has [retrain]"
