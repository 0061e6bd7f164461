"""Data that is wrong, or told to be: what a run says of it, and what it does not fail for."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_cases import examples
from layer_nets import with_blobs
from small_nets import samples, small_net, write_job

import caffeio
import pipeline
from caffeio.data import Batch
from pipeline.config.load import load_config
from pipeline.errors import PipelineError
from pipeline.jobs.data import calibration_feed, chosen_how, look_at_data
from pipeline.quantize.accuracy import near_chance
from pipeline.quantize.batch_norm import first_norms, norms_seen
from pipeline.quantize.data_seen import DataWatch
from pipeline.quantize.prepare import prepare, read_model
from pipeline.run import main

# --------------------------------------------------------------------------- labels


def with_labels(folder: Path, label: np.ndarray | None) -> None:
    extra = {} if label is None else {"label": label}
    np.savez(folder / "data.npz", data=samples(24), **extra)


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (np.full(24, 10), "has label 10, but the net has 10 classes, 0 to 9"),
        (np.full(24, -1), "has label -1"),
        (np.arange(24) / 2, "has label"),
        (np.zeros((24, 4)), r"arrays of the shape \(4,\)"),
        (np.full(24, np.nan), "has label nan"),
    ],
    ids=["too many", "negative", "fractions", "boxes", "NaN"],
)
def test_labels_that_are_no_classes_become_a_note(tmp_path, capsys, label, why):
    config = write_job(tmp_path)
    with_labels(tmp_path, label)
    assert main([str(config)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: accuracy is not measured because" in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [s["top1"] for s in report["accuracy"]] == [None] * 3
    (note,) = [n for n in report["notes"] if "accuracy" in n]
    assert re.search(why, note)


@pytest.mark.parametrize("label", [None, np.zeros(7), np.array(["cat"] * 24)])
def test_calibration_does_not_look_at_labels(tmp_path, label):
    config = write_job(tmp_path)
    extra = {} if label is None else {"label": label}
    np.savez(tmp_path / "calibration.npz", data=samples(24), **extra)
    text = config.read_text().replace(
        'data.source = "data.npz"', 'data.source = "calibration.npz"', 1
    )
    config.write_text(text)
    assert pipeline.quantize_model(config).accuracy[0].top1 is not None


def test_without_evaluation_data_wrong_labels_of_the_calibration_data_are_a_note(tmp_path):
    config = write_job(tmp_path)
    with_labels(tmp_path, np.zeros(7))
    text = config.read_text()
    config.write_text(text[: text.index("[evaluate]")] + text[text.index("[output]") :])
    report = pipeline.quantize_model(config)
    assert report.accuracy[0].top1 is None
    assert any("accuracy is not measured because" in n and "7 labels" in n for n in report.notes)


def test_a_list_for_detection_calibrates(tmp_path):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 255, (12, 10, 3), np.uint8))
    lines = [f"{i}.png {i} 1 2 3 4\n" if i % 2 else f"{i}.png\n" for i in range(8)]
    (tmp_path / "list.txt").write_text("".join(lines))
    config = write_job(tmp_path)
    text = config.read_text().replace('data.source = "data.npz"', 'data.source = "list.txt"', 1)
    config.write_text(text)
    report = pipeline.quantize_model(config)
    assert report.samples == 8
    assert report.data is not None
    assert report.data.choice == "spread"
    assert sorted(report.data.places) == [*range(8)]
    assert sorted(Path(n).name for n in report.data.names) == [f"{i}.png" for i in range(8)]


LABELLED = """
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 dim: 1 } } }
layer { name: "loss" type: "%s" bottom: "fc" bottom: "label" top: "loss" }
"""


def labelled_net(kind: str) -> caffeio.Net:
    net = small_net()
    text = caffeio.to_prototxt(net) + LABELLED % kind
    blobs = {x.name: list(x.blobs) for x in net.layers if x.blobs}
    return with_blobs(caffeio.parse_net(text), blobs)


def test_labels_that_only_a_loss_takes_are_not_needed(tmp_path):
    config = write_job(tmp_path, labelled_net("SoftmaxWithLoss"))
    with_labels(tmp_path, np.zeros((24, 3)))
    report = pipeline.quantize_model(config)
    assert report.samples == 8


def test_labels_that_an_output_depends_on_are_needed(tmp_path):
    net = labelled_net("Eltwise")
    config = write_job(tmp_path, net)
    with_labels(tmp_path, None)
    with pytest.raises((PipelineError, caffeio.NetError), match="label"):
        pipeline.quantize_model(config)


# --------------------------------------------------------------------------- which samples


@pytest.mark.parametrize(
    ("calibrate", "how"),
    [
        ("", "spread"),
        ('effort = "best"', "spread"),
        ('effort = "original"', "first"),
        ('effort = "original"\nsamples = "spread"', "spread"),
        ('samples = "first"', "first"),
        ('samples = "shuffle"\nseed = 3', "shuffle"),
    ],
)
def test_which_samples_are_observed(tmp_path, calibrate, how):
    config = load_config(write_job(tmp_path, calibrate=calibrate + "\ndata.start = 4"))
    work = prepare(config, read_model(config))
    assert chosen_how(work) == how
    feed = calibration_feed(config, work)
    assert feed.places is not None
    assert len(set(feed.places)) == len(feed) == 8
    assert min(feed.places) >= 4
    assert max(feed.places) < 24
    assert (feed.places == tuple(range(4, 12))) == (how == "first")
    names = [name for batch in feed.batches(4, 2) for name in batch.names]
    assert names == [f"{tmp_path / 'data.npz'}[{i}]" for i in feed.places]


def test_a_seed_without_a_shuffle_is_wrong(tmp_path, capsys):
    assert main([str(write_job(tmp_path, calibrate="seed = 1"))]) == 2
    assert "shuffle" in capsys.readouterr().err


def test_the_report_names_the_samples_and_what_was_seen(tmp_path, capsys):
    config = write_job(tmp_path, calibrate='samples = "shuffle"\nseed = 5')
    assert main([str(config)]) == 0
    printed = capsys.readouterr().out
    data = json.loads((tmp_path / "out" / "report.json").read_text())["data"]
    assert data["choice"] == "shuffle"
    assert len(data["names"]) == 8
    x = samples(24)[data["places"]]
    (seen,) = data["inputs"]
    assert (seen["blob"], seen["shape"], seen["declared"]) == ("data", [3, 12, 10], [3, 12, 10])
    for i, channel in enumerate(seen["channels"]):
        values = x[:, i].astype(np.longdouble)
        want = (values.min(), values.max(), values.mean(), values.std())
        got = [channel[k] for k in ("low", "high", "mean", "deviation")]
        np.testing.assert_allclose(got, np.array(want, float), rtol=1e-12)
    assert "Data: 8 samples, shuffle" in printed
    assert f"number {min(data['places'])}: " in printed


def test_samples_that_are_observed_and_evaluated_are_counted(tmp_path):
    config = load_config(write_job(tmp_path))
    looked = look_at_data(config, prepare(config, read_model(config)))
    assert any("of the 8 calibration samples are evaluated, too" in n for n in looked.notes)
    calibrate = config.calibrate.model_copy(update={"samples": "first"})
    config = config.model_copy(update={"calibrate": calibrate})
    looked = look_at_data(config, prepare(config, read_model(config)))
    assert not any("evaluated, too" in n for n in looked.notes)


# --------------------------------------------------------------------------- statistics


def batch(x: np.ndarray, first: int = 0) -> Batch:
    places = tuple(range(first, first + len(x)))
    return Batch(0, {"x": x}, None, tuple(map(str, places)), places)


ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32),
)


@examples(200)
@given(st.lists(ARRAYS, min_size=1, max_size=4), st.integers(1, 3))
def test_sums_are_those_of_all_values_however_they_are_cut(arrays, size):
    shape = arrays[0].shape
    whole = np.concatenate([np.resize(a, shape) for a in arrays])
    watch = DataWatch()
    for _ in watch.watched(batch(whole[i : i + size], i) for i in range(0, len(whole), size)):
        pass
    (seen,) = watch.seen("first", {}).inputs
    for i, c in enumerate(seen.channels):
        values = whole[:, i].astype(np.float64).ravel()
        assert (c.low, c.high) == (values.min(), values.max())
        mean = math.fsum(values) / values.size
        deviation = math.sqrt(math.fsum((values - mean) ** 2) / values.size)
        scale = np.abs(values).max()
        assert c.mean == pytest.approx(mean, rel=1e-9, abs=1e-9 * scale)
        assert c.deviation == pytest.approx(deviation, rel=1e-6, abs=1e-9 * scale)


def seen_of(x: np.ndarray):
    watch = DataWatch()
    list(watch.watched([batch(x)]))
    return watch.seen("first", {"x": (1, *x.shape[1:])})


def test_constant_channels_are_warned_of():
    x = samples(4)
    assert seen_of(x).warnings == ()
    x[:, 1] = 0
    (line,) = seen_of(x).warnings
    assert line.startswith("channel 1 of input 'x' is 0 everywhere in all 4 ")
    x[:] = -3
    assert len(seen_of(x).warnings) == 3
    grey = np.repeat(samples(2)[:, :1], 3, axis=1)
    assert seen_of(grey).warnings == ()  # three equal channels are an image


def test_one_value_for_all_samples_is_right_for_what_is_no_image():
    assert seen_of(np.ones((3, 4), np.float32)).warnings == ()
    assert len(seen_of(np.zeros((3, 4), np.float32)).warnings) == 1
    assert seen_of(np.ones(3, np.float32)).warnings == ()


def test_not_a_number_does_not_stop_the_sums():
    x = samples(2)
    x[0, 0, 0, 0] = np.nan
    first, second, _ = seen_of(x).inputs[0].channels
    assert math.isnan(first.mean)
    assert math.isfinite(second.mean)


def test_a_layer_that_reads_one_value_is_warned_of(tmp_path, capsys):
    net = small_net()
    layers = tuple(
        replace(x, blobs=tuple(np.zeros_like(b) for b in x.blobs)) if x.name == "up_scale" else x
        for x in net.layers
    )
    config = write_job(tmp_path, net.with_layers(layers))
    assert main([str(config)]) == 0
    found = capsys.readouterr()
    assert "WARNING: layer 'avg' reads blob" in found.out
    assert "WARNING: layer 'fc' reads blob" in found.out
    assert found.out.rstrip().splitlines()[-1].startswith(("WARNING", "everywhere", "its", "means"))


# --------------------------------------------------------------------------- the net's size


def test_data_of_other_channels_is_blamed_itself(tmp_path, capsys):
    config = write_job(tmp_path)
    np.savez(tmp_path / "data.npz", data=samples(24)[:, :1], label=np.arange(24) % 10)
    assert main([str(config)]) == 1
    error = capsys.readouterr().err
    assert "data.npz[" in error
    assert "gives 1×12×10 for the net's input 'data', but the prototxt declares 3×12×10" in error


def test_data_of_another_size_is_blamed_itself(tmp_path, capsys):
    config = write_job(tmp_path)
    x = np.pad(samples(24), [(0, 0), (0, 0), (0, 8), (0, 8)])
    np.savez(tmp_path / "data.npz", data=x, label=np.arange(24) % 10)
    assert main([str(config)]) == 1
    error = capsys.readouterr().err
    assert "data.npz[" in error
    assert "gives 3×20×18 for the net's input 'data'" in error
    assert "resize or crop the data" in error


def test_an_image_of_one_channel_is_told_the_cure(tmp_path, capsys):
    cv2 = pytest.importorskip("cv2")
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((12, 10, 3), i, np.uint8))
    config = write_job(tmp_path)
    text = config.read_text().replace(
        'data.source = "data.npz"', 'data = {source = ".", color = false}', 1
    )
    config.write_text(text)
    assert main([str(config)]) == 1
    assert "color = true" in capsys.readouterr().err


def test_a_size_that_the_net_can_take_is_a_warning(tmp_path):
    text = caffeio.to_prototxt(small_net())
    before = text.index('layer {\n  name: "avg"')
    net = caffeio.parse_net(text[:before])
    blobs = {x.name: list(x.blobs) for x in small_net().layers if x.blobs}
    net = with_blobs(net, {x.name: blobs[x.name] for x in net.layers if x.name in blobs})
    config = write_job(tmp_path, net)
    x = np.pad(samples(24), [(0, 0), (0, 0), (0, 8), (0, 8)], mode="wrap")
    np.savez(tmp_path / "data.npz", data=x)
    report = pipeline.quantize_model(config)
    (first, second) = [w for w in report.warnings if "declares" in w]
    assert first.startswith(
        "calibrate.data: samples are 3×20×18, but the prototxt declares 3×12×10"
    )
    assert second.startswith("evaluate.data")


def test_floats_that_a_transform_changes_are_noted(tmp_path):
    config = write_job(tmp_path, extra="[transform]\nmean = [1, 2, 3]\nscale = 0.5\n")
    notes = pipeline.quantize_model(config).notes
    assert any("holds floats, which [transform] changes: mean, scale" in n for n in notes)


# --------------------------------------------------------------------------- chance


def naive_chance(right: int, n: int, p: float) -> float:
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(right, n + 1))


@examples(200)
@given(st.integers(0, 120).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
       st.integers(2, 100))  # fmt: skip
def test_chance_is_that_of_a_binomial(counts, classes):
    right, n = counts
    guess = naive_chance(right, n, 1 / classes) > 0.01
    needed = next(k for k in range(n + 2) if naive_chance(k, n, 1 / classes) <= 0.01)
    would_show = naive_chance(needed, n, 1 / classes + (1 - 1 / classes) / 3) >= 0.99
    assert near_chance(right, n, classes) == (guess and would_show)


def test_a_float_net_that_guesses_is_warned_of(tmp_path):
    config = write_job(tmp_path)
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "data.npz", data=samples(200), label=rng.integers(0, 10, 200))
    report = pipeline.quantize_model(config)
    assert any("no better than guessing among 10 classes" in w for w in report.warnings)
    best = pipeline.FloatNet(small_net()).forward({"data": samples(200)})["prob"].argmax(1)
    np.savez(tmp_path / "data.npz", data=samples(200), label=best)
    report = pipeline.quantize_model(config.rename(tmp_path / "b.toml"), output=tmp_path / "b")
    assert not any("guessing" in w for w in report.warnings)


# --------------------------------------------------------------------------- BatchNorm

NORMED = """
name: "normed"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 16 dim: 16 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 12 kernel_size: 3 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "conv2" type: "Convolution" bottom: "conv" top: "conv2"
        convolution_param { num_output: 4 kernel_size: 3 bias_term: false } }
