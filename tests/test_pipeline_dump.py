"""Dumps: what is written is what the nets compute, and what differs from it is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_nets import samples, small_net, write_job

import pipeline
from pipeline.jobs.compare_dump import compare_dump
from pipeline.jobs.dump import dump_model
from pipeline.run import main


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """The config of a run that has been made."""
    config = write_job(tmp_path_factory.mktemp("dump"))
    assert main([str(config), "--quiet"]) == 0
    return config


@pytest.fixture(scope="module")
def whole(job) -> Path:
    return dump_model(job, job.parent / "whole")


@pytest.fixture
def dump(whole, tmp_path) -> Path:
    """A dump to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "dump"))


def arrays(folder: Path) -> list[dict]:
    return json.loads((folder / "index.json").read_text())["arrays"]


def entry(folder: Path, layer: str, role: str, net: str = "int8") -> dict:
    return next(
        a for a in arrays(folder) if (a["net"], a["layer"], a["role"]) == (net, layer, role)
    )


def test_a_dump_holds_what_the_nets_compute(job, whole):
    index = json.loads((whole / "index.json").read_text())
    assert (index["version"], index["samples"]) == (1, 5)
    x = np.load(whole / "data.npy")
    np.testing.assert_array_equal(x, samples(24)[8:13])
    int8 = pipeline.load_quantized(
        job.parent / "out" / "net_deploy_model.prototxt",
        job.parent / "out" / "net_deploy_weights.caffemodel",
    )
    want = {
        "float": pipeline.FloatNet(small_net()).forward({"data": x}, ["fc", "sum"]),
        "int8": int8.forward({"data": x}, ["fc", "sum"]),
    }
    for net, blobs in want.items():
        for blob, y in blobs.items():
            found = np.load(whole / entry(whole, blob, "output", net)["file"])
            np.testing.assert_allclose(found, y, atol=1e-4)  # a net of its own is compiled
    first = entry(whole, "conv1", "input")
    q = int8.layers["conv1"].data
    assert (first["dtype"], first["scale"], first["offset"]) == ("int8", q.scale, q.offset)
    for a in arrays(whole):
        array = np.load(whole / a["file"])
        assert (list(array.shape), str(array.dtype)) == (a["shape"], a["dtype"])
    assert {a["layer"] for a in arrays(whole) if a["net"] == "fakequant"} >= {
        "conv1_quant",
        "fc_dequant",
    }
    two = [a["blob"] for a in arrays(whole) if a["layer"] == "sum" and a["role"] == "input"]
    assert two.count("dw") == two.count("branch") == 3


def test_chosen_layers_and_samples(job, tmp_path):
    folder = tmp_path / "few"
    assert (
        main([str(job), "--dump", str(folder), "--dump-layers", "fc,conv1", "--dump-samples", "2"])
        == 0
    )
    assert {a["layer"] for a in arrays(folder)} == {"", "fc", "conv1"}
    assert {a["shape"][0] for a in arrays(folder)} == {2}


