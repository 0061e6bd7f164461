"""Generate the Python modules of the .proto files: ``python -m caffeio.proto.generate``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["PROTOS", "generate"]

#: The schemas, without their ending.
PROTOS = ("caffe", "quant")


def generate(target: Path) -> list[Path]:
    """Compile every schema.

    Parameters
    ----------
    target : Path
        The folder that holds (or is to hold) ``caffeio/proto/``.

    Returns
    -------
    list of Path
        The modules and stubs written.

    Raises
    ------
    RuntimeError
        If grpcio-tools is missing or the compiler refuses a schema.
    """
    try:
        from grpc_tools import protoc
    except ImportError as error:
        raise RuntimeError(
            "generating the protobuf modules needs grpcio-tools: pip install caffe-quant[proto]"
        ) from error
    root = Path(__file__).resolve().parents[2]
    include = str(files("grpc_tools") / "_proto")
    written = []
    for name in PROTOS:
        # The path inside the package is the schema's name in protobuf's global pool, where a
        # plain "caffe.proto" would collide with pycaffe's.
        source = f"caffeio/proto/{name}.proto"
        code = protoc.main(
            [
                "protoc",
                f"-I{root}",
                f"-I{include}",
                f"--python_out={target}",
                f"--pyi_out={target}",
                source,
            ]
        )
        if code != 0:
            raise RuntimeError(f"the protobuf compiler refused {source} (exit code {code})")
        written += [target / f"caffeio/proto/{name}_pb2{ending}" for ending in (".py", ".pyi")]
    return written


if __name__ == "__main__":
    generate(Path(__file__).resolve().parents[2])