layer { name: "bn2" type: "BatchNorm" bottom: "conv2" top: "conv2" }
"""


def photos(count: int, seed: int) -> np.ndarray:
    """Return smooth positive images (count, 3, 16, 16), as bytes are: 0 to 255."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 3, 4, 4))
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3) + rng.normal(0, 12, (count, 3, 16, 16))
    return fine.clip(0, 255).astype(np.float32)


MEAN, STD = 127.5, 60.0


def trained(count: float = 3.0) -> caffeio.Net:
    """Return a net whose first BatchNorm has seen right data; its statistics are sums."""
    rng = np.random.default_rng(1)
    # some weights are blurs, as of every net: they see the mean
    w = rng.normal(0.1, 0.2, (12, 3, 3, 3)).astype(np.float32)
    w2 = rng.normal(size=(4, 12, 3, 3)).astype(np.float32) / 10
    x = (photos(200, 2) - MEAN) / STD
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, w, optimize=True)
    stats = [y.mean((0, 2, 3)) * count, y.var((0, 2, 3)) * count, np.array([count])]
    norm = [s.astype(np.float32) for s in stats]
    other = [np.zeros(4, np.float32), np.ones(4, np.float32), np.ones(1, np.float32)]
    return with_blobs(
        caffeio.parse_net(NORMED), {"conv": [w], "bn": norm, "conv2": [w2], "bn2": other}
    )


