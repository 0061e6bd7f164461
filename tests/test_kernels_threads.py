"""Threads that share objects and devices, and processes that were forked from their users."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT

import kernels
from kernels import Histogram, Ifmr, IfmrPass, NotFiniteError, Observer, ShiftSearch
from kernels.conv import InPlace, PreparedConv

THREADS = 8


@pytest.fixture(autouse=True)
def _switching():
    """Let threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[int], object], count: int = THREADS) -> list:
    """Run the work in threads that begin at once; none may wait for ever."""
    gate = threading.Barrier(count)

    def started(i: int) -> object:
        gate.wait(timeout=60)
        return work(i)

    pool = ThreadPoolExecutor(count)
    try:
        return [f.result(timeout=120) for f in [pool.submit(started, i) for i in range(count)]]
    finally:
        pool.shutdown(wait=False)


def batches() -> list[np.ndarray]:
    """Batches of growing range, so that bins join on the way."""
    rng = np.random.default_rng(5)
    scales = np.exp2(rng.integers(-20, 20, 160))
    return [(rng.normal(size=300) * s).astype(np.float32) for s in scales]


def state(hist: Histogram) -> tuple:
    return (
        hist.counts.tolist(), hist.exponent, hist.total, hist.zeros,
        str(hist.low), str(hist.high),  # NaN where nothing was seen
        hist.smallest.tolist(), hist.largest.tolist(),
    )  # fmt: skip


def one_by_one(data: list[np.ndarray]) -> Histogram:
    hist = Histogram(half=64, tail=20)
    for x in data:
        hist.update(x, device="reference")
    return hist


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_threads_on_one_histogram_count_as_one_does(device: str):
    data, hist = batches(), Histogram(half=64, tail=20)

    def work(i: int) -> None:
        for x in data[i::THREADS]:
            hist.update(x, device=device)

    together(work)
    assert state(hist) == state(one_by_one(data))


def test_threads_that_merge_into_each_other_end_and_lose_nothing():
    data = batches()
    parts = [one_by_one(data[i::THREADS]) for i in range(THREADS)]
    whole = Histogram(half=64, tail=20)
    together(lambda i: whole.merge(parts[i]))
    assert state(whole) == state(one_by_one(data))
    one, other = Histogram(half=64), Histogram(half=64)
    one.update(np.ones(3, np.float32), device="reference")
    other.update(np.full(5, -2, np.float32), device="reference")

    def cross(i: int) -> None:
        for _ in range(20):
            a, b = (one, other) if i else (other, one)
            a.merge(b)

    together(cross, 2)
    for hist in (one, other):  # what is merged is of one moment
        assert hist.counts.sum() == hist.total
        assert (hist.low, hist.high) == (-2, 1)
    before = one.total
    one.merge(one)
    assert one.total == 2 * before == one.counts.sum()


def test_copies_of_a_histogram_are_of_one_moment_and_stand_alone():
    data, hist = batches(), Histogram(half=64, tail=20)
    done = threading.Event()

    def work(i: int) -> list[Histogram]:
        if i:
            for x in data:
                hist.update(x, device="reference")
            done.set()
            return []
        copies = []
        while not done.is_set() or not copies:
            copies += [copy.copy(hist), copy.deepcopy(hist), pickle.loads(pickle.dumps(hist))]
        return copies

    for made in together(work, 2)[0]:
        seen = made.total // 300
        assert made.total % 300 == 0
        assert state(made) == state(one_by_one(data[:seen]))
    final, other = state(hist), copy.copy(hist)
    other.update(np.full(4, 1e30, np.float32), device="reference")
    other.merge(hist)
    assert state(hist) == final
    assert other.total == 2 * hist.total + 4


def test_pickles_from_before_there_were_locks_are_read():
    hist = one_by_one(batches()[:3])
    old = Histogram.__new__(Histogram)
    old.__setstate__({k: v for k, v in vars(hist).items() if k != "_lock"})
    old.merge(hist)
    assert old.total == 2 * hist.total


def test_an_error_about_data_comes_back_from_another_process():
    error = pickle.loads(pickle.dumps(NotFiniteError(2, 3)))
    assert (error.nans, error.infinities) == (2, 3)
    assert str(error) == "data holds 2 NaN and 3 infinite values"


def test_threads_on_one_observer_find_what_one_finds():
    data = batches()
    observer, alone = (Observer("minmax", device="reference") for _ in range(2))
    for x in data:
        alone.observe(x)

    def work(i: int) -> None:
        for x in data[i::THREADS]:
            observer.observe(x)
            observer.params()  # while others observe

    together(work)
    assert observer.params() == alone.params()
    assert state(observer.histogram) == state(alone.histogram)


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_threads_on_one_pass_of_ifmr_lose_no_value(device: str):
    candidates = kernels.ifmr_candidates(0.0, 255.0, Ifmr((0.5, 1.5), 0.5))
    data = np.arange(256, dtype=np.float32).reshape(64, 4)
    second, alone = IfmrPass(candidates), IfmrPass(candidates)
    for x in data:
        alone.update(x, device="reference")
    together(lambda i: [second.update(x, device=device) for x in data[i::THREADS]])
    assert second.total == 256
    np.testing.assert_allclose(second.losses, alone.losses, rtol=1e-12)
    assert pickle.loads(pickle.dumps(second)).total == 256


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_threads_on_one_search_of_shifts_lose_no_value(device: str):
    rng = np.random.default_rng(2)
    data = rng.integers(-(2**30), 2**30, (64, 2, 3, 5)).astype(np.int32)
    search, alone, merged = ShiftSearch(3), ShiftSearch(3), ShiftSearch(3)
    alone.update(data.reshape(-1, 3, 5), device="reference")
    together(lambda i: [search.update(x, device=device) for x in data[i::THREADS]])
    np.testing.assert_array_equal(search.errors, alone.errors)
    together(lambda i: merged.merge(alone))
    np.testing.assert_array_equal(merged.errors, 8 * alone.errors)


