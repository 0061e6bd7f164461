"""Training a real net at few bits: what calibration loses, training recovers."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from pipeline.retrain.job import train_model  # noqa: E402

_DATA = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "-" batch_size: 64 } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  data_param { source: "-" batch_size: 100 } }
"""
_ENDS = """
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy"
  include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""
_SOLVER = """
net: "train_test.prototxt" base_lr: 0.01 lr_policy: "poly" power: 1 momentum: 0.9
weight_decay: 0.0005 max_iter: 200 test_iter: 20 test_interval: 200 random_seed: 1
"""


def write_lenet(folder: Path, assets: Path) -> Path:
    """Write a training of LeNet at 3 and 2 bits, tested on 2,000 of MNIST's test digits."""
    model = assets / "models" / "lenet_mnist"
    deploy = (model / "deploy.prototxt").read_text()
    begin = deploy.index("layer", deploy.index("input_param"))
    body = deploy[begin : deploy.rindex("layer")]
    (folder / "train_test.prototxt").write_text(f'name: "LeNet"\n{_DATA}{body}{_ENDS}')
    (folder / "solver.prototxt").write_text(_SOLVER)
    digits = assets / "data" / "mnist"

    def data(name: str) -> str:
        images, labels = (f"{digits}/{name}-{x}-ubyte.gz" for x in ("images-idx3", "labels-idx1"))
        return f'{{ source = "{images}", labels_file = "{labels}" }}'

    config = folder / "config.toml"
    config.write_text(f"""
[model]
prototxt = "{model}/deploy.prototxt"
caffemodel = "{model}/lenet.caffemodel"
[transform]
scale = 0.00390625
[calibrate]
batch_num = 4
batch_size = 64
data = {data("train")}
[retrain]
solver = "solver.prototxt"
data_bits = 3
weight_bits = 2
data = {data("train")}
test_data = {data("t10k")}
device = "cpu"
[output]
directory = "out"
""")
    return config


@pytest.mark.long
def test_lenet_at_few_bits_recovers_by_training(assets: Path, tmp_path: Path):
    trained = train_model(write_lenet(tmp_path, assets))
    assert trained is not None
    assert trained.first is not None
    assert trained.best is not None
    assert trained.first < 0.8  # calibrated; in float it finds 98.6 % of these
    assert trained.best > 0.9