@pytest.mark.parametrize(
    ("wrong", "strange"),
    [
        (lambda x: (x - MEAN) / STD, False),
        (lambda x: (x[:, ::-1] - MEAN) / STD, False),  # cannot be seen, and is not claimed
        (lambda x: x / STD, True),
        (lambda x: x - MEAN, True),
        (lambda x: x, True),
        (lambda x: x / 255, True),
        (lambda x: (x / 255 - MEAN) / STD, True),
    ],
    ids=["right", "channels swapped", "no mean", "no scale", "bytes", "over 255", "twice"],
)
def test_the_first_batch_norm_tells_a_wrong_transform(wrong, strange):
    net = trained()
    assert first_norms(net) == ("bn",)
    (seen,) = norms_seen(net, {"data": wrong(photos(16, 3)).astype(np.float32)})
    assert (seen.layer, seen.blob) == ("bn", "conv")
    assert seen.strange == strange


def test_what_batch_norm_reads_is_compared_by_its_median(tmp_path):
    net = trained()
    x = (photos(16, 3) - MEAN) / STD
    (seen,) = norms_seen(net, {"data": x})
    conv = pipeline.FloatNet(net.with_layers(net.layers[:2])).forward({"data": x})["conv"]
    mean, variance = (net.layer("bn").blobs[i] / 3 for i in (0, 1))
    ratio = np.median(conv.var((0, 2, 3)) / variance)
    shift = np.median(np.abs(conv.mean((0, 2, 3)) - mean) / np.sqrt(variance))
    assert seen.ratio == pytest.approx(ratio, rel=1e-3)
    assert seen.shift == pytest.approx(shift, rel=1e-3)


