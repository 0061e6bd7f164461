"""What decomposing a net has done, as a value and as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pipeline.quantize.decompose import LayerRank
from pipeline.quantize.evaluate import ModelScore
from pipeline.report.data_tables import show_notes
from pipeline.report.fit import plain_table
from pipeline.report.tables import show_accuracy, show_files

__all__ = ["Decomposed", "show_decomposed"]


@dataclass(frozen=True)
class Decomposed:
    """A net whose convolutions are of lower rank.

    Attributes
    ----------
    net : str
    layers : tuple of LayerRank
        Every convolution that was looked at.
    macs_before, macs : int
        Of one sample.
    weights_before, weights : int
        Numbers in all blobs.
    accuracy : tuple of ModelScore
        Of the float net, and of what it has become.
    files : dict of str to Path
        What was written, by kind.
    seconds : dict of str to float
        Time of each stage.
    notes : tuple of str
    """

    net: str
    layers: tuple[LayerRank, ...]
    macs_before: int
    macs: int
    weights_before: int
    weights: int
    accuracy: tuple[ModelScore, ...]
    files: dict[str, Path]
    seconds: dict[str, float]
    notes: tuple[str, ...]


def show_decomposed(found: Decomposed, console: Console) -> None:
    """Print what became of each layer, what it saves, and what it costs."""
    changed = [x for x in found.layers if x.form]
    title = f"{len(changed)} of {len(found.layers)} convolutions of {found.net} as two"
    table = plain_table(title, "layer", "form", "rank", "error", "MACs before", "MACs", left=2)
    for x in changed:
        table.add_row(
            x.layer, x.form, str(x.rank), f"{x.error:.3f}", f"{x.macs_before:,}", f"{x.macs:,}"
        )
    console.print(table)
    for what, before, after in (
        ("MACs a sample", found.macs_before, found.macs),
        ("Weights", found.weights_before, found.weights),
    ):
        share = after / before - 1 if before else 0.0
        console.print(f"{what}: {before:,} before, {after:,} now, {share:+.1%}.", highlight=False)
    show_accuracy(found.accuracy, console)
    show_notes(found.notes, console)
    show_files(found.files, console)
