"""The table of peers: how each is found, told its threads, and given one ONNX operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import numpy as np

__all__ = [
    "PEERS",
    "missing",
    "node",
    "onnx_session",
    "openvino_run",
    "openvino_session",
    "set_threads",
    "version",
]


@dataclass(frozen=True)
class Peer:
    """A program to measure beside ours; it is imported when it is first needed."""

    modules: tuple[str, ...]  # what it needs, itself first
    distributions: tuple[str, ...]  # names it may be installed under
    cure: str = "pip install 'caffe-quant[bench]'"
    threads: Callable[[Any, int], None] | None = None  # sets them for the process
    able: Callable[[Any], bool] | None = None  # whether this version can do the work


def _cv2_threads(cv2: Any, count: int) -> None:
    cv2.setNumThreads(count)


def _torch_threads(torch: Any, count: int) -> None:
    torch.set_num_threads(count)


def _torch_has(engine: str) -> Callable[[Any], bool]:
    return lambda torch: engine in torch.backends.quantized.supported_engines


_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python")

_TORCH = "pip install torch, built with this engine"

PEERS: Mapping[str, Peer] = {
    "numpy": Peer(("numpy",), ("numpy",)),
    "onnxruntime": Peer(("onnxruntime", "onnx"), ("onnxruntime",)),
    "opencv": Peer(("cv2", "onnx"), _OPENCV, threads=_cv2_threads),
    "opencv caffe": Peer(
        ("cv2",),
        _OPENCV,
        "pip install 'opencv-python-headless<5', which reads Caffe nets",
        _cv2_threads,
        lambda cv2: hasattr(cv2.dnn, "readNetFromCaffe"),
    ),
    "torch": Peer(("torch",), ("torch",), "pip install torch", _torch_threads),
    "fbgemm": Peer(("torch",), ("torch",), _TORCH, _torch_threads, _torch_has("fbgemm")),
    "onednn": Peer(("torch",), ("torch",), _TORCH, _torch_threads, _torch_has("onednn")),
    "openvino": Peer(("openvino", "onnx"), ("openvino",)),
    "nncf": Peer(("nncf", "openvino", "onnx"), ("nncf",)),
    # `_tools` are its converter and quantizer; what it requires would replace protobuf by one that
    # is too old for caffeio, and is not needed
    "mnn": Peer(("MNN", "_tools", "onnx"), ("MNN",), "pip install --no-deps MNN"),
    "ncnn": Peer(("ncnn",), ("ncnn",)),
}


@cache
def missing(peer: str) -> str | None:
    """Return why a peer cannot run here, with the cure, or None."""
    needs = PEERS[peer]
    absent = [name for name in needs.modules if find_spec(name) is None]
    # only a peer with a question to answer is imported: importing sets its threads up
    if not absent and (needs.able is None or needs.able(import_module(needs.modules[0]))):
        return None
    return f"needs {' and '.join(absent or needs.modules[:1])}: {needs.cure}"


def version(peer: str) -> str:
    """Return the name and version under which a peer is installed."""
    for name in PEERS[peer].distributions:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return f"{peer} of unknown version"


def set_threads(peer: str, threads: int) -> None:
    """Let a side use so many threads; a name not in the table means our own kernels."""
    if peer not in PEERS:
        import kernels

        # the first call loads the backend, which chooses how its threads wait
        kernels.quantize(np.zeros(1, np.float32), kernels.QuantParams(1.0))
        import numba

        numba.set_num_threads(threads)
    elif setter := PEERS[peer].threads:
        setter(import_module(PEERS[peer].modules[0]), threads)


def node(op: str, x: np.ndarray, constants: Mapping[str, np.ndarray], **attributes: Any) -> bytes:
    """Return an ONNX model of one operation: input ``x``, then the constants in order.

    The result has the type of the constant ``y_zero``, else of ``x``. With ``domain`` among the
    attributes it is an operation of a runtime's own.
    """
    onnx: Any = import_module("onnx")
    helper = onnx.helper
    kinds = map(helper.np_dtype_to_tensor_dtype, (x.dtype, constants.get("y_zero", x).dtype))
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *constants], ["y"], **attributes)],
        op,
        [helper.make_tensor_value_info("x", next(kinds), x.shape)],
        [helper.make_tensor_value_info("y", next(kinds), [None] * x.ndim)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    # an old version of the format, which every reader knows
    opsets = [helper.make_opsetid("", 13)]
    if domain := attributes.get("domain"):
        opsets.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


def onnx_session(model: bytes, threads: int, *, exact: bool = False) -> Any:
    """Return an ONNX Runtime session on the CPU.

    With `exact` it avoids the instruction that adds pairs of products in 16 bits, which it
    takes by default where there is no VNNI.
    """
    ort: Any = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_run(model: Any, x: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """Return a call of OpenVINO on the CPU with a model of its own or ONNX bytes.

    One stream, lowest latency.

    What is not INT8 stays float32, as on the other sides: by default it becomes bfloat16
    where the machine has it.
    """
    openvino: Any = import_module("openvino")
    request = _openvino_request(model, threads)
    request.set_input_tensor(openvino.Tensor(x))  # a copy: it would not keep x alive

    def run() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return run


def openvino_session(model: Any, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what runs OpenVINO on any image; otherwise as `openvino_run`."""
    openvino: Any = import_module("openvino")
    request = _openvino_request(model, threads)

    def run(x: np.ndarray) -> np.ndarray:
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(x)))
        request.infer()
        return request.get_output_tensor().data.copy()

    return run


def _openvino_request(model: Any, threads: int) -> Any:
    openvino: Any = import_module("openvino")
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if isinstance(model, bytes):
        model = core.read_model(model, b"")
    return core.compile_model(model, "CPU", settings).create_infer_request()
