"""What a run does, step by step: for ``--verbose``, and for the file that ``--log`` names."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["log", "logging_to", "said"]

#: Silent unless the command, or a program, gives it a handler.
log = logging.getLogger("caffe_quant")
log.addHandler(logging.NullHandler())
#: What the console shows anyway: it goes into files only.
said = log.getChild("said")


class _Plain(logging.Formatter):
    """Shows what stands in names; a terminal that the log is printed to does not obey it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line of the log."""
        from pipeline.report.console import printable

        return printable(super().format(record))


@contextmanager
def logging_to(
    path: str | Path | None, console: Console | None, command: Sequence[str]
) -> Iterator[None]:
    """Write what is logged to the end of a file and to a console; an error with its traceback.

    Parameters
    ----------
    path : path-like or None
    console : rich.console.Console or None
    command : sequence of str
        The words of the command, for the file's first line.

    Raises
    ------
    PipelineError
        If the file cannot be written.
    """
    handlers: list[logging.Handler] = []
    if path is not None:
        try:
            to_file = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise PipelineError(f"{path}: cannot be written: {error.strerror}") from None
        to_file.setFormatter(_Plain("%(asctime)s %(levelname)-7s %(message)s"))
        handlers.append(to_file)
    if console is not None:
        from rich.logging import RichHandler

        to_console = RichHandler(console=console, show_path=False, markup=False, highlighter=None)
        to_console.setFormatter(_Plain("%(message)s"))
        to_console.addFilter(lambda record: record.name != said.name)
        handlers.append(to_console)
    level = log.level
    for handler in handlers:
        log.addHandler(handler)
    if handlers:
        log.setLevel(logging.DEBUG)
    try:
        log.info("%s", " ".join((Path(sys.argv[0]).name, *command)))
        yield
    except KeyboardInterrupt:
        log.warning("interrupted")
        raise
    except Exception:
        log.exception("failed")
        raise
    finally:
        log.setLevel(level)
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
