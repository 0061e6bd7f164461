"""Corrected layers: what each step does to the numbers, and that net and record agree."""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import small_net

import caffeio
import kernels
from caffeio import Net
from caffeio.record import LayerRecord, Record
from pipeline import FloatNet, Int8Net
from pipeline.quantize.activations import Activations
from pipeline.quantize.correct import correct
from pipeline.quantize.corrections import Corrected, Steps
from pipeline.quantize.eligibility import judge
from pipeline.quantize.export import deploy_net, fakequant_net
from pipeline.quantize.fuse import fuse
from pipeline.quantize.integers import layer_record

RNG = np.random.default_rng(3)
PARTS = tuple({"data": RNG.normal(size=(4, 3, 12, 10)).astype(np.float32)} for _ in range(6))
HELD = (False,) * 5 + (True,)
ALL, NONE = Steps(), Steps(rounding=False, bias=False, gain=False)


def net_and_record() -> tuple[Net, Record]:
    """Return the folded small net, with weights so coarse that corrections have work to do."""
    net = fuse(small_net()).net
    ranges, shapes = {}, {}

    def see(i: int, layer: object, bottoms: list, tops: list) -> None:
        name = net.layers[i].name
        if bottoms:
            ranges[name] = float(bottoms[0].min()), float(bottoms[0].max())
            shapes[name] = bottoms[0].shape

    FloatNet(net).forward(PARTS[0], observer=see)
    records = {}
    for verdict in judge(net, (), ()):
        if verdict.quantize:
            layer = net.layer(verdict.layer)
            fine = layer_record(
                layer,
                kernels.params_from_range(*ranges[layer.name]),
                channel_wise=layer.type in ("Convolution", "Deconvolution"),
                shape=shapes[layer.name],
                skip_fusion=False,
            )
            scale_w = tuple(8 * s for s in fine.scale_w) if layer.blobs else fine.scale_w
            records[layer.name] = replace(fine, scale_w=scale_w)
    return net, Record(records)


def error(net: Net, result: Corrected, parts: tuple = PARTS[5:]) -> float:
    """Return the squared error at the logits."""
    int8, total = Int8Net.of_fused(result.net, result.record), 0.0
    for part in parts:
        exact = FloatNet(net).forward(part, ["fc"])["fc"]
        total += float(((int8.forward(part, ["fc"])["fc"] - exact) ** 2).sum())
    return total


def bytes_of(result: Corrected) -> list[bytes]:
    numbers = Int8Net.of_fused(result.net, result.record).layers.values()
    arrays = [a for q in numbers for a in (q.weights, q.bias, q.scale_w)]
    return [b"" if a is None else a.tobytes() for a in arrays]


def test_each_step_loses_less():
    net, record = net_and_record()
    plain = error(net, Corrected(net, record))
    bias = error(net, correct(net, record, PARTS, HELD, Steps(False, True, False)))
    everything = error(net, correct(net, record, PARTS, HELD, ALL))
    assert bias < plain
    assert everything < 0.7 * plain


def test_nothing_asked_for_changes_nothing():
    net, record = net_and_record()
    result = correct(net, record, PARTS, HELD, NONE)
    assert bytes_of(result) == bytes_of(Corrected(net, record))
    assert result.record == record


def test_bias_correction_leaves_no_mean_error_where_it_learned():
    net, record = net_and_record()
    result = correct(net, record, PARTS, (False,) * 6, Steps(False, True, False))
    int8 = Int8Net.of_fused(result.net, result.record)
    means: dict[str, list] = {}

    def see(i: int, layer: object, bottoms: list, tops: list) -> None:
        means.setdefault(net.layers[i].name, []).append(tops[0].mean(axis=(0, 2, 3)))

    for part in PARTS:
        FloatNet(net).forward(
            part, observer=lambda i, x, b, t: see(i, x, b, t) if t[0].ndim == 4 else None
        )
    exact = {name: np.mean(rows, axis=0) for name, rows in means.items()}
    means.clear()
    for part in PARTS:
        int8.forward(part, observer=lambda i, x, b, t: see(i, x, b, t) if t[0].ndim == 4 else None)
    got = {name: np.mean(rows, axis=0) for name, rows in means.items()}
    for name in ("conv1", "dw", "branch", "up"):
        unit = record.layers[name].scale_d * np.array(record.layers[name].scale_w)
        assert (np.abs(got[name] - exact[name]) <= unit).all()


def test_a_layer_without_bias_gets_one_and_the_files_say_so(tmp_path):
    net, record = net_and_record()
    text = net.layer("branch").param
    bare = type(text)()
    bare.CopyFrom(text)
    bare.convolution_param.bias_term = False
    branch = replace(net.layer("branch"), param=bare, blobs=net.layer("branch").blobs[:1])
    net = net.with_layers(tuple(branch if x.name == "branch" else x for x in net.layers))
    result = correct(net, record, PARTS, HELD, ALL)
    int8 = Int8Net.of_fused(result.net, result.record)
    assert int8.layers["branch"].bias is not None
    fake = fakequant_net(int8.net, int8.layers)
    caffeio.write_prototxt(fake, tmp_path / "fake.prototxt")
    caffeio.write_caffemodel(fake, tmp_path / "fake.caffemodel")
    read = caffeio.read_net(tmp_path / "fake.prototxt", tmp_path / "fake.caffemodel")
    got = FloatNet(read).forward(PARTS[0])["prob"]
    np.testing.assert_allclose(got, int8.forward(PARTS[0])["prob"], atol=2e-2)
    deploy = deploy_net(int8.net, int8.layers)
    assert [b.dtype for b in deploy.layer("branch").blobs] == [np.int8, np.int32]


