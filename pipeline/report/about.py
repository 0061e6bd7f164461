"""What a result belongs to: product, machine, config, and the files that it was made from."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.config.load import Config

__all__ = ["about", "version_of"]

_PACKAGES = ("numpy", "numba", "opencv-python-headless", "protobuf", "torch")
#: Data sources beyond this are named, not hashed.
_MOST_BYTES = 64 << 20


def about(config: Config, device: str) -> dict[str, Any]:
    """Return versions, machine, config and hashes, for ``report.json``.

    Parameters
    ----------
    config : Config
    device : str
    """
    settings = config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    m, c = config.model, config.calibrate
    files = [m.prototxt, m.caffemodel, m.layers, c.quant_cfg]
    files += [config.record.file] if config.record else []
    hashes = {str(f): _sha256(f, None) for f in files if f is not None}
    tables = [*c.data, *(config.evaluate.data if config.evaluate else ())]
    hashes |= {str(t.source): _sha256(t.source, _MOST_BYTES) for t in tables if t.source}
    return {
        "product": f"caffe-quant {__version__}",
        "config": settings,
        "sha256": hashes,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": device,
            "python": sys.version.split()[0],
            "system": platform.platform(),
            "packages": {name: v for name in _PACKAGES if (v := version_of(name))},
        },
        # Linux counts in KiB
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _sha256(path: Path, most: int | None) -> str | None:
    """Return the hash of a file; None for a folder, or one that is too large."""
    try:
        if not path.is_file() or (most is not None and path.stat().st_size > most):
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def version_of(name: str) -> str:
    """Return the version of a package; empty if there is none of that name."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()
