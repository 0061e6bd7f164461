"""The page of a run, in a browser; runs beside each other; what report.json holds."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from small_nets import small_net, write_job

import pipeline
from pipeline.report.advice import cure, judgement
from pipeline.report.curve import Point, Training
from pipeline.report.fit import Column, fitted_table
from pipeline.report.page import page_of
from pipeline.report.tables import show_report
from pipeline.report.values import to_json
from pipeline.run import main

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    config = write_job(folder, calibrate="skip_layers = ['branch']", extra="[nuq]\nlayers = ['fc']")
    text = config.read_text()
    config.write_text(text.replace("[output]", "[output]\nsensitivity = true"))
    return folder, pipeline.quantize_model(config)


def data_of(page: str) -> dict:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text[1])


def browse(page: Path, script: str, width: int = 1280) -> str:
    """Open a page from disk, run a script at its end, and return what that leaves in #out."""
    tried = page.with_name("tried.html")
    end = (
        "<pre id=out></pre><script>window.errors = [];"
        "window.onerror = m => errors.push(m);"
        f"try {{ {script} }} catch (e) {{ errors.push(String(e)); }}"
        "document.getElementById('out').textContent = JSON.stringify({result: window.result, errors});"
        "</script></body>"
    )
    tried.write_text(page.read_text().replace("</body>", end))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
               "--virtual-time-budget=3000", "--dump-dom", tried.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-500:]
    answer = json.loads(
        found[1]
        .replace("&quot;", '"')
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
    )
    assert answer["errors"] == []
    return answer["result"]


