"""Which samples are read: the first, some of every part of a source, or any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import examples

from caffeio import CaffeFileError
from caffeio.data import Transform, batches, choose_samples, open_source

COUNTS = st.integers(0, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@examples(300)
@given(COUNTS, st.integers(0, 2**63))
def test_every_way_gives_other_samples_that_exist(counts: tuple[int, int], seed: int) -> None:
    count, total = counts
    for how in ("first", "spread", "shuffle"):
        places = choose_samples(how, count, total, seed)  # type: ignore[arg-type]
        assert len(places) == len(set(places)) == count
        assert all(isinstance(i, int) and 0 <= i < total for i in places)
        assert places == choose_samples(how, count, total, seed)  # type: ignore[arg-type]


@examples(300)
@given(COUNTS)
def test_spread_takes_one_sample_of_each_of_equal_parts(counts: tuple[int, int]) -> None:
    count, total = counts
    found = sorted(choose_samples("spread", count, total))
    ends = [i * total // max(count, 1) for i in range(count + 1)]
    for i, place in enumerate(found):
        assert ends[i] <= place < ends[i + 1]


@pytest.mark.parametrize(("count", "total"), [(32, 500), (100, 1000), (40, 4000), (50, 60)])
def test_beginning_and_end_are_spread_too(count: int, total: int) -> None:
    """A fifth at the end judges, and corrections read a beginning: neither is one class."""
    places = choose_samples("spread", count, total)
    for part in (places[: count // 4], places[-(count // 5) :]):
        gaps = np.diff([0, *sorted(part), total])
        assert gaps.max() <= 3.5 * total / len(part)


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 25, 50])
def test_no_period_of_the_data_is_met(classes: int) -> None:
    """Of samples whose classes take turns, evenly stepped ones would all be of one class."""
    places = np.array(choose_samples("spread", 100, 1000))
    counts = np.bincount(places % classes, minlength=classes)
    assert counts.min() > 0
    assert counts.max() <= 2.5 * 100 / classes
    held = np.bincount(places[-20:] % classes, minlength=classes)
    assert held.max() <= max(4, 2.5 * 20 / classes)


def test_shuffles_are_the_same_on_every_machine() -> None:
    assert choose_samples("shuffle", 8, 100, 0) == (11, 92, 3, 20, 13, 2, 59, 53)
    assert choose_samples("shuffle", 8, 100, 1) != choose_samples("shuffle", 8, 100, 0)
    assert sorted(choose_samples("shuffle", 100, 100, 7)) == [*range(100)]


def test_all_samples_are_all_samples() -> None:
    for how in ("spread", "shuffle"):
        assert sorted(choose_samples(how, 32, 32)) == [*range(32)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("how", "count", "total"), [("first", 3, 2), ("evenly", 1, 2)])
def test_what_cannot_be_chosen(how: str, count: int, total: int) -> None:
    with pytest.raises(ValueError):
        choose_samples(how, count, total)  # type: ignore[arg-type]


def test_batches_of_chosen_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1))
    source = open_source(tmp_path / "a.npy")
    for prefetch in (0, 2):
        got = list(
            batches({"x": (source, Transform())}, 2, prefetch=prefetch, places=(7, 1, 9, 0, 4))
        )
        assert [b.places for b in got] == [(7, 1), (9, 0), (4,)]
        assert [b.inputs["x"].ravel().tolist() for b in got] == [[7, 1], [9, 0], [4]]
        assert got[0].names[0].endswith("[7]")


# --------------------------------------------------------------------------- labels


def test_labels_that_do_not_fit_say_why(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((4, 4, 3), np.uint8))
    listing = tmp_path / "list.txt"

    def only() -> tuple[np.ndarray | None, str]:
        (batch,) = batches({"x": (open_source(listing), Transform())}, 3)
        return batch.labels, batch.unlabelled

    listing.write_text("a.png 1\nb.png 2\nc.png 0\n")
    labels, why = only()
    assert labels is not None
    assert (labels.tolist(), why) == ([1, 2, 0], "")
    listing.write_text("a.png\nb.png\nc.png\n")
    assert only() == (None, "")
    listing.write_text("a.png 1\nb.png\nc.png 2\n")
    labels, why = only()
    assert labels is None
    assert "b.png' has no label" in why
    listing.write_text("a.png 1 2 3 4\nb.png 5 6 7 8\nc.png 1 1 2 2\n")
    labels, why = only()
    assert labels is not None
    assert (labels.shape, why) == ((3, 4), "")
    listing.write_text("a.png 1 2 3 4\nb.png 5 6\nc.png 1 1 2 2\n")
    labels, why = only()
    assert labels is None
    assert "another shape" in why
    listing.write_text("a.png boxes/a.xml\nb.png boxes/b.xml\nc.png boxes/c.xml\n")
    assert only() == (None, "")
    source = open_source(listing, labelled=False)
    assert [source[i].label for i in range(3)] == [None] * 3


@pytest.mark.parametrize(
    "labels", [np.zeros(2), np.array(["a", "b", "c"])], ids=["too few", "words"]
)
def test_wrong_labels_are_wrong_only_where_they_are_read(tmp_path, labels) -> None:
    np.savez(tmp_path / "a.npz", data=np.zeros((3, 1, 2, 2), np.uint8), label=labels)
    with pytest.raises(CaffeFileError, match="labels"):
        open_source(tmp_path / "a.npz")
    assert open_source(tmp_path / "a.npz", labelled=False)[0].label is None


def test_labels_of_hdf5_are_wrong_only_where_they_are_read(tmp_path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["label"] = np.zeros((3, 1, 2, 2), np.float32), np.zeros(2)
    (tmp_path / "list.txt").write_text("a.h5\n")
    for name in ("a.h5", "list.txt"):
        with pytest.raises(CaffeFileError, match="label"):
            open_source(tmp_path / name)
        source = open_source(tmp_path / name, labelled=False)
        assert source[0].label is None
        source.close()


def test_class_folders_need_no_classes_where_labels_are_not_read(tmp_path) -> None:
    cv2 = pytest.importorskip("cv2")
    (tmp_path / "cat").mkdir()
    for name in ("cat/a.png", "loose.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    assert len(open_source(tmp_path, class_folders=True, labelled=False)) == 2


def test_folders_count_what_is_not_read(tmp_path) -> None:
    cv2 = pytest.importorskip("cv2")
    (tmp_path / "sub").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    assert open_source(tmp_path).notes == ()
    for name in ("b.gif", "sub/c.GIF", "d.avif", "README", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (note,) = open_source(tmp_path).notes
    assert "4 files that are not read: 1 .avif, 2 .gif, 1 no ending" in note
    (tmp_path / "raw").mkdir()
    for name in ("a.bin", "notes.txt"):
        (tmp_path / "raw" / name).write_bytes(b"\0" * 4)
    (note,) = open_source(tmp_path / "raw", input_shape=(1, 1)).notes
    assert "1 file that is not read: 1 .txt" in note