def test_net_and_record_make_the_corrected_integers():
    net, record = net_and_record()
    result = correct(net, record, PARTS, HELD, ALL)
    int8 = Int8Net.of_fused(result.net, result.record)
    rounded = [name for name, c in result.layers.items() if c.weights is not None]
    assert rounded
    for name in rounded:
        np.testing.assert_array_equal(int8.layers[name].weights, result.layers[name].weights)
    for name, c in result.layers.items():
        want = np.array(record.layers[name].scale_w, np.float32) * c.gain
        np.testing.assert_array_equal(
            np.array(result.record.layers[name].scale_w, np.float32), want.astype(np.float32)
        )
        assert ((c.gain >= 0.8) & (c.gain <= 1.25)).all()


def test_some_steps_of_a_result():
    net, record = net_and_record()
    result = correct(net, record, PARTS, HELD, ALL)
    none = result.only(net, record, NONE)
    assert bytes_of(none) == bytes_of(Corrected(net, record))
    assert bytes_of(result.only(net, record, ALL)) == bytes_of(result)
    bias = result.only(net, record, Steps(False, True, False))
    assert bias.record == record
    assert any(
        (a.blobs[1] != b.blobs[1]).any()
        for a, b in zip(bias.net.layers, net.layers, strict=True)
        if len(b.blobs) > 1
    )


def test_layers_that_share_weights_stay_alike():
    net, record = net_and_record()
    layers = []
    for layer in net.layers:
        if layer.name in ("dw", "branch"):
            param = type(layer.param)()
            param.CopyFrom(layer.param)
            del param.param[:]
            param.param.add(name="" if layer.name == "dw" else "w")
            layer = replace(layer, param=param)  # noqa: PLW2901
        layers.append(layer)
    twin = replace(layers[[x.name for x in layers].index("branch")], name="twin", tops=("twin",))
    shared = net.with_layers((*layers, twin))
    result = correct(shared, record, PARTS, HELD, ALL)
    assert "branch" not in result.layers
    assert "dw" in result.layers
    assert result.net.layer("branch").blobs is shared.layer("branch").blobs
    assert result.record.layers["branch"] == record.layers["branch"]


def test_outputs_beyond_float32_change_nothing():
    net, record = net_and_record()
    weights = net.layer("fc").blobs[0] * np.float32(1e38)
    net = with_blobs(net, {"fc": [weights, np.zeros(10)]})
    assert not np.isfinite(FloatNet(net).forward(PARTS[0], ["fc"])["fc"]).all()
    huge = replace(record.layers["fc"], scale_w=(float(np.abs(weights).max() / 127),))
    result = correct(net, Record({**record.layers, "fc": huge}), PARTS, HELD, ALL)
    assert all(np.isfinite(b).all() for x in result.net.layers for b in x.blobs)
    assert np.isfinite(result.record.layers["fc"].scale_w).all()


def test_a_small_budget_of_memory_and_any_number_of_threads_give_the_same():
    net, record = net_and_record()
    want = bytes_of(correct(net, record, PARTS, HELD, ALL))
    assert bytes_of(correct(net, record, PARTS, HELD, ALL, memory=100_000)) == want
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert bytes_of(correct(net, record, PARTS, HELD, ALL)) == want
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_devices_agree(device: str):
    net, record = net_and_record()
    result = correct(net, record, PARTS[:2], (False, True), ALL, device=device)
    assert error(net, result) < error(net, Corrected(net, record))


def test_a_wide_input_is_compensated_in_blocks(monkeypatch):
    net, record = net_and_record()
    monkeypatch.setattr("pipeline.quantize.correct._MOST_COLUMNS", 20)
    result = correct(net, record, PARTS, HELD, ALL)
    assert error(net, result) < error(net, Corrected(net, record))


def test_a_bias_beyond_int32_leaves_the_layer_as_it_is(monkeypatch):
    net, record = net_and_record()
    name = "branch"
    layer = net.layer(name)
    tiny = LayerRecord(**{**vars(record.layers[name]), "scale_w": (1e-12,) * 8})
    blobs = [layer.blobs[0] * 1e-12, np.full(8, 1e-5, np.float32)]
    changed = with_blobs(net, {name: blobs})
    records = Record({**record.layers, name: tiny})
    result = correct(changed, records, PARTS, HELD, Steps(False, True, True))
    Int8Net.of_fused(result.net, result.record)  # can be made


def test_parts_beyond_the_budget_lie_in_a_file_that_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arrays = [np.full(10, i, np.float32) for i in range(5)]
    arrays += [np.arange(6.0).reshape(2, 3).T, np.zeros((0, 4)), np.array(7, np.int8)]
    with Activations(budget=85) as values:
        for i, array in enumerate(arrays):
            values.put(i, array)
        whole = values._end
        assert whole == 3 * 40 + 48
        for i, array in enumerate(arrays):
            np.testing.assert_array_equal(values.get(i), array)
            assert values.get(i).dtype == array.dtype
        values.drop(0)
        values.drop(3)
        values.put(4, arrays[0])  # now there is room
        values.put(5, arrays[1])
        values.put(6, arrays[2])
        assert values._end == whole  # where others were dropped
        np.testing.assert_array_equal(values.get(6), arrays[2])
        values.drop("never there")
        assert [*tmp_path.iterdir()] == []
    assert [*tmp_path.iterdir()] == []