#: Kernels large enough for several threads: a sum of each result tells whether it is right.
USE = """
import os, sys, threading, time
import numpy as np, numba
import kernels
x = np.linspace(-3, 3, 1 << 18, dtype=np.float32)
p = kernels.QuantParams(0.05, 3)
want = int(kernels.quantize(x, p, device="reference").sum(dtype=np.int64))
def use():
    for _ in range(20):
        assert kernels.quantize(x, p).sum(dtype=np.int64) == want
"""


def run(code: str, **variables: str) -> str:
    environment = os.environ | {"NUMBA_NUM_THREADS": "2"} | variables
    done = subprocess.run(
        [sys.executable, "-c", USE + code],
        cwd=ROOT, env=environment, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_threads_may_call_kernels_at_once_on_any_layer(layer: str):
    code = (
        "threads = [threading.Thread(target=use) for _ in range(4)]\n"
        "[t.start() for t in threads]\n"
        "[t.join() for t in threads]\n"
        "use()\n"
        "print(numba.threading_layer())"
    )
    used = run(code, NUMBA_THREADING_LAYER=layer).strip()
    assert layer in ("default", used)


#: A child that is waited for as long as the test allows, and what it says.
CHILD = """
def child(work):
    pid = os.fork()
    if pid:
        for _ in range(600):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0, status
                return
            time.sleep(0.1)
        os.kill(pid, 9)
        raise SystemExit("the child hangs")
    try:
        work()
        print("works", flush=True)
    except kernels.DeviceError as error:
        print(error, flush=True)
    os._exit(0)
"""
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@fork
def test_a_fork_of_a_process_that_used_workqueue_works():
    code = CHILD + "use()\nchild(use)\nuse()"
    assert run(code, NUMBA_THREADING_LAYER="workqueue") == "works\n"


@fork
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU OpenMP is that of Linux")
def test_a_fork_of_a_process_that_used_omp_says_spawn():
    pytest.importorskip("numba.np.ufunc.omppool")
    code = CHILD + (
        "run = kernels.prepare_conv2d((1, 8, 32, 32), np.ones((8, 8, 3, 3), np.int8))\n"
        "data = np.ones((1, 8, 32, 32), np.int8)\n"
        "child(use)\n"  # before: it has threads of its own
        "use(); run(data)\n"
        "child(use)\n"
        "child(lambda: kernels.Histogram().update(x[:3]))\n"
        "child(lambda: run(data))\n"
        "child(lambda: child(use))\n"
        "child(lambda: kernels.quantize(x, p, device='reference'))\n"
        "use()"
    )
    first, *lost, reference = run(code, NUMBA_THREADING_LAYER="omp").splitlines()
    assert first == reference == "works"
    assert len(lost) == 5  # the child of a child, and then that child
    assert lost.pop() == "works"
    for line in lost:
        assert line.startswith("device 'cpu' was in use when this process was forked")
        assert "start processes by 'spawn'" in line


@fork
def test_a_fork_while_another_thread_compiles_says_spawn():
    code = CHILD + (
        "import kernels.cpu.jit as jit\n"
        "locked, end = threading.Event(), threading.Event()\n"
        "def compile():\n"
        "    with jit.compiler_lock:\n"
        "        locked.set(); end.wait()\n"
        "other = threading.Thread(target=compile)\n"
        "other.start(); locked.wait()\n"
        "child(use)\n"
        "end.set(); other.join(); use()"
    )
    assert "start processes by 'spawn'" in run(code)


@fork
def test_a_forked_child_finds_the_locks_of_objects_free():
    code = CHILD + (
        "hist = kernels.Histogram()\n"
        "locked, end = threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with hist._lock:\n"
        "        locked.set(); end.wait()\n"
        "other = threading.Thread(target=hold)\n"
        "other.start(); locked.wait()\n"
        "child(lambda: hist.update(x, device='reference'))\n"
        "end.set(); other.join()"
    )
    assert run(code) == "works\n"


@fork
def test_a_device_with_a_context_in_the_parent_says_spawn():
    code = CHILD + (
        "import types\n"
        "sys.modules['kernels.cuda.jit'] = types.SimpleNamespace(survives_fork=lambda: False)\n"
        "child(lambda: kernels.quantize(x, p, device='cuda'))"
    )
    assert run(code).startswith("device 'cuda' was in use when this process was forked")


PUBLIC = [c for n in kernels.__all__ if inspect.isclass(c := getattr(kernels, n))]


@pytest.mark.parametrize("cls", [*PUBLIC, PreparedConv, InPlace], ids=lambda c: c.__name__)
def test_every_class_says_whether_threads_may_share_it(cls: type):
    assert "thread" in (inspect.getdoc(cls) or "").lower()


def test_the_readme_has_a_row_for_every_class():
    text = (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    table = text.split("**Threads and processes.**")[1].split("**A micro-kernel**")[0]
    settings = {type(m) for m in (Ifmr(), kernels.Hfmg())} | {
        kernels.MinMax, kernels.Percentile, kernels.Mse, kernels.Kl,
    }  # fmt: skip
    for cls in PUBLIC:
        if cls not in settings and not issubclass(cls, Exception):
            assert f"`{cls.__name__}`" in table, cls
