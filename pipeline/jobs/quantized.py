"""A quantized model as a value: run, or written in the forms that accelerators and Caffe take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caffeio import Net
from caffeio.record import Record
from pipeline.jobs.files import integer_writers, prefixed_files
from pipeline.jobs.writing import held_folder, write_files
from pipeline.quantize.export import deploy_net, fakequant_net
from pipeline.quantize.fuse import Fused
from pipeline.quantize.int8_net import Int8Net

__all__ = ["SAVE_TYPES", "QuantizedModel"]

_FAKEQUANT = ("fakequant_prototxt", "fakequant_weights")
_DEPLOY = ("deploy_prototxt", "deploy_weights")

#: What is written, by the original tool's ``save_type``.
SAVE_TYPES = {
    "Fakequant": ("record", *_FAKEQUANT, "node_map", "manifest"),
    "Deploy": ("record", *_DEPLOY, "node_map", "manifest"),
    "Both": ("record", *_FAKEQUANT, *_DEPLOY, "node_map", "manifest"),
}


@dataclass(frozen=True)
class QuantizedModel:
    """A net and the integers of its quantized layers.

    Attributes
    ----------
    record : Record
        Factors of the quantized layers.
    int8 : Int8Net
        Runs it.
    fused : Fused
        The float net, BatchNorm and Scale folded.
    notes, warnings : tuple of str
        What the user should know; what is probably wrong.
    """

    record: Record
    int8: Int8Net
    fused: Fused
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def fakequant(self) -> Net:
        """The float net with Quant and DeQuant layers that simulates INT8."""
        return fakequant_net(self.int8.net, self.int8.layers)

    @property
    def deploy(self) -> Net:
        """The net with int8 weights, int32 bias and packed dequantization parameters."""
        return deploy_net(self.int8.net, self.int8.layers)

    def save(self, save_type: str, save_path: str | Path) -> dict[str, Path]:
        """Write the model, all files or none; files of these names are replaced.

        Parameters
        ----------
        save_type : "Fakequant", "Deploy" or "Both"
        save_path : path-like
            Folder and prefix: ``"results/net"`` makes ``results/net_deploy_model.prototxt``.

        Returns
        -------
        dict of str to Path
            What was written, by kind.

        Raises
        ------
        ValueError
            If the `save_type` is another.
        PipelineError, caffeio.CaffeFileError
            If it cannot be written.
        """
        if save_type not in SAVE_TYPES:
            raise ValueError(f"save_type is '{save_type}', not one of {', '.join(SAVE_TYPES)}")
        files = prefixed_files(save_path, SAVE_TYPES[save_type])
        writers = integer_writers(self.record, self.fused, self.int8)
        with held_folder(next(iter(files.values())).parent):
            write_files(files, writers)
        return files
