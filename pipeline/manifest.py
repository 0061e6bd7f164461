"""Which files belong together: ``<prefix>_manifest.json`` holds the digests of what a run wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from caffeio import CaffeFileError
from caffeio.errors import reading
from caffeio.files import read_json
from pipeline import __version__

__all__ = ["changed_since", "check_unchanged", "digests", "write_manifest"]

_PATTERN = "*manifest.json"


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of files, by their names."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_manifest(path: Path, files: Iterable[Path]) -> None:
    """Write what a set of files is: their names and digests, as JSON."""
    content = {"made_by": f"caffe-quant {__version__}", "sha256": digests(files)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def changed_since(path: str | Path) -> str:
    """Return what is to be said of a file that is not as its run wrote it; "" where it is.

    So it is, too, where no manifest beside it names it.

    Parameters
    ----------
    path : path-like
    """
    path = Path(path)
    own = ""
    for manifest in sorted(path.parent.glob(_PATTERN)):
        try:
            named = read_json(manifest)["sha256"][path.name]
        except (CaffeFileError, LookupError, TypeError):  # of another file, or another program
            continue
        with reading(path):
            own = own or digests([path])[path.name]
        if named != own:
            return (
                f"is not the file that {manifest.name} names: its run was cut off while it wrote, "
                "so that files of two runs are mixed, or it was changed since"
            )
    return ""


def check_unchanged(*paths: str | Path) -> None:
    """Raise unless files are as their run wrote them, so that they belong together.

    Raises
    ------
    CaffeFileError
        If a manifest names another content.
    """
    for path in paths:
        if said := changed_since(path):
            raise CaffeFileError(
                path, f"{said}; run again, or remove the manifest if the change is yours"
            )
