"""``caffe-quant init deploy.prototxt [net.caffemodel]``: a first config."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["init"]


def init(arguments: Sequence[str]) -> int:
    """Write a commented config for a net; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="caffe-quant init",
        description="Write a commented config for a net: its inputs and sizes, the transform to "
        "fill in, and every layer that would be quantized.",
    )
    parser.add_argument("prototxt", help="the net")
    parser.add_argument("caffemodel", nargs="?", help="its weights")
    parser.add_argument(
        "-o", "--output", default="config.toml", metavar="FILE",
        help="what to write (default: config.toml); - prints it",
    )  # fmt: skip
    options = parser.parse_args(arguments)

    from pipeline.errors import ConfigError
    from pipeline.jobs.files import write_text
    from pipeline.jobs.starter import starter_config

    path = Path(options.output)
    folder = Path() if options.output == "-" else path.parent
    text = starter_config(options.prototxt, options.caffemodel, folder)
    if options.output == "-":
        sys.stdout.write(text)
        return 0
    if path.exists():
        raise ConfigError(f"{path} exists already; -o names another")
    write_text(path, text)
    print(f"Written: {path}. Fill in [transform] and the data, then: caffe-quant {path}")
    return 0
