"""What a calibration has observed is kept: to go on after an interruption, and for other searches.

A pass may take hours. From its tenth second on, what has been observed is copied between two
batches every second or so, for Ctrl-C comes in the middle of one, and written every half minute;
nobody waits for copies or files longer than a small share of the time.
"""

from __future__ import annotations

import glob
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from caffeio import CaffeFileError, Net
from pipeline.config.load import Config
from pipeline.errors import ConfigError, PipelineError
from pipeline.jobs.fingerprint import Fingerprint
from pipeline.jobs.state_file import Observed, StateError, load_state, packed, save_state
from pipeline.log import log
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.observe import Observations, fitted, lacking
from pipeline.report.progress import Reporter

__all__ = ["Keeper", "keeper_of"]

#: Seconds of a pass that are not worth a file, between two copies, and between two files.
_FIRST, _COPY, _SAVE = 10.0, 1.0, 30.0
#: A copy, or a file, takes no more than one in so many seconds.
_SHARE = 50


class Keeper:
    """Keeps the observations of one calibration in one file.

    Parameters
    ----------
    path : Path
    cache : bool
        Use what is there, and leave it there at the end.
    resume : bool
        Use what is there, or raise.
    reporter : Reporter

    Attributes
    ----------
    notes : tuple of str
        What a report should say: that observations were used again, or why not.
    """

    def __init__(self, path: Path, *, cache: bool, resume: bool, reporter: Reporter) -> None:
        self.path = path
        self.notes: tuple[str, ...] = ()
        self._cache, self._resume, self._reporter = cache, resume, reporter
        self._total = 0
        self._print: Callable[[], Fingerprint] | None = None
        self._fingerprint: Fingerprint | None = None
        #: of the same pass, and perhaps of other layers
        self._before: Observations | None = None
        #: batches done, and their arrays, not yet written; batches that the file holds
        self._latest: tuple[int, dict[str, np.ndarray]] | None = None
        self._written: int | None = None
        self._start = self._next_copy = self._next_save = 0.0

    def begin(
        self,
        make: Callable[[], Fingerprint],
        net: Net,
        plans: Mapping[str, LayerPlan],
        batch_num: int,
    ) -> Observed:
        """Return what the pass can begin with; nothing, if it has to observe everything.

        Parameters
        ----------
        make : callable
            Returns what the observations belong to; it reads some samples.
        net : Net
            The fused net.
        plans : mapping of layer name to LayerPlan
        batch_num : int
            All batches.

        Raises
        ------
        PipelineError
            With `resume` if there is nothing to go on from, or it belongs to another calibration:
            the message says what differs. Also if the file is damaged.
        """
        self._print, self._total = make, batch_num
        found = self._found(net, plans)
        self._start = time.monotonic()
        self._next_copy = self._next_save = self._start + _FIRST
        return found

    def _found(self, net: Net, plans: Mapping[str, LayerPlan]) -> Observed:
        if not self.path.exists():
            if self._resume:
                raise PipelineError(
                    f"{self.path}: there is no calibration to go on from; run without --resume"
                )
            return Observed()
        if not (self._resume or self._cache):
            self._reporter.say(
                f"{self.path} holds what a run before has observed; --resume would go on from it, "
                "this run begins anew and removes it"
            )
            return Observed()
        try:
            before, observed = load_state(self.path)
        except StateError as error:
            if self._resume:
                raise
            self.notes = (f"samples observed again: {error}",)
            self._reporter.say(self.notes[0])
            return Observed()
        other = self._made().differences(before)
        share = Fraction(observed.batches, self._total)
        layers = () if other else lacking(observed.seen, net, plans, share)
        if other or layers:
            self._refuse(other, layers)
            self._before = observed.seen if not other and share == 1 else None
            return Observed()
        if share == 1:
            self._before = observed.seen
            what = f"observations of {observed.seen.samples} samples used again"
            self.notes = (what,) if self._cache else ()
        else:
            what = f"going on after {observed.batches} of {self._total} batches"
        self._reporter.say(f"{what}, from {self.path}")
        self._written = observed.batches
        return replace(observed, seen=fitted(observed.seen, net, plans, share))

    def _refuse(self, other: tuple[str, ...], layers: tuple[str, ...]) -> None:
        """Raise, or say that what is there is of no use; see `Fingerprint.differences`."""
        words = f"was made with other {' and '.join(other)}"
        if layers:
            more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
            words = f"holds too little of what layer '{layers[0]}'{more} read, for these settings"
        if self._resume:
            raise PipelineError(
                f"{self.path}: {words}; go on with what it was made with, or run without --resume"
            )
        self.notes = (f"samples observed again: {self.path.name} {words}",)
        self._reporter.say(self.notes[0])

    def _made(self) -> Fingerprint:
        if self._fingerprint is None:
            assert self._print is not None
            self._fingerprint = self._print()
        return self._fingerprint

    def after(self, observed: Observed) -> None:
        """Take what has been observed between two batches, if it is time for that."""
        now = time.monotonic()
        if now < self._next_copy:
            return
        self._made()  # as long as the data is open
        start = time.monotonic()
        self._latest = observed.batches, packed(observed)
        done = time.monotonic()
        self._next_copy = done + max(_COPY, _SHARE * (done - start))
        if done >= self._next_save:
            self._save()
            end = time.monotonic()
            self._next_save = end + max(_SAVE, _SHARE * (end - done))

    def finished(self, observed: Observed) -> None:
        """Take all that was observed."""
        long = time.monotonic() - self._start >= _FIRST
        if not (long or self._cache or self._written is not None):
            return
        if self._before is not None:
            observed = replace(observed, seen=_both(observed.seen, self._before))
        self._made()
        self._latest = observed.batches, packed(observed)
        self._save()

    def _save(self) -> None:
        """Write the latest copy; a run does not end because that fails."""
        assert self._latest is not None
        assert self._fingerprint is not None
        batches, arrays = self._latest
        try:
            save_state(self.path, self._fingerprint, arrays)
        except CaffeFileError as error:
            self._reporter.say(f"WARNING: {error}; what was observed is not kept", "bold red")
            return
        self._written, self._latest = batches, None
        log.info("kept: %d of %d batches in %s", batches, self._total, self.path)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what there is if the run is interrupted; remove it when it is done.

        Raises
        ------
        KeyboardInterrupt
            Which says what is kept.
        """
        try:
            yield
        except KeyboardInterrupt as stopped:
            if stopped.args:  # it came while files were given their names: the run is done
                self._end()
                raise
            self._save_interrupted()
            if self._written is None:
                raise
            raise KeyboardInterrupt(self._left()) from None
        except Exception as error:
            if self._written == self._total and not self._cache:
                error.add_note("what was observed is kept: --resume goes on from there")
            raise
        self._end()

    def _end(self) -> None:
        if self._cache:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:  # the run is done all the same
            self._reporter.say(f"WARNING: {self.path} stays: {error.strerror}", "bold red")

    def _save_interrupted(self) -> None:
        """Write what is not yet written; one who asks again does not wait for it."""
        if self._latest is None:
            return
        try:
            self._save()
        except KeyboardInterrupt:
            log.info("interrupted again: the last batches are not kept")

    def _left(self) -> str:
        if self._written == self._total:
            return "interrupted after the samples were observed; --resume goes on from there"
        return f"interrupted after {self._written} of {self._total} batches; --resume goes on"


def keeper_of(config: Config, folder: Path, reporter: Reporter, *, resume: bool = False) -> Keeper:
    """Return what keeps the observations of a run that writes to a folder.

    Raises
    ------
    ConfigError
        If ``calibrate.cache`` names what cannot be written.
    """
    cache, prefix = config.calibrate.cache, config.output.prefix
    path = folder / (f".{prefix}_calibration.state" if prefix else ".calibration.state")
    if isinstance(cache, Path):
        path = cache
        if path.is_dir() or not path.parent.is_dir():
            why = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
            raise ConfigError(f"calibrate.cache: '{path}' {why}; name a file to keep")
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise ConfigError(
                f"calibrate.cache: '{path}' cannot be written: {error.strerror}"
            ) from None
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            part.unlink(missing_ok=True)  # of a run that was killed
    return Keeper(path, cache=bool(cache), resume=resume, reporter=reporter)


def _both(new: Observations, old: Observations) -> Observations:
    """Return what two passes over the same samples have seen: of a value the longer tails."""
    longer = {
        value: histogram
        for value, histogram in old.histograms.items()
        if value not in new.histograms or histogram.tail > new.histograms[value].tail
    }
    return replace(
        new,
        histograms={**new.histograms, **longer},
        shapes={**old.shapes, **new.shapes},
    )
