"""Transforms, batches decoded ahead, and a net's own data layers."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from caffeio import CaffeFileError, Layer, NetError, parse_net
from caffeio.data import (
    NotEnoughData,
    Sample,
    Source,
    Transform,
    batches,
    net_source,
    open_source,
    read_mean,
)
from caffeio.proto import caffe_pb2 as pb

cv2 = pytest.importorskip("cv2")
RNG = np.random.default_rng(5)


def image(height: int, width: int, channels: int = 3) -> Sample:
    data = RNG.integers(0, 256, (height, width, channels), np.uint8)
    return Sample(data, None, "x", image=True, order="BGR" if channels == 3 else None)


# --------------------------------------------------------------------------- transforms


def test_nothing_to_do_is_only_planes() -> None:
    sample = image(4, 5)
    out = Transform().apply(sample)
    assert (out.dtype, out.shape, out.flags.c_contiguous) == (np.float32, (3, 4, 5), True)
    np.testing.assert_array_equal(out, sample.data.transpose(2, 0, 1))


def test_squash_crop_and_mean_as_for_squeezenet() -> None:
    sample = image(300, 200)
    out = Transform((256, 256), 227, "BGR", (104, 117, 123)).apply(sample)
    want = cv2.resize(sample.data, (256, 256), interpolation=cv2.INTER_LINEAR)
    want = want[14:241, 14:241].astype(np.float32) - np.array([104, 117, 123], np.float32)
    np.testing.assert_array_equal(out, want.transpose(2, 0, 1))


def test_shorter_side_rgb_and_scale_as_for_mobilenet() -> None:
    sample = image(300, 401)
    std = np.array([58.395, 57.12, 57.375])
    mean = (123.675, 116.28, 103.53)
    out = Transform(256, (224, 224), "RGB", mean, tuple(1 / std)).apply(sample)
    want = cv2.resize(sample.data, (342, 256))  # 401·256/300 = 342.2
    want = want[16:240, 59:283, ::-1].transpose(2, 0, 1).astype(np.float64)
    want = (want - np.reshape(mean, (3, 1, 1))) / std.reshape(3, 1, 1)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


def test_mtcnn_swaps_height_and_width() -> None:
    sample = image(6, 4)
    out = Transform(channel_order="RGB", mean=127.5, scale=1 / 128, transpose_hw=True).apply(sample)
    want = (sample.data.astype(np.float32) - 127.5) / 128
    np.testing.assert_array_equal(out, want[:, :, ::-1].transpose(2, 1, 0))


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_grey(order: str) -> None:
    sample = Sample(image(5, 5).data, None, "x", image=True, order=order)  # type: ignore[arg-type]
    out = Transform(channel_order="GRAY").apply(sample)
    weights = {"BGR": [0.114, 0.587, 0.299], "RGB": [0.299, 0.587, 0.114]}[order]
    np.testing.assert_allclose(out[0], sample.data @ weights, atol=0.51)


def test_arrays_without_a_known_order_are_taken_as_they_are() -> None:
    data = RNG.integers(0, 256, (3, 4, 4), np.uint8)
    rgb = Transform(channel_order="RGB")
    np.testing.assert_array_equal(rgb.apply(Sample(data, None, "x")), data)
    known = Sample(data, None, "x", order="BGR")
    np.testing.assert_array_equal(rgb.apply(known), data[::-1])


def test_the_mean_image_is_cropped_with_the_image() -> None:
    sample, mean = image(9, 10), RNG.normal(size=(3, 9, 10)).astype(np.float32)
    out = Transform(crop=(4, 5), mean=mean, scale=0.5).apply(sample)
    want = (sample.data.transpose(2, 0, 1).astype(np.float32) - mean) * np.float32(0.5)
    np.testing.assert_array_equal(out, want[:, 2:6, 2:7])
    same = Transform(crop=(4, 5), mean=mean[:, 2:6, 2:7], scale=0.5).apply(sample)
    np.testing.assert_array_equal(out, same)


def test_inputs_that_are_no_images() -> None:
    row = Sample(np.arange(4, dtype=np.float32), None, "x")
    np.testing.assert_array_equal(Transform(mean=1.0, scale=2.0).apply(row), [-2, 0, 2, 4])
    with pytest.raises(ValueError, match="only C×H×W"):
        Transform(crop=2).apply(row)


@pytest.mark.parametrize(
    ("transform", "match"),
    [
        (Transform(crop=7), "is 6×5, smaller than the crop 7×7"),
        (Transform(mean=(1, 2)), "3 channels, but mean has 2"),
        (Transform(scale=(1, 2)), "3 channels, but scale has 2"),
        (Transform(mean=np.zeros((3, 4, 5))), "needs a mean image, but it is 4×5, smaller"),
        (Transform(mean=np.zeros((2, 6, 5))), "mean image has 2"),
    ],
)
def test_transforms_that_do_not_fit(transform: Transform, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        transform.apply(image(6, 5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": 0},
        {"crop": (4, 0)},
        {"channel_order": "rgb"},
        {"scale": float("nan")},
        {"mean": np.zeros((2, 2))},
    ],
)
def test_wrong_transforms(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Transform(**wrong)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- batches


@dataclass
class Numbers(Source):
    """Sample i is 1×1×2, full of i; some are slow, one is bad."""

    count: int
    bad: int = -1
    wide: int = -1
    labelled: bool = True
    path: Path = Path("numbers")
    active: int = 0
    read_ahead: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        with self.lock:
            self.read_ahead += 1
        time.sleep(0.002 * (index % 3 == 0))
        if index == self.bad:
            raise CaffeFileError(f"sample{index}", "is damaged")
        data = np.full((1, 1, 3 if index == self.wide else 2), index, np.float32)
        return Sample(data, index if self.labelled else None, f"sample{index}")


def threads() -> int:
    return sum(t.name.startswith("caffeio-data") for t in threading.enumerate())


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_come_in_order(prefetch: int) -> None:
    got = list(batches({"data": (Numbers(10), Transform(scale=2.0))}, 4, prefetch=prefetch))
    assert [b.index for b in got] == [0, 1, 2]
    assert [b.inputs["data"].shape for b in got] == [(4, 1, 1, 2), (4, 1, 1, 2), (2, 1, 1, 2)]
    values = np.concatenate([b.inputs["data"][:, 0, 0, 0] for b in got])
    np.testing.assert_array_equal(values, np.arange(10) * 2)
    assert np.concatenate([b.labels for b in got if b.labels is not None]).tolist() == [*range(10)]
    assert got[2].names == ("sample8", "sample9")
    assert got[0].labels is not None
    assert got[0].labels.dtype == np.int64
    assert threads() == 0


def test_a_part_of_the_data() -> None:
    got = list(batches({"data": (Numbers(10), Transform())}, 2, 3, start=3))
    assert [name for b in got for name in b.names] == [f"sample{i}" for i in range(3, 9)]
    assert list(batches({"data": (Numbers(10), Transform())}, 2, start=10)) == []


def test_too_little_data_is_said_at_once() -> None:
    with pytest.raises(
        NotEnoughData,
        match=r"3 batches of 4.*12 samples.*'numbers' has 8 from "
        "number 2 on",
    ) as caught:
        batches({"data": (Numbers(10), Transform())}, 4, 3, start=2)
    assert (caught.value.asked, caught.value.found) == (12, 8)


def test_several_inputs() -> None:
    sources = {"a": (Numbers(4, labelled=False), Transform()), "b": (Numbers(4), Transform())}
    (batch,) = batches(sources, 4)
    assert set(batch.inputs) == {"a", "b"}
    assert batch.labels is not None
    with pytest.raises(ValueError, match="'a' has 4, 'b' has 5"):
        batches({**sources, "b": (Numbers(5), Transform())}, 4)


def test_no_labels() -> None:
    (batch,) = batches({"data": (Numbers(4, labelled=False), Transform())}, 4)
    assert batch.labels is None


@pytest.mark.parametrize("prefetch", [0, 2])
def test_errors_reach_the_consumer_with_the_name(prefetch: int) -> None:
    run = batches({"data": (Numbers(20, bad=9), Transform())}, 4, prefetch=prefetch)
    assert next(run).index == 0
    assert next(run).index == 1
    with pytest.raises(CaffeFileError, match="sample9: is damaged"):
        next(run)
    assert threads() == 0
    run = batches({"data": (Numbers(20, wide=6), Transform())}, 4, prefetch=prefetch)
    next(run)
    with pytest.raises(CaffeFileError, match=r"sample6: gives the shape \(1, 1, 3\).*'sample0'"):
        next(run)
    with pytest.raises(CaffeFileError, match="sample0: is 1×2, smaller"):
        next(batches({"data": (Numbers(3), Transform(crop=5))}, 1, prefetch=prefetch))


def test_reading_ahead_is_bounded_and_stops_with_the_consumer() -> None:
    source = Numbers(1000)
    run = batches({"data": (source, Transform())}, 2, prefetch=2)
    next(run)
    time.sleep(0.1)
    assert 2 < source.read_ahead <= 2 * 3
    assert threads() > 0
    run.close()  # type: ignore[attr-defined]
    assert threads() == 0


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"batch_num": 0}, {"start": -1}, {"prefetch": -1}]
)
def test_wrong_arguments(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        batches({"data": (Numbers(4), Transform())}, **{"batch_size": 2, **wrong})
    with pytest.raises(ValueError, match="no sources"):
        batches({}, 1)


def test_photos_of_different_sizes_and_a_corrupt_one(tmp_path: Path) -> None:
    for i, size in enumerate([(40, 60), (80, 50), (64, 64)]):
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), image(*size).data)
    source = open_source(tmp_path)
    (batch,) = batches({"data": (source, Transform(32, 28))}, 3)
    assert batch.inputs["data"].shape == (3, 3, 28, 28)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:300])
    with pytest.raises(CaffeFileError, match=r"1\.jpg"):
        list(batches({"data": (source, Transform(32, 28))}, 3))


def test_real_photos(assets: Path) -> None:
    source = open_source(assets / "data/imagenet_even.txt")
    assert len(source) == 500
    assert [source[i].label for i in (0, 1, 499)] == [0, 2, 998]
    transform = Transform((256, 256), 227, mean=(104, 117, 123))
    batch = next(batches({"data": (source, transform)}, 4, 1))
    assert batch.inputs["data"].shape == (4, 3, 227, 227)
    cifar = open_source(assets / "data/cifar10_4000.npz")
    mean = read_mean(assets / "data/cifar10_mean.npy")
    batch = next(batches({"data": (cifar, Transform(mean=mean))}, 100, 1))
    assert abs(float(batch.inputs["data"].mean())) < 10
    assert batch.labels is not None
    assert batch.labels.shape == (100,)


# --------------------------------------------------------------------------- a net's own data


def data_layer(kind: str, body: str, tops: str = 'top: "data" top: "label"') -> Layer:
    return parse_net(f'layer {{ name: "d" type: "{kind}" {tops} {body} }}').layers[0]


def test_image_data(tmp_path: Path) -> None:
    pictures = [image(8, 9).data, image(8, 9).data]
    for i, pixels in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{i}.png"), pixels)
    mean = np.array([10, 20, 30], np.float32)
    (tmp_path / "list.txt").write_text("0.png 4\n1.png 2\n")
    layer = data_layer(
        "ImageData",
        'image_data_param { source: "list.txt" batch_size: 2 '
        'new_height: 6 new_width: 7 root_folder: "" } '
        "transform_param { crop_size: 5 scale: 0.5 mean_value: [10, 20, 30] "
        "mirror: true }",
    )
    data = net_source(layer, tmp_path)
    assert (data.label_blob, data.batch_size, list(data.inputs)) == ("label", 2, ["data"])
    (batch,) = batches(data.inputs, data.batch_size)
    assert batch.labels is not None
    assert batch.labels.tolist() == [4, 2]
    want = cv2.resize(pictures[1], (7, 6))[0:5, 1:6].astype(np.float32) - mean
    np.testing.assert_array_equal(batch.inputs["data"][1], want.transpose(2, 0, 1) * 0.5)


def test_data_with_a_mean_file(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    raw = RNG.integers(0, 256, (3, 6, 6), np.uint8)
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 22) as env, env.begin(write=True) as t:
        t.put(b"0", pb.Datum(channels=3, height=6, width=6, data=raw.tobytes(), label=5)
              .SerializeToString())  # fmt: skip
    mean = RNG.normal(size=(3, 6, 6)).astype(np.float32)
    blob = pb.BlobProto(num=1, channels=3, height=6, width=6, data=mean.ravel().tolist())
    (tmp_path / "m.binaryproto").write_bytes(blob.SerializeToString())
    layer = data_layer(
        "Data",
        'data_param { source: "db" backend: LMDB batch_size: 1 } '
        'transform_param { mean_file: "m.binaryproto" crop_size: 4 }',
    )
    data = net_source(layer, tmp_path)
    (batch,) = batches(data.inputs, data.batch_size)
    np.testing.assert_array_equal(batch.inputs["data"][0], (raw - mean)[:, 1:5, 1:5])
    data.inputs["data"][0].close()
    (tmp_path / "m.binaryproto").unlink()
    with pytest.raises(NetError, match=r"layer 'd': names the mean_file '.*m.binaryproto'"):
        net_source(layer, tmp_path)


def test_hdf5_data(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    x, y = RNG.normal(size=(3, 2, 4, 4)), RNG.normal(size=(3, 5))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"], file["label"] = x, y, np.array([1.0, 0.0, 2.0])
    (tmp_path / "list.txt").write_text("a.h5\n")
    layer = data_layer(
        "HDF5Data",
        'hdf5_data_param { source: "list.txt" batch_size: 3 }',
        'top: "x" top: "y" top: "label"',
    )
    data = net_source(layer, tmp_path)
    (batch,) = batches(data.inputs, data.batch_size)
    np.testing.assert_array_equal(batch.inputs["x"], x.astype(np.float32))
    np.testing.assert_array_equal(batch.inputs["y"], y.astype(np.float32))
    assert batch.labels is not None
    assert (data.label_blob, batch.labels.tolist()) == ("label", [1, 0, 2])
    for source, _ in data.inputs.values():
        source.close()


@pytest.mark.parametrize(
    ("kind", "body", "match"),
    [
        ("Data", 'data_param { source: "gone" batch_size: 1 }', "'.*gone', which does not exist"),
        ("Data", "data_param { batch_size: 1 }", "names no source"),
        ("Data", 'data_param { source: "images" batch_size: 1 }', "no LMDB or LevelDB"),
        ("ImageData", 'image_data_param { source: "list" new_width: 3 }', "Caffe needs both"),
        (
            "ImageData",
            'image_data_param { source: "list" } transform_param { mean_file: "a" mean_value: 1 }',
            "keep one",
        ),
        ("HDF5Data", 'hdf5_data_param { source: "nothing" }', "does not exist"),
        ("MemoryData", "", "only Data"),
    ],
)
def test_data_layers_that_are_wrong(kind: str, body: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), image(4, 4).data)
    (tmp_path / "list").write_text("images/a.png 0\n")
    with pytest.raises(NetError, match=f"layer 'd': .*{match}"):
        net_source(data_layer(kind, body), tmp_path)
