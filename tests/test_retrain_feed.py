"""Training data: what each batch holds, whoever reads it and from wherever on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import caffeio  # noqa: E402
from caffeio.data import Transform  # noqa: E402
from caffeio.data.source import Sample  # noqa: E402
from pipeline.config.base import DataConfig, TransformConfig  # noqa: E402
from pipeline.errors import ConfigError, PipelineError  # noqa: E402
from pipeline.quantize.feed import Feed, open_feed  # noqa: E402
from pipeline.retrain.feed import Order, TrainingFeed  # noqa: E402
from pipeline.retrain.group import Group  # noqa: E402

TEXT = """
name: "fed"
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 4 dim: 3 dim: 5 dim: 4 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 4 } } }
layer { name: "silence" type: "Silence" bottom: "data" bottom: "label" }
"""
COUNT = 22


def group(rank: int = 0, size: int = 1) -> Group:
    return Group(rank, size, torch.device("cpu"))


def stored(folder: Path, labels: bool = True) -> np.ndarray:
    """Write samples of 3x8x7; each is labelled by its place."""
    data = np.random.default_rng(5).integers(0, 256, (COUNT, 3, 8, 7), np.uint8)
    label = {"label": np.arange(COUNT)} if labels else {}
    np.savez(folder / "data.npz", data=data, **label)
    return data


def opener(source: Path, **transform: Any) -> Callable[[], Feed]:
    table = DataConfig.model_validate({"source": str(source)})
    settings = TransformConfig.model_validate(transform)
    return partial(open_feed, caffeio.parse_net(TEXT), (table,), settings, "retrain.data")


def feed_of(
    folder: Path, batch_size: int = 4, who: Group | None = None, **more: Any
) -> TrainingFeed:
    keys = ("shuffle", "seed", "workers", "augment")
    given_ = {key: more.pop(key) for key in keys if key in more}
    opened = opener(folder / "data.npz", **{"crop": [5, 4], **more})
    return TrainingFeed(opened, batch_size, who or group(), **given_)


def read(feed: TrainingFeed, first: int = 0, number: int = 3) -> list[dict[str, np.ndarray]]:
    found = [{k: v.numpy() for k, v in b.items()} for b in feed.batches(first, number)]
    feed.close()
    return found


def same(got: Sequence[dict[str, np.ndarray]], want: Sequence[dict[str, np.ndarray]]) -> bool:
    return len(got) == len(want) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(got, want, strict=True)
    )


# ----------------------------------------------------------------------------------- the order

orders = st.builds(
    Order, st.integers(1, 40), st.integers(1, 50), st.booleans(), st.integers(0, 2**31)
)


@cases.examples(100)
@given(orders, st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_a_batch_depends_on_its_number_alone(order, numbers):
    alone = Order(order.total, order.batch_size, order.shuffle, order.seed)
    whole = [order.batch(i) for i in range(31)]
    assert [alone.batch(i) for i in numbers] == [whole[i] for i in numbers]


@cases.examples(100)
@given(orders)
def test_each_round_holds_every_sample_once(order):
    rounds = 3
    batches = -(-rounds * order.total // order.batch_size)
    places = list(itertools.chain.from_iterable(order.batch(i) for i in range(batches)))
    assert [place for _, place in places] == list(range(batches * order.batch_size))
    samples = [sample for sample, _ in places]
    for i in range(rounds):
        found = samples[i * order.total : (i + 1) * order.total]
        assert sorted(found) == list(range(order.total))
        if not order.shuffle:
            assert found == list(range(order.total))


def test_shuffled_rounds_and_seeds_differ():
    def rounds(seed: int) -> list[list[int]]:
        order = Order(50, 50, True, seed)
        return [[sample for sample, _ in order.batch(i)] for i in range(3)]

    found = [*rounds(1), *rounds(2), list(range(50))]
    assert all(a != b for a, b in itertools.combinations(found, 2))
    assert rounds(1) == rounds(1)


# --------------------------------------------------------------------------------- the batches


def test_batches_hold_the_samples_and_their_labels(tmp_path):
    data = stored(tmp_path)
    for number, batch in enumerate(read(feed_of(tmp_path), 0, 8)):
        want = [(4 * number + i) % COUNT for i in range(4)]
        assert batch["label"].tolist() == want
        np.testing.assert_array_equal(batch["data"], data[want][:, :, 1:6, 1:5])
        assert batch["data"].dtype == batch["label"].dtype == np.float32


@pytest.mark.parametrize("more", [{}, {"shuffle": True, "augment": True, "mirror": True}])
def test_batches_go_on_from_any_number(more, tmp_path):
    stored(tmp_path)
    whole = read(feed_of(tmp_path, **more), 0, 13)
    for first in (1, 5, 12):
        assert same(read(feed_of(tmp_path, **more), first, 13 - first), whole[first:])
    endless = feed_of(tmp_path, **more)
    found = [{k: v.numpy() for k, v in b.items()} for b in itertools.islice(endless.batches(5), 8)]
    endless.close()
    assert same(found, whole[5:])


def test_seeds_give_other_batches(tmp_path):
    stored(tmp_path)
    one, again, other = (
        read(feed_of(tmp_path, shuffle=True, augment=True, seed=s)) for s in (1, 1, 2)
    )
    assert same(one, again)
    assert not same(one, other)


@pytest.mark.parametrize("size", [2, 4])
def test_the_parts_of_a_group_make_up_the_batch(size, tmp_path):
    stored(tmp_path)
    more = {"shuffle": True, "augment": True, "mirror": True, "seed": 3}
    whole = read(feed_of(tmp_path, 8, **more))
    parts = [read(feed_of(tmp_path, 8, group(rank, size), **more)) for rank in range(size)]
    joined = [
        {k: np.concatenate([p[k] for p in part]) for k in part[0]}
        for part in zip(*parts, strict=True)
    ]
    assert same(joined, whole)


def test_a_batch_that_cannot_be_shared_alike_is_refused(tmp_path):
    stored(tmp_path)
    with pytest.raises(ConfigError, match=r"batch of 9 .* 2 processes.*batch_size"):
        feed_of(tmp_path, 9, group(0, 2))


def test_reading_leaves_torchs_random_numbers_alone(tmp_path):
    """Dropout draws from them: how often data is opened must not matter."""
    stored(tmp_path)
    before = torch.get_rng_state()
    read(feed_of(tmp_path, shuffle=True, augment=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_give_the_same_batches(tmp_path):
    stored(tmp_path)
    more = {"shuffle": True, "augment": True, "mirror": True, "seed": 7}
    assert same(
        read(feed_of(tmp_path, workers=2, **more), 2, 6), read(feed_of(tmp_path, **more), 2, 6)
    )


# ------------------------------------------------------------------------------- augmentation


def places(whole: np.ndarray, part: np.ndarray) -> list[tuple[int, int, bool]]:
    """Where a part was cut from an image, and whether it was mirrored."""
    height, width = part.shape[1:]
    return [
        (y, x, flipped)
        for y in range(whole.shape[1] - height + 1)
        for x in range(whole.shape[2] - width + 1)
        for flipped in (False, True)
        if np.array_equal(
            whole[:, y : y + height, x : x + width][:, :, :: -1 if flipped else 1], part
        )
    ]


def test_crops_lie_anywhere_and_half_are_mirrored(tmp_path):
    data = stored(tmp_path)
    found = []
    for batch in read(feed_of(tmp_path, augment=True, mirror=True), 0, 100):
        for image, label in zip(batch["data"], batch["label"], strict=True):
            (place,) = places(data[int(label)], image)
            found.append(place)
    ys, xs, flips = (np.array(v) for v in zip(*found, strict=True))
    assert set(ys.tolist()) == set(range(4))
    assert set(xs.tolist()) == set(range(4))
    assert np.bincount(ys).min() > 60  # of 100 each
    assert np.bincount(xs).min() > 60
    assert flips.mean() == pytest.approx(0.5, abs=0.1)


def test_a_sample_is_cut_otherwise_in_each_round(tmp_path):
    stored(tmp_path)
    one, two = (read(feed_of(tmp_path, COUNT, augment=True), i, 1)[0]["data"] for i in (0, 1))
    assert (one != two).any(axis=(1, 2, 3)).mean() > 0.7


def test_without_augmentation_the_centre_is_cut_and_nothing_is_mirrored(tmp_path):
    data = stored(tmp_path)
    for batch in read(feed_of(tmp_path, mirror=True), 0, 6):
        np.testing.assert_array_equal(
            batch["data"], data[batch["label"].astype(int)][:, :, 1:6, 1:5]
        )


@pytest.mark.parametrize("seed", range(8))
def test_a_mean_image_is_cut_where_the_image_is(seed):
    image = np.arange(3 * 8 * 7, dtype=np.float32).reshape(3, 8, 7)
    transform = Transform(crop=(5, 4), mean=image - 3, mirror=True, scale=2.0)
    out = transform.apply(Sample(image, 0, "s"), np.random.default_rng(seed))
    assert out.shape == (3, 5, 4)
    assert (out == 6).all()


def test_a_mean_image_of_the_crops_size_is_taken_as_it_is():
    image, mean = np.zeros((1, 6, 6), np.float32), np.arange(16, dtype=np.float32)
    transform = Transform(crop=4, mean=mean.reshape(1, 4, 4))
    for seed in range(4):
        out = transform.apply(Sample(image, 0, "s"), np.random.default_rng(seed))
        assert (-out.reshape(-1) == mean).all()


# --------------------------------------------------------------------------------------- errors


def images(folder: Path, damage: int | None = None, odd: int | None = None) -> Path:
    lines = []
    for i in range(6):
        image = np.full((9 if i == odd else 8, 8, 3), 20 * i, np.uint8)
        data = cv2.imencode(".jpg", image)[1].tobytes()
        (folder / f"{i}.jpg").write_bytes(data[:80] if i == damage else data)
        lines.append(f"{i}.jpg {i}\n")
    (folder / "list.txt").write_text("".join(lines))
    return folder / "list.txt"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(workers, tmp_path):
    feed = TrainingFeed(opener(images(tmp_path, damage=3)), 2, group(), workers=workers)
    with pytest.raises(PipelineError, match=r"3\.jpg"):
        list(feed.batches(0, 3))
    feed.close()


def test_images_of_different_sizes_are_refused(tmp_path):
    feed = TrainingFeed(opener(images(tmp_path, odd=1)), 2, group())
    with pytest.raises(PipelineError, match=r"'data'.*\(3, 8, 8\).*\(3, 9, 8\).*crop"):
        next(feed.batches())
    feed.close()


def test_a_crop_larger_than_the_image_names_it(tmp_path):
    feed = TrainingFeed(opener(images(tmp_path), crop=9), 2, group(), augment=True)
    with pytest.raises(PipelineError, match=r"0\.jpg.*crop"):
        next(feed.batches())
    feed.close()


def test_a_sample_without_a_label_is_refused(tmp_path):
    stored(tmp_path, labels=False)
    feed = feed_of(tmp_path)
    with pytest.raises(PipelineError, match=r"data\.npz.*label"):
        next(feed.batches())
    feed.close()


def test_data_without_samples_is_refused(tmp_path):
    np.savez(tmp_path / "data.npz", data=np.zeros((0, 3, 8, 7)), label=np.zeros(0))
    with pytest.raises((PipelineError, caffeio.CaffeFileError), match=r"samples|empty"):
        feed_of(tmp_path)


def test_start_passes_samples_over(tmp_path):
    stored(tmp_path)
    table = DataConfig.model_validate({"source": str(tmp_path / "data.npz"), "start": 20})
    opened = partial(
        open_feed, caffeio.parse_net(TEXT), (table,), TransformConfig(), "retrain.data"
    )
    (batch,) = read(TrainingFeed(opened, 4, group()), 0, 1)
    assert batch["label"].tolist() == [20, 21, 20, 21]
