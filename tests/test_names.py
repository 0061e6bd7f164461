"""Names are data: whatever stands in a layer's, a blob's or a file's, it is shown and no more."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from layer_nets import with_blobs
from rich.console import Console
from small_nets import small_net, write_job

import caffeio
import pipeline
from pipeline.report.console import PlainConsole, printable
from pipeline.report.progress import Reporter
from pipeline.run import main

ODD = ("conv[/x]", "features[conv]", "up\x1b[31m\x07red", "a\u202eb", "[bold]dw[/bold]", "100%(a)s")


def renamed(names: dict[str, str]) -> caffeio.Net:
    """Return the small net with layers of other names, and blobs of the same."""
    net = small_net()
    params = []
    for layer in net.layers:
        param = type(layer.param)()
        param.CopyFrom(layer.param)
        param.name = names.get(param.name, param.name)
        for ends in (param.bottom, param.top):
            ends[:] = [names.get(blob, blob) for blob in ends]
        params.append(replace(layer, param=param))
    text = 'name: "[red]net"\n' + "".join(f"layer {{ {p.param} }}\n" for p in params)
    blobs = {names.get(x.name, x.name): [*x.blobs] for x in net.layers if x.blobs}
    return with_blobs(caffeio.parse_net(text), blobs)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    layers = ("conv1", "dw", "branch", "dilated", "up", "fc")
    return write_job(tmp_path, renamed(dict(zip(layers, ODD, strict=True))))


def shown(text: str, names: tuple[str, ...] = ODD) -> None:
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    for name in names:
        assert printable(name) in text, name


@pytest.mark.parametrize("options", [["--plan"], ["--sort"], ["--sensitivity"], ["--verbose"]])
def test_odd_names_are_shown_as_they_are(job: Path, options: list[str], capsys):
    assert main([str(job), *options]) == 0
    captured = capsys.readouterr()
    quantized = tuple(name for name in ODD if name != ODD[3])  # that is the dilated one
    shown(captured.out, quantized if options == ["--sensitivity"] else ODD)
    assert "\x1b[31m" not in captured.err
    if options == ["--sort"]:
        whole = json.loads((job.parent / "out" / "report.json").read_text())
        assert {x["layer"] for x in whole["layers"]} >= set(ODD)


def test_odd_names_in_compare(job: Path, capsys):
    assert main([str(job)]) == 0
    other = job.with_name("other.toml")
    other.write_text(
        job.read_text()
        .replace('"out"', '"[/b]"')
        .replace("[evaluate]", 'effort="original"\n[evaluate]')
    )
    assert main([str(other)]) == 0
    capsys.readouterr()
    assert main(["compare", str(job.parent / "out"), str(job.parent / "[/b]")]) == 0
    text = capsys.readouterr().out
    assert "[/b]" in text
    assert "\x1b" not in text


def test_odd_names_in_errors(tmp_path: Path, capsys):
    config = write_job(tmp_path)
    config.write_text(
        config.read_text().replace("[calibrate]", "[calibrate]\nskip_layers = ['a\\u001b[1mb']")
    )
    text = config.read_text().replace("'a\\u001b[1mb'", '"a\\u001b[1mb"')
    config.write_text(text)
    assert main([str(config)]) == 2
    said = capsys.readouterr().err
    assert r"a\x1b[1mb" in said
    assert "\x1b" not in said
    config.write_text(config.read_text().replace("[1mb", "x" * 5000))
    assert main([str(config)]) == 2
    assert len(capsys.readouterr().err) < 1000


def test_a_bar_takes_any_name():
    console = PlainConsole(file=io.StringIO(), force_terminal=True, width=80)
    reporter = Reporter(console=console)
    for _ in reporter.track(range(2), "observe [/x]", 2):
        reporter.note("compiling [/y]")
    assert "[/x]" in console.file.getvalue()


def test_what_is_printable():
    assert printable("wörter/日本 ×\n\tb") == "wörter/日本 ×\n\tb"
    assert printable("\x1b[0m\r\x9b\u202e\x00") == r"\x1b[0m\r\x9b\u202e\x00"
    plain = Console(file=io.StringIO())
    assert isinstance(PlainConsole(file=io.StringIO()), type(plain))


def test_folders_whose_names_are_no_utf8(tmp_path: Path):
    """Linux takes any bytes for a name; what is written of it is its escape."""
    folder = tmp_path / os.fsdecode(b"d\xff")
    shutil.copytree(Path(pipeline.__file__).parent / "demo", folder)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("[calibrate]\n", "[calibrate]\ncache = true\n"))
    assert main([str(config), "--quiet", "--output", str(folder / "out")]) == 0
    assert "d\\udcff" in (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(folder / "out")]) == 0


def test_a_name_begins_no_line_of_its_own():
    error = caffeio.CaffeFileError("cal\nerror: x", "cannot be read")
    assert str(error) == "cal\\nerror: x: cannot be read"
    assert str(caffeio.NetError("is wrong", layer="a\nb")) == "layer 'a\\nb': is wrong"
    assert printable("a\u3000b\u200cc\u00a0d\u202e") == "a\u3000b\u200cc\u00a0d\\u202e"
