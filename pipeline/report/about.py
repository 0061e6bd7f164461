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

__all__ = ["about", "instructions", "processor", "version_of"]

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
            "processor": processor(),
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


def processor() -> str:
    """Return the processor's name; empty where none is known."""
    return _cpuinfo("model name") or platform.processor()


def instructions() -> str:
    """Return a short digest of what instructions there are, and which set was asked for.

    Sums of float32 differ in their last bits from one to the other.
    """
    known = _cpuinfo("flags") or _cpuinfo("Features") or platform.machine()
    asked = os.environ.get("CAFFE_QUANT_ISA", "")
    return hashlib.sha256(" ".join(sorted(known.split())).encode()).hexdigest()[:8] + asked


def _cpuinfo(field: str) -> str:
    """Return what Linux says of the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == field), "")