class Loads(HTMLParser):
    """Collects whatever a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [
            v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")
        ]


def test_the_page_loads_nothing_and_is_small(run):
    folder, _ = run
    text = (folder / "out" / "report.html").read_text()
    parser = Loads()
    parser.feed(text)
    assert parser.found == []
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", text.split("<script type")[0])
    # 200 layers of the size of these would stay below 3 MB
    assert len(text) / max(len(data_of(text)["rows"]), 1) < 15_000


def test_report_json_says_what_it_belongs_to(run):
    folder, report = run
    whole = json.loads((folder / "out" / "report.json").read_text())
    about = whole["about"]
    assert whole["schema"] == 1
    assert about["product"] == f"caffe-quant {pipeline.__version__}"
    assert about["config"]["calibrate"]["skip_layers"] == ["branch"]
    import hashlib

    model = folder / "net.caffemodel"
    assert about["sha256"][str(model)] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert about["machine"]["packages"]["numpy"] == np.__version__
    assert about["peak_memory_bytes"] > 1 << 24
    detail = whole["details"]["conv1"]
    assert sum(detail["counts"]) == detail["values"] == 8 * 3 * 12 * 10
    assert detail["method"].startswith("Mse(")
    assert set(detail["winners"]) >= {"ifmr", "minmax", "kl"}
    assert len(detail["weights_low"]) == 8
    assert detail["chosen"][2] == min(t[2] for t in [*detail["tried"], detail["chosen"]])
    assert whole["costs"]["conv1"]["macs"] == 8 * 3 * 9 * 120
    assert detail["after"] >= detail["before"] > 10
    alone = {s["layer"]: s["alone"] for s in whole["sensitivity"]}
    quantized = {x["layer"] for x in whole["layers"] if x["quantized"]}
    assert set(alone) == quantized
    assert whole["sensitive"][0] == min(alone, key=alone.get)
    assert len(whole["data"]["thumbnails"]) == 4
    assert whole["judgement"] == report.judgement != ""


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(run, width):
    folder, _ = run
    result = browse(
        folder / "out" / "report.html",
        """
        const names = () => [...document.querySelectorAll("tr.layer")].map(r => r.dataset.layer);
        const button = name => [...document.querySelectorAll("#layers th button")].find(b => b.textContent === name);
        const r = {};
        r.judge = document.getElementById("judgement").textContent;
        r.start = names();
        button("whole net dB").click(); r.lost = names();
        button("adds dB").click(); r.sorted = names(); button("adds dB").click(); r.reversed = names();
        const f = document.getElementById("filter"); f.value = "conv1"; f.oninput(); r.filtered = names();
        document.querySelector("tr.layer").click();
        r.words = document.querySelector("tr.detail").textContent;
        r.links = [...document.querySelectorAll("nav a")].every(
          a => document.getElementById(a.getAttribute("href").slice(1)));
        r.pictures = document.querySelectorAll("tr.detail svg").length;
        document.querySelector("tr.layer").click(); r.closed = document.querySelectorAll("tr.detail").length;
        f.value = ""; const w = document.getElementById("which"); w.value = "float"; w.onchange(); r.float = names();
        w.value = "all"; w.onchange(); r.all = names();
        r.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
        r.images = [...document.images].every(i => i.complete && i.naturalWidth > 0);
        window.result = r;
        """,
        width,
    )
    report = json.loads((folder / "out" / "report.json").read_text())
    db = {x["layer"]: x["error"]["sqnr"] for x in report["layers"] if x["quantized"]}
    assert result["judge"] == report["judgement"]
    assert result["sorted"][: len(db)] == sorted(db, key=db.get)
    assert result["reversed"][: len(db)] == sorted(db, key=db.get, reverse=True)
    lost = {s["layer"]: s["alone"] for s in report["sensitivity"]}
    assert result["lost"][: len(lost)] == sorted(lost, key=lost.get)
    assert "Rounding error at its output" in result["words"]
    assert "with this layer alone quantized" in result["words"]
    assert result["links"]
    assert result["filtered"] == ["conv1"]
    assert (result["pictures"], result["closed"]) == (4, 0)
    assert "branch" in result["float"]
    assert "relu1" not in result["start"]
    assert "relu1" in result["all"]
    assert result["wide"] <= 0  # nothing pushes the page wider than the screen
    assert result["images"]


def test_the_layers_as_csv(run):
    folder, report = run
    with (folder / "out" / "report.csv").open(newline="") as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    assert list(rows) == [x.layer for x in report.layers]
    conv = rows["conv1"]
    layer = next(x for x in report.layers if x.layer == "conv1")
    assert float(conv["scale_d"]) == layer.scale_d
    assert float(conv["adds_db"]) == layer.error.sqnr
    assert (conv["int8"], conv["absorbed"], conv["macs"]) == ("1", "bn1 scale1", "25920")
    assert float(conv["alone_db"]) == next(
        s.alone for s in report.sensitivity if s.layer == "conv1"
    )
    assert (rows["branch"]["reason"], rows["branch"]["scale_d"]) == ("named in skip_layers", "")


@needs_browser
def test_a_training_is_drawn(run):
    folder, report = run
    points = [Point(i, 1 / (i + 1), 0.1, i / 10 if i % 3 == 0 else None) for i in range(1000)]
    training = Training("top1", tuple(points), best=999).thinned(100)
    assert len(training.points) <= 100 + 334
    page = folder / "trained.html"
    page.write_text(page_of(json.loads(to_json(replace(report, training=training)))))
    script = """
        const texts = [...document.querySelectorAll("figcaption")].map(f => f.textContent);
        window.result = [texts.includes("Loss of the training batches"),
                         texts.find(t => t.startsWith("Tests: top1")),
                         document.querySelectorAll("#training + figure circle").length];
    """
    assert browse(page, script) == [True, "Tests: top1; the state at iteration 999 was kept", 0]


def test_tables_fit_the_terminal(run):
    _, report = run
    for width in (60, 80, 120):
        console = Console(width=width, file=io.StringIO())
        show_report(report, console, by_error=True)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines[:20])) <= width
        names = [x.split()[0] for x in lines[4:] if x.split()][: len(report.record.layers)]
        db = {x.layer: x.error.sqnr for x in report.layers if x.error}
        assert names == sorted(db, key=db.get)  # whole names, the worst first
        text = " ".join(console.file.getvalue().split())
        assert "named in skip_layers branch" in text
        assert "dilation is 2, not 1 dilated" in text
        assert "lose nothing in float: 1 Input, 1 ReLU, 1 Eltwise, 1 Pooling, 1 Softmax." in text
        assert "4 layers are folded into those in front." in text


def test_long_names_are_cut_in_the_middle():
    names = ["a/very/long/name/of/a/layer/" + str(i) for i in range(3)]
    columns = [
        Column("layer", names, left=True),
        Column("x", ["1.0"] * 3),
        Column("y", "abc", rank=1),
    ]
    console = Console(width=24, file=io.StringIO())
    console.print(fitted_table("t", columns, 24))
    text = console.file.getvalue()
    assert "y" not in text.split()
    assert all(f"layer/{i}" in text for i in range(3))
    assert max(map(len, text.splitlines())) <= 24


def test_in_a_notebook(run, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    _, report = run
    ax = report.plot_layer("conv1")
    assert {t.get_text() for t in ax.get_legend().get_texts()} >= {"data", "chosen", "mse", "kl"}
    detail = report.details["conv1"]
    chosen = [line.get_xdata()[0] for line in ax.lines if line.get_color() == "black"]
    assert chosen == [detail.range[1], detail.range[0]]
    errors = report.plot_errors()
    assert [t.get_text() for t in errors.get_xticklabels()] == list(report.record.layers)
    assert len(errors.lines) == 3
    assert report.plot_errors(errors) is errors
    with pytest.raises(KeyError, match="no data of layer 'branch' was observed"):
        report.plot_layer("branch")
    with pytest.raises(ValueError, match="had no"):
        replace(report, layers=()).plot_errors()
    frame = report._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert html.unescape(frame.split('srcdoc="')[1].split('" style')[0]).startswith(
        "<!DOCTYPE html>"
    )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"caffe-quant\[plot\]"):
        report.plot_errors()


def test_names_cannot_break_the_page(run):
    odd = "</script><script>alert(1)</script><!--"
    whole = json.loads(json.dumps(json.loads((run[0] / "out" / "report.json").read_text())))
    whole["layers"][1]["layer"] = odd
    text = page_of(whole)
    assert odd not in text
    assert data_of(text)["rows"][1]["layer"] == odd


def test_the_page_is_made_again(run, tmp_path, capsys):
    folder, _ = run
    copy = Path(shutil.copytree(folder / "out", tmp_path / "copy"))
    before = (copy / "report.html").read_text()
    rows = (copy / "report.csv").read_text()
    for name in ("report.html", "report.csv"):
        (copy / name).unlink()
    assert main(["report", str(copy)]) == 0
    assert (copy / "report.html").read_text() == before
    assert (copy / "report.csv").read_text() == rows
    (copy / "report.json").write_text("{}")
    assert main(["report", str(copy)]) == 1
    assert "is no report of schema 1" in capsys.readouterr().err


def test_runs_beside_each_other(run, tmp_path, capsys):
    folder, _ = run
    (tmp_path / "b").mkdir()
    config = write_job(tmp_path / "b", calibrate="effort = 'original'\nskip_layers = ['fc']")
    assert main([str(config), "--quiet"]) == 0
    a, b, page = folder / "out", tmp_path / "b" / "out", tmp_path / "both.html"
    assert main(["compare", str(a), str(b), "--page", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "layers changed" in shown
    for part in ("branch", "float named in skip_layers", "INT8 Mse", "INT8 Ifmr"):
        assert part in " ".join(shown.split()), part
        assert part in page.read_text().replace("</td><td>", " ")
    assert main(["compare", str(a), str(a)]) == 0
    assert "All layers are alike." in capsys.readouterr().out
    assert main(["compare", str(a), str(tmp_path)]) == 2
    with pytest.raises(SystemExit):
        main(["compare", str(a)])
    if BROWSER:
        rows = browse(page, "window.result = document.querySelectorAll('table')[1].rows.length")
        assert rows > 4


def test_judgements_follow_the_numbers(run):
    _, report = run
    exact, fake, int8 = report.accuracy
    for lost, word in ((0.1, "good"), (1.0, "fair"), (9.0, "poor")):
        scores = (replace(exact, top1=80.0), fake, replace(int8, top1=80.0 - lost))
        assert f": {word}." in judgement(replace(report, accuracy=scores, warnings=()))
    poor = (replace(exact, top1=80.0), fake, replace(int8, top1=60.0))
    assert 'effort = "best"' in judgement(
        replace(report, accuracy=poor, effort="standard", warnings=())
    )
    assert "[fallback]" in judgement(replace(report, accuracy=poor, effort="best", warnings=()))
    assert "warnings first" in judgement(replace(report, accuracy=poor, warnings=("x",)))
    few = (replace(exact, top1=80.0, samples=50), fake, replace(int8, top1=80.0))
    assert "50 samples tell no difference below 2 points" in judgement(
        replace(report, accuracy=few, warnings=())
    )
    assert "Nothing was compared" in judgement(replace(report, accuracy=()))
    assert cure("named in skip_layers") == "take it out of skip_layers"
    assert cure("ReLU has no INT8 form") == ""
    assert small_net().name in report.net