def test_our_own_dump_is_equal(job, whole, capsys):
    found = compare_dump(job, whole)
    assert len(found) > 20
    assert all(c.differing == 0 and c.worst == 0 for c in found)
    assert main([str(job), "--compare-dump", str(whole)]) == 0
    assert "arrays are equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layer", "role", "steps"),
    [("dw", "input", 1), ("conv1", "output", 1), ("fc", "output", 1), ("max", "output", -1)],
)
def test_a_layer_altered_by_one_step_is_found(job, dump, capsys, layer, role, steps):
    a = entry(dump, layer, role)
    array = np.load(dump / a["file"])
    int8 = pipeline.load_quantized(
        job.parent / "out" / "net_deploy_model.prototxt",
        job.parent / "out" / "net_deploy_weights.caffemodel",
    )
    step = {
        ("dw", "input"): 1, ("conv1", "output"): int8.layers["dw"].data.scale,
        ("fc", "output"): int8.layers["fc"].deq_scale[0], ("max", "output"): int8.layers["fc"].data.scale,
    }[layer, role]  # fmt: skip
    flat = array.reshape(-1)
    places = np.flatnonzero((flat > -100) & (flat < 100))[:3]
    flat[places] += np.asarray(steps * step, array.dtype)
    np.save(dump / a["file"], array)
    different = [c for c in compare_dump(job, dump) if c.differing]
    assert [(c.layer, c.role, c.differing) for c in different] == [(layer, role, 3)]
    assert different[0].worst == pytest.approx(1, rel=1e-2)
    assert main([str(job), "--compare-dump", str(dump)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"The first that differs is the {role} of layer '{layer}'" in shown
    assert "3 of" in shown


def test_the_first_in_the_order_of_the_net_is_named(job, dump):
    for layer in ("fc", "dw"):
        a = entry(dump, layer, "output")
        np.save(dump / a["file"], np.load(dump / a["file"]) + 1)
    different = [c for c in compare_dump(job, dump) if c.differing]
    assert [c.layer for c in different] == ["dw", "fc"]


def test_numbers_of_a_device_without_an_index(job, whole, tmp_path):
    """Bare files: .bin of int8 and float32 in our shape, names with their layer's."""
    for layer, role in (("conv1", "input"), ("dw", "output"), ("fc", "output")):
        np.load(whole / entry(whole, layer, role)["file"]).tofile(tmp_path / f"{layer}_{role}.bin")
    found = compare_dump(job, tmp_path)  # the samples are those of the config
    assert [(c.layer, c.role, c.differing) for c in found] == [
        ("conv1", "input", 0), ("dw", "output", 0), ("fc", "output", 0)
    ]  # fmt: skip
    x = samples(24)[8:13]
    np.save(tmp_path / "data.npy", x[::-1])
    assert any(c.differing for c in compare_dump(job, tmp_path))


def test_real_inputs_of_quantized_layers_are_quantized(job, dump):
    a = entry(dump, "conv1", "input")
    real = samples(24)[8:13]
    np.save(dump / a["file"], real)
    assert not any(c.differing for c in compare_dump(job, dump))


def test_nan_is_a_difference(job, dump):
    a = entry(dump, "dw", "output")
    array = np.load(dump / a["file"])
    array.reshape(-1)[7] = np.nan
    np.save(dump / a["file"], array)
    (found,) = [c for c in compare_dump(job, dump) if c.differing]
    assert (found.layer, found.differing, found.worst) == ("dw", 1, np.inf)


def spoilt_index(folder: Path) -> None:
    (folder / "index.json").write_text('{"arrays": 3}')


def short_array(folder: Path) -> None:
    a = entry(folder, "dw", "output")
    np.save(folder / a["file"], np.zeros(3, np.float32))


def unknown_layer(folder: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"layer": "dw"', '"layer": "dwx"'))


def damaged(folder: Path) -> None:
    (folder / entry(folder, "dw", "output")["file"]).write_bytes(b"\x93NUMPY")


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (spoilt_index, 1, "is no index of a dump"),
        (short_array, 1, "holds 3 values"),
        (unknown_layer, 2, "has no layer 'dwx'"),
        (damaged, 1, "cannot be read"),
        (shutil.rmtree, 2, "is no folder"),
    ],
)
def test_a_damaged_dump_is_named(job, dump, capsys, spoil, code, says):
    spoil(dump)
    assert main([str(job), "--compare-dump", str(dump)]) == code
    assert says in capsys.readouterr().err


def test_what_is_needed_is_named(job, tmp_path, capsys):
    there = tmp_path / "there"
    there.mkdir()
    for words, says in (
        (["--dump", str(there)], "exists already"),
        (["--dump", str(tmp_path / "x"), "--dump-layers", "nope"], "there is no layer 'nope'"),
        (["--dump", str(tmp_path / "x"), "--output", str(tmp_path)], "run the config first"),
        (["--compare-dump", str(there)], "holds no array of a layer"),
    ):
        assert main([str(job), *words]) == 2
        assert says in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]