def test_nothing_is_said_without_statistics_or_values():
    net = trained(0.0)  # never trained: Caffe takes mean and variance as 0
    assert first_norms(net) == ()
    assert norms_seen(net, {"data": photos(2, 1)}) == ()
    net = trained()
    dead = tuple(np.zeros_like(b) if i < 2 else b for i, b in enumerate(net.layer("bn").blobs))
    layers = tuple(replace(x, blobs=dead) if x.name == "bn" else x for x in net.layers)
    assert norms_seen(net.with_layers(layers), {"data": photos(2, 1)}) == ()


@pytest.mark.parametrize("right", [True, False])
def test_a_run_warns_of_a_wrong_transform(tmp_path, capsys, right):
    config = write_job(tmp_path, trained(), calibrate="", extra="[transform]\n" + (
        f"mean = [{MEAN}, {MEAN}, {MEAN}]\nscale = {1 / STD}\n" if right else f"scale = {1 / 255}\n"
    ))  # fmt: skip
    np.savez(tmp_path / "data.npz", data=photos(24, 5).astype(np.uint8))
    assert main([str(config)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    warned = "WARNING: BatchNorm layer 'bn' reads blob 'conv', whose variance is" in printed
    assert warned == (not right)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert bool(report["warnings"]) == (not right)


def test_data_that_is_not_there_is_named_with_its_table(tmp_path, capsys):
    config = write_job(tmp_path)
    config.write_text(config.read_text().replace("data.start = 8", "").replace(
        'batch_size = 5\ndata.source = "data.npz"', 'data.source = "val.txt"'
    ))  # fmt: skip
    assert main([str(config)]) == 2
    said = capsys.readouterr().err
    missing = tmp_path / "val.txt"
    assert f"{missing}: does not exist; [evaluate.data] of the config names it" in said
