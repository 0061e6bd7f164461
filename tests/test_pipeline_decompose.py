"""Convolutions as two of lower rank: exact where the weights allow it, named where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import samples, write_job

import caffeio
import pipeline
from pipeline.config.decompose import DecomposeConfig
from pipeline.jobs.decompose import decompose_model
from pipeline.quantize.decompose import decomposable, decompose, observe_columns, with_pairs
from pipeline.run import main

TEXT = """name: "ranks"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }
layer { name: "wide" type: "Convolution" bottom: "data" top: "wide"
  convolution_param { num_output: 12 kernel_size: 3 pad: 1 } }
layer { name: "separable" type: "Convolution" bottom: "wide" top: "separable"
  convolution_param { num_output: 12 kernel_size: 3 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 2
    bias_term: false weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "separable" top: "separable" }
layer { name: "scale" type: "Scale" bottom: "separable" top: "separable" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "separable" top: "separable" }
layer { name: "thin" type: "Convolution" bottom: "separable" top: "thin"
  param { lr_mult: 2 } param { lr_mult: 3 }
  convolution_param { num_output: 12 kernel_size: 3 dilation: 2 } }
layer { name: "point" type: "Convolution" bottom: "thin" top: "point" convolution_param { num_output: 12 kernel_size: 1 } }
layer { name: "dw" type: "Convolution" bottom: "point" top: "dw" convolution_param { num_output: 12 kernel_size: 1 group: 12 } }
layer { name: "fc" type: "InnerProduct" bottom: "dw" top: "fc" inner_product_param { num_output: 10 } }
"""


def low_rank_net(seed: int = 0) -> caffeio.Net:
    """Every convolution but `wide` and `dw` has weights of rank 2, each in another form."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape, scale=0.5).astype(np.float32)

    separable = np.einsum("riy,orx->oiyx", normal(2, 12, 3), normal(12, 2, 3))
    thin = np.einsum("ri,oryx->oiyx", normal(2, 12), normal(12, 2, 3, 3))
    point = np.einsum("ri,or->oi", normal(2, 12), normal(12, 2))[:, :, None, None]
    net = caffeio.parse_net(TEXT)
    return with_blobs(net, {
        "wide": [normal(12, 3, 3, 3), normal(12)], "separable": [separable.astype(np.float32)],
        "bn": [normal(12), abs(normal(12)) + 1, np.ones(1, np.float32)],
        "scale": [normal(12) + 1, normal(12)], "thin": [thin.astype(np.float32), normal(12)],
        "point": [point.astype(np.float32), normal(12)], "dw": [normal(12, 1, 1, 1), normal(12)],
        "fc": [normal(10, 12 * 2 * 8), normal(10)],
    })  # fmt: skip


def job(folder: Path, **tables: str) -> Path:
    return write_job(folder, low_rank_net(), **tables)


def test_weights_of_low_rank_lose_nothing(tmp_path):
    found = decompose_model(job(tmp_path, extra="[decompose]\nmax_error = 0.001"))
    forms = {x.layer: (x.form, x.rank) for x in found.layers}
    assert forms["separable"] == ("rows, columns", 2)
    assert forms["thin"] == ("narrow, full", 2)
    assert forms["point"] == ("full, narrow", 2)
    assert forms["wide"] == ("", 0)
    assert "dw" not in forms
    net = caffeio.read_net(
        tmp_path / "out" / "net_decomposed.prototxt", tmp_path / "out" / "net_decomposed.caffemodel"
    )
    assert [x.name for x in net.layers if x.type == "Convolution"] == [
        "wide", "separable_first", "separable", "thin_first", "thin", "point_first", "point", "dw"
    ]  # fmt: skip
    x = {"data": samples(5, 9)}
    blobs = ["separable", "thin", "point", "fc"]
    exact = pipeline.FloatNet(low_rank_net()).forward(x, blobs)
    for blob, y in pipeline.FloatNet(net).forward(x, blobs).items():
        np.testing.assert_allclose(y, exact[blob], atol=2e-4 * abs(exact[blob]).max(), err_msg=blob)
    assert found.accuracy[1].outputs[0].sqnr > 80
    for x in found.layers:
        if x.form:
            assert x.macs <= x.macs_before * 2 / 3
    saved = sum(x.macs_before - x.macs for x in found.layers)
    assert found.macs == found.macs_before - saved


def test_what_is_told_of_the_error_is_what_happens():
    """One layer alone: its output moves by what its rank says."""
    net = low_rank_net()
    rng = np.random.default_rng(1)
    layers = {x.name: x for x in net.layers}
    noisy = layers["thin"].blobs[0] + 0.05 * rng.normal(size=(12, 12, 3, 3)).astype(np.float32)
    layers["thin"] = replace(layers["thin"], blobs=(noisy, layers["thin"].blobs[1]))
    net = net.with_layers(tuple(layers.values()))
    settings = DecomposeConfig(max_error=0.2, layers=("thin",))
    x = {"data": samples(24)}
    seen = observe_columns(net, decomposable(net, settings), [x])
    pairs, (rank,) = decompose(net, seen, settings)
    assert 0 < rank.error <= 0.2
    y, z = (
        pipeline.FloatNet(n).forward(x, ["thin"])["thin"] for n in (net, with_pairs(net, pairs))
    )
    # the bias has taken what the columns are on average
    assert abs((y - z).mean(axis=(0, 2, 3))).max() < 2e-4
    # every channel counts alike
    share = ((y - z) ** 2).mean(axis=(0, 2, 3)) / y.var(axis=(0, 2, 3))
    assert np.sqrt(share.mean()) == pytest.approx(rank.error, rel=1e-3)


def test_batches_held_back_judge():
    """What only fits the samples that it was computed from is not taken for what it is."""
    net = low_rank_net()
    settings = DecomposeConfig(max_error=0.5, layers=("wide",), min_saving=0.01)
    x, other = samples(2, 1)[:, :, :4, :4], 40 * samples(2, 2)[:, :, :4, :4] + 9
    same, held = (
        observe_columns(net.until(("wide",)), ("wide",), [{"data": a}, {"data": b}], 2)["wide"]
        for a, b in ((x, x), (x, other))
    )
    assert (same.moments.products == held.moments.products).all()
    assert (same.judge.products != held.judge.products).any()
    errors = [decompose(net, {"wide": seen}, settings)[1][0].error for seen in (same, held)]
    assert errors[0] != errors[1]


def test_the_decomposed_net_is_quantized_like_any_other(tmp_path):
    found = decompose_model(job(tmp_path, extra="[decompose]\nmax_error = 0.001"))
    text = (tmp_path / "config.toml").read_text().split("[decompose]")[0]
    text = text.replace("net.prototxt", "out/net_decomposed.prototxt")
    text = text.replace('"net.caffemodel"', '"out/net_decomposed.caffemodel"')
    (tmp_path / "again.toml").write_text(text)
    report = pipeline.quantize_model(tmp_path / "again.toml", output=tmp_path / "int8")
    assert "separable_first" in report.record.layers
    assert report.accuracy[2].outputs[0].sample_sqnr > 20
    assert set(found.files) == {"prototxt", "weights"}


def test_the_command_shows_what_it_saves(tmp_path, capsys):
    config = job(tmp_path, extra="[decompose]\nmax_error = 0.01")
    assert main([str(config), "--decompose"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 of 4 convolutions of ranks as two" in shown
    assert "decomposed fc" in shown
    assert main([str(config), "--plan"]) == 0
    assert "[decompose] has no effect here" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("table", "code", "says"),
    [
        ('layers = ["dw"]', 2, "decompose.layers: 'dw' is no Convolution of one group"),
        ('skip_layers = ["none"]', 2, "decompose.skip_layers: 'none'"),
        ("max_error = 1.5", 2, "decompose.max_error"),
        ('skip_layers = ["separable", "thin", "point"]', 0, "no layer saves enough"),
    ],
)
def test_settings(tmp_path, capsys, table, code, says):
    assert main([str(job(tmp_path, extra=f"[decompose]\n{table}")), "--decompose"]) == code
    printed = capsys.readouterr()
    assert says in " ".join((printed.out + printed.err).split())


def test_a_name_that_is_taken(tmp_path, capsys):
    text = TEXT.replace('name: "relu"', 'name: "point_first"')
    blobs = {x.name: list(x.blobs) for x in low_rank_net().layers if x.blobs}
    net = with_blobs(caffeio.parse_net(text), blobs)
    assert main([str(write_job(tmp_path, net)), "--decompose"]) == 2
    assert "has 'point_first' already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_training_net_is_decomposed_likewise(tmp_path):
    """What comes of it trains in float, and then is quantized."""
    pytest.importorskip("torch")
    config = job(tmp_path)
    train = TEXT.replace(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }',
        'layer { name: "data" type: "Input" top: "data" top: "label" '
        "input_param { shape { dim: 4 dim: 3 dim: 12 dim: 10 } shape { dim: 4 } } }",
    )
    train += (
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }\n'
    )
    (tmp_path / "train.prototxt").write_text(train)
    (tmp_path / "solver.prototxt").write_text(
        'net: "train.prototxt"\nbase_lr: 0.001\nlr_policy: "fixed"\nmax_iter: 3\n'
        "test_iter: 1\ntest_interval: 3\nrandom_seed: 1\n"
    )
    retrain = """
[decompose]
max_error = 0.001
[retrain]
solver = "solver.prototxt"
quantize = false
batch_size = 4
data = { source = "data.npz" }
test_data = { source = "data.npz" }
"""
    config.write_text(config.read_text() + retrain)
    found = decompose_model(config)
    assert "train_prototxt" in found.files
    whole = caffeio.read_net(found.files["train_prototxt"], phase="TRAIN")
    assert [x.name for x in whole.layers].count("thin_first") == 1
    thin, first = whole.layer("thin"), whole.layer("thin_first")
    assert [s.lr_mult for s in thin.param.param] == [2, 3]
    assert [s.lr_mult for s in first.param.param] == [2]
    text = config.read_text().replace("solver.prototxt", "out/net_decomposed_solver.prototxt")
    text = text.replace('"net.prototxt"', '"out/net_decomposed.prototxt"').replace(
        '"net.caffemodel"', '"out/net_decomposed.caffemodel"'
    )
    (tmp_path / "tune.toml").write_text(text.replace("[decompose]\nmax_error = 0.001\n", ""))
    trained = pipeline.train_model(tmp_path / "tune.toml", output=tmp_path / "tuned")
    assert trained.iterations == 3
    tuned = caffeio.read_net(
        tmp_path / "out" / "net_decomposed.prototxt", trained.files["trained_weights"]
    )
    assert "separable_first" in {x.name for x in tuned.layers}
