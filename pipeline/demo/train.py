"""Train the demo's net, and make its data: ``python -m pipeline.demo.train``.

It needs PyTorch and scikit-learn, which the package itself does not: ``pip install torch
scikit-learn``. It takes about a minute on one core and no network. It reads
``deploy.prototxt`` and writes ``digits.caffemodel``, ``calibration/`` and ``test.npz``.

The digits are those that scikit-learn carries: 1797 images of 8x8 pixels. 400 are kept for
the test, the net is trained on the others, and 32 of those others calibrate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

import caffeio
from pipeline.demo.trainable import TrainableNet, optional_module
from pipeline.errors import PipelineError
from pipeline.runtime.executor import FloatNet

__all__ = ["Digits", "load_digits", "main", "train", "write_data"]

SEED = 2
SIZE = 16
TEST_IMAGES = 400
CALIBRATION_IMAGES = 32
EPOCHS = 40
BATCH = 32
#: What config.toml says, too: a pixel becomes a number from 0 to 1.
SCALE = np.float32(1 / 256)


@dataclass(frozen=True)
class Digits:
    """Images and what they show.

    Attributes
    ----------
    images : uint8 ndarray, N×1×16×16
        0 is paper, 255 is ink.
    labels : uint8 ndarray, N
        0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray

    def __getitem__(self, chosen: slice) -> Digits:
        return Digits(self.images[chosen], self.labels[chosen])

    def __len__(self) -> int:
        return len(self.images)

    @property
    def data(self) -> np.ndarray:
        """What the net reads: float32, N×1×16×16."""
        return self.images * SCALE


def load_digits() -> tuple[Digits, Digits]:
    """Return the digits to train with and those to test with, in a fixed random order.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    """
    import cv2

    dataset = optional_module("sklearn.datasets").load_digits()
    small = np.rint(dataset.images * (255 / 16)).astype(np.uint8)  # ink is 0 to 16
    large = [cv2.resize(x, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for x in small]
    order = np.random.default_rng(SEED).permutation(len(large))
    digits = Digits(np.stack(large)[order, np.newaxis], dataset.target[order].astype(np.uint8))
    return digits[TEST_IMAGES:], digits[:TEST_IMAGES]


def train(model: TrainableNet, digits: Digits, epochs: int = EPOCHS) -> Iterator[float]:
    """Train a net in place, and give its mean loss after each epoch.

    Parameters
    ----------
    model : TrainableNet
    digits : Digits
        Each epoch sees them all once, moved by up to a pixel.
    epochs : int

    Yields
    ------
    float
    """
    torch = optional_module("torch")
    torch.use_deterministic_algorithms(True)
    random = np.random.default_rng(SEED)
    weights = [blob for layer in model.net.layers for blob in model.parameters(layer)]
    steps = len(digits) // BATCH  # of an epoch; what does not fill a batch waits for the next
    optimizer = torch.optim.AdamW(weights, lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        losses = []
        for chosen in random.permutation(len(digits))[: steps * BATCH].reshape(steps, BATCH):
            x = torch.from_numpy(_moved(digits.data[chosen], random))
            labels = torch.from_numpy(digits.labels[chosen].astype(np.int64))
            loss = torch.nn.functional.cross_entropy(model.scores(x, training=True), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        yield float(np.mean(losses))


def _moved(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Move each image by up to a pixel in each direction; what comes in is paper."""
    padded = np.pad(data, ((0, 0), (0, 0), (1, 1), (1, 1)))
    down, right = random.integers(0, 3, (2, len(data), 1, 1))
    rows, columns = np.arange(SIZE)[:, np.newaxis] + down, np.arange(SIZE) + right
    return padded[np.arange(len(data)).reshape(-1, 1, 1), 0, rows, columns][:, np.newaxis]


def write_data(folder: Path, calibration: Digits, test: Digits) -> None:
    """Write the calibration images as PNG files and the test images as one array file."""
    import cv2

    images = folder / "calibration"
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob("*.png"):
        old.unlink()
    for i, (image, label) in enumerate(zip(calibration.images, calibration.labels, strict=True)):
        ok, data = cv2.imencode(".png", image[0], [cv2.IMWRITE_PNG_COMPRESSION, 9])
        if not ok:
            raise PipelineError(f"{images}: OpenCV cannot write PNG images")
        (images / f"{i:02d}_digit_{label}.png").write_bytes(data.tobytes())
    np.savez_compressed(folder / "test.npz", images=test.images, labels=test.labels)


def _check(model: TrainableNet, weights: Path, prototxt: Path, test: Digits) -> float:
    """Return the accuracy (0 to 1) of the files written.

    Raises
    ------
    PipelineError
        If they do not give what the trained net gives.
    """
    torch = optional_module("torch")
    with torch.no_grad():
        want = model.scores(torch.from_numpy(test.data), training=False).numpy()
    net = caffeio.read_net(prototxt, weights)
    softmax = net.layers[-1]
    (scores,) = FloatNet(net).forward({net.inputs[0]: test.data}, softmax.bottoms).values()
    if np.abs(scores - want).max() > 1e-3:
        raise PipelineError(f"{weights}: the net read back differs from the one trained")
    return float((scores.argmax(1) == test.labels).mean())


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=here, help="folder (default: the demo's)")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    prototxt, weights = here / "deploy.prototxt", options.output / "digits.caffemodel"
    model = TrainableNet(caffeio.read_net(prototxt), SEED)
    train_digits, test_digits = load_digits()
    for epoch, loss in enumerate(train(model, train_digits, options.epochs), 1):
        console.print(f"epoch {epoch} of {options.epochs}: loss {loss:.4f}")
    write_data(options.output, train_digits[:CALIBRATION_IMAGES], test_digits)
    caffeio.write_caffemodel(model.trained(), weights, overwrite=True)
    accuracy = _check(model, weights, prototxt, test_digits)
    console.print(
        f"{accuracy:.2%} of {len(test_digits)} test images are right; written to {weights}"
    )


if __name__ == "__main__":
    try:
        main()
    except ImportError as missing:
        sys.exit(f"error: {missing}")
