"""The schema: generated from its .proto, and agreeing with what real Caffe writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDENS, ROOT
from google.protobuf import descriptor_pb2, descriptor_pool, text_format

import caffeio
from caffeio.proto import caffe_pb2 as pb
from caffeio.proto import quant_pb2
from caffeio.proto.generate import PROTOS, generate

#: Those in an old format are upgraded before they are written: see test_caffeio_nets.py.
CAFFE_GOLDENS = sorted(
    p for p in (GOLDENS / "caffe").glob("*.npz") if not p.stem.startswith("legacy")
)


def test_generated_modules_are_those_of_the_schema(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    written = generate(tmp_path)
    assert len(written) == 2 * len(PROTOS)
    for path in written:
        committed = ROOT / path.relative_to(tmp_path)
        assert path.read_text() == committed.read_text(), f"regenerate {committed.name}"


def test_another_caffe_can_live_in_the_same_process() -> None:
    other = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    other.message_type.add(name="NetParameter")
    descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
    assert pb.NetParameter.DESCRIPTOR.full_name == "caffeio.NetParameter"


@pytest.mark.parametrize("path", CAFFE_GOLDENS, ids=lambda p: p.stem)
def test_field_numbers_are_those_of_real_caffe(path: Path) -> None:
    """Caffe wrote the parameters of the text into the binary: read by number they are equal."""
    with np.load(path) as golden:
        text, binary = golden["prototxt"].tobytes(), golden["caffemodel"].tobytes()
    net = pb.NetParameter.FromString(binary)
    wanted = {p.name: p for p in text_format.Parse(text.decode(), pb.NetParameter()).layer}
    compared = 0
    for layer in net.layer:
        if layer.name in wanted and layer.type == wanted[layer.name].type:
            for message in (layer, wanted[layer.name]):
                for field in ("blobs", "phase", "bottom", "top", "loss_weight"):
                    message.ClearField(field)  # Caffe fills these in
                if layer.type == "BatchNorm":
                    message.ClearField("param")
            assert layer == wanted[layer.name]
            compared += 1
    assert compared


@pytest.mark.parametrize(
    ("message", "numbers"),
    [
        (pb.BlobProto, {"int8_data": 10, "int32_data": 11, "uint64_data": 12}),
        (
            pb.LayerParameter,
            {
                "quant_param": 208,
                "dequant_param": 200000,
                "ifmr_param": 200001,
                "lstm_quant_param": 200002,
                "search_n_param": 200003,
                "retrain_data_quant_param": 200004,
                "retrain_weight_quant_param": 200005,
                "lstm_calibration_param": 200006,
                "clip_param": 148,
                "swish_param": 147,
                "permute_param": 202,
                "prior_box_param": 203,
                "detection_output_param": 204,
                "norm_param": 206,
            },
        ),
        (pb.PoolingParameter, {"round_mode": 13}),
        (
            quant_pb2.SingleLayerRecord,
            {
                "scale_d": 1,
                "offset_d": 2,
                "scale_w": 3,
                "offset_w": 4,
                "shift_bit": 5,
                "channels": 6,
                "height": 7,
                "width": 8,
                "skip_fusion": 9,
            },
        ),
        (quant_pb2.MapFiledEntry, {"key": 1, "value": 2}),
    ],
)
def test_additions_have_their_public_numbers(message: type, numbers: dict[str, int]) -> None:
    fields = message.DESCRIPTOR.fields_by_name  # type: ignore[attr-defined]
    assert {name: fields[name].number for name in numbers} == numbers


def test_import_is_light() -> None:
    code = (
        "import sys, caffeio, caffeio.data; "
        "print([m for m in ('cv2', 'lmdb', 'plyvel', 'h5py', 'numba') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    assert all(hasattr(caffeio, name) for name in caffeio.__all__)
