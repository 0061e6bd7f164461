"""Random nets, run in every way there is, against the layers one by one on `reference`.

``python -m tests.differential --minutes 60`` runs for an hour and prints what it found; a seed
that it prints makes the same net again: ``python -m tests.differential --seeds 4711``.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from random_nets import RandomNet, random_net, random_values

import caffeio
from caffeio import NetError, Value
from caffeio.record import LayerRecord, Record
from kernels.cpu.engine import program
from pipeline import FloatNet, Int8Net
from pipeline.errors import PipelineError
from pipeline.layers.int8 import INT8_TYPES
from pipeline.quantize.eligibility import judge
from pipeline.quantize.fuse import fuse
from pipeline.retrain.group import Group
from pipeline.retrain.module import CaffeModule
from pipeline.runtime import batching

__all__ = ["CHECKS", "check"]

Arrays = Mapping[str, np.ndarray]


class Difference(AssertionError):
    """Two ways of computing one value disagree."""


def _far(one: np.ndarray, other: np.ndarray) -> float:
    """Return how far arrays are apart where neither is NaN; equal infinities are not."""
    with np.errstate(invalid="ignore"):
        far = np.where(one == other, 0, np.abs(one - other))
    return float(np.nan_to_num(far, nan=0, posinf=np.inf).max(initial=0))


class Case:
    """A net with what its values may differ by.

    Parameters
    ----------
    made : RandomNet
    """

    def __init__(self, made: RandomNet) -> None:
        self.made, self.net = made, made.net
        self.rng = np.random.default_rng((made.seed, 1))
        self.limits = self._limits()

    def _limits(self) -> dict[Value, float]:
        """Return by how much each value may differ: what a nudge does to it, and rounding."""
        moved = [
            random_values(self.net, self.made.inputs, np.random.default_rng((self.made.seed, i)))
            for i in range(2, 6)
        ]
        limits = {}
        for value, want in self.made.values.items():
            if value in self.made.exact:
                limits[value] = 0.0
                continue
            shift = 0.0
            for other in moved:
                if other[value].shape == want.shape:
                    shift = max(shift, _far(other[value], want))
            limits[value] = 10 * shift + 3e-5 * _far(want, np.zeros_like(want)) + 1e-6
        return limits

    def same(self, what: str, value: Value, got: np.ndarray) -> None:
        """Raise `Difference` unless an array is a value of the net."""
        want, limit = self.made.values[value], self.limits[value]
        if got.shape != want.shape or got.dtype != np.float32:
            raise Difference(f"{what}: {value} is {got.dtype} {got.shape}, not {want.shape}")
        far = _far(got, want)
        if not far <= limit or not np.array_equal(np.isnan(got), np.isnan(want)):
            raise Difference(f"{what}: {value} differs by {far:g}, allowed {limit:g}")

    def all_same(self, what: str, found: Arrays) -> None:
        for name, got in found.items():
            self.same(what, self.made.last[name], got)

    def names(self) -> list[str]:
        """Return the blobs that a layer makes, in random order."""
        names = [name for name in self.made.last if name not in self.net.inputs]
        self.rng.shuffle(names)
        return names


@contextmanager
def small_caches(size: int) -> Iterator[None]:
    """Let batches be run in parts, however small they are."""
    before = batching._CACHE_BYTES
    batching._CACHE_BYTES = size
    try:
        yield
    finally:
        batching._CACHE_BYTES = before


def view_of(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Return an equal array that lies otherwise in memory, or is of another type."""
    kind = rng.integers(6)
    if kind == 0 or not x.ndim:
        return x.astype(np.float64)
    if kind == 1:
        return np.asfortranarray(x)
    if kind == 2:
        wide = np.repeat(x, 2, axis=-1)
        return wide[..., ::2]
    if kind == 3:
        return np.ascontiguousarray(x[::-1])[::-1]
    if kind == 4:
        raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
        raw[:] = np.frombuffer(x.tobytes(), np.uint8)
        return raw.view(np.float32).reshape(x.shape)
    order = rng.permutation(x.ndim)
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


# ---------------------------------------------------------------------------------------- float


def orders(case: Case) -> None:
    """All outputs, each blob alone, some together, then all outputs again: on one object."""
    runner = FloatNet(case.net)
    inputs = case.made.inputs
    case.all_same("outputs", runner.forward(inputs))
    names = case.names()
    for name in names:
        case.all_same("one blob", runner.forward(inputs, [name]))
    for _ in range(2):
        some = [n for n in names if case.rng.random() < 0.4]
        case.all_same("some blobs", runner.forward(inputs, some))
    case.all_same("outputs again", runner.forward(inputs))
    fresh = FloatNet(case.net)
    for name in names[:3]:
        case.all_same("first one blob", fresh.forward(inputs, [name]))
    case.all_same("then outputs", fresh.forward(inputs))


def views(case: Case) -> None:
    """Inputs in other orders, types and places of memory."""
    runner = FloatNet(case.net)
    for _ in range(2):
        inputs = {name: view_of(case.rng, x) for name, x in case.made.inputs.items()}
        case.all_same("views", runner.forward(inputs))


def observed(case: Case) -> None:
    """What an observer is shown, and what a watcher is, is what one gets on asking."""
    runner = FloatNet(case.net)

    def see(i: int, layer: object, bottoms: object, tops: tuple) -> None:
        for value, top in zip(case.net.links[i].writes, tops, strict=True):
            case.same("observed", value, top)

    case.all_same("outputs, observed", runner.forward(case.made.inputs, observer=see))
    values = [v for v in case.made.values if case.rng.random() < 0.5]
    shown: dict[Value, list[np.ndarray]] = {v: [] for v in values}
    runner.watch(case.made.inputs, values, lambda v, x: shown[v].append(x.reshape(-1).copy()))
    for value, parts in shown.items():
        got = np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.float32)
        want, limit = np.sort(case.made.values[value].reshape(-1)), case.limits[value]
        if got.shape != want.shape or not _far(got, want) <= limit:
            raise Difference(f"watched: {value}")


def parts(case: Case) -> None:
    """A batch in parts, in every size of part."""
    for size in (1, 2000, 20000):
        with small_caches(size):
            runner = FloatNet(case.net)
            case.all_same("parts", runner.forward(case.made.inputs))
            for name in case.names()[:3]:
                case.all_same("parts, one blob", runner.forward(case.made.inputs, [name]))


def shapes_in_turn(case: Case) -> None:
    """One object at several sizes in turn: as at the first, as other objects give."""
    runner, reference = FloatNet(case.net), FloatNet(case.net, device="reference")
    for _ in range(3):
        inputs = {}
        batch = int(case.rng.integers(1, 7))
        larger = int(case.rng.integers(0, 3)) if case.rng.random() < 0.4 else 0
        for name, x in case.made.inputs.items():
            shape = (batch, *x.shape[1:])
            if x.ndim == 4:
                shape = (batch, x.shape[1], x.shape[2] + larger, x.shape[3] + larger)
            inputs[name] = np.resize(x, shape)
        try:
            runner.shapes({name: x.shape for name, x in inputs.items()})
            want = random_values(case.net, inputs)
            found = runner.forward(inputs)
        except (NetError, ValueError):
            continue
        other = Case(replace(case.made, inputs=inputs, values=want, exact=frozenset()))
        other.all_same("another size", found)
        other.all_same("another size, reference", reference.forward(inputs))
        case.all_same("the first size again", runner.forward(case.made.inputs))


def threads(case: Case) -> None:
    """Several threads on one object, each asking for something else."""
    runner = FloatNet(case.net)
    asked = [None, *([name] for name in case.names()[:3]), None]
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda blobs: runner.forward(case.made.inputs, blobs), asked):
            case.all_same("threads", found)


def folded(case: Case) -> None:
    """BatchNorm and Scale folded into the layer beside them."""
    net = fuse(case.net).net
    if len(net.layers) == len(case.net.layers):
        return
    for device in ("cpu", "reference"):
        found = FloatNet(net, device=device).forward(case.made.inputs)
        for name, got in found.items():
            value = case.made.last[name]
            want, limit = case.made.values[value], case.limits[value]
            if got.shape != want.shape or not _far(got, want) <= max(4 * limit, 1e-4):
                raise Difference(f"fused, {device}: {value}")


#: Layers that compute something else in phase TRAIN.
IN_TRAINING = ("BatchNorm", "Dropout")


def trained(case: Case) -> None:
    """The torch module of the net, in phase TEST, and in TRAIN where that is no other."""
    module = CaffeModule(
        case.net,
        {name: x.shape for name, x in case.made.inputs.items()},
        Group(0, 1, torch.device("cpu")),
    )
    arrays = {n: torch.from_numpy(x.copy()) for n, x in case.made.inputs.items()}
    phases = [False]
    if not any(x.type in IN_TRAINING or _samples(x) for x in case.net.layers):
        phases.append(True)
    for phase in phases:
        module.kept.clear()
        with torch.no_grad():
            found = module(arrays, phase).outputs
        for name, got in found.items():
            value = case.made.last[name]
            want, limit = case.made.values[value], case.limits[value]
            far = _far(got.numpy(), want) if tuple(got.shape) == want.shape else np.inf
            if not far <= max(4 * limit, 1e-4):
                raise Difference(f"torch, {phase}: {value} differs by {far:g}, allowed {limit:g}")


def _samples(layer: caffeio.Layer) -> bool:
    """Whether a layer draws at random in phase TRAIN."""
    p = layer.param.pooling_param
    return layer.type == "Pooling" and p.pool == p.STOCHASTIC


# ------------------------------------------------------------------------------------- integers


def random_record(net: caffeio.Net, rng: np.random.Generator, whole: bool) -> Record:
    """Return factors for the layers that can be quantized, some of them left out."""
    layers = {}
    for layer, verdict in zip(net.layers, judge(net), strict=True):
        if not verdict.quantize or rng.random() < 0.2:
            continue
        count = 1
        if layer.type in ("Convolution", "Deconvolution") and rng.random() < 0.8:
            count = layer.blobs[0].shape[1 if layer.type == "Deconvolution" else 0]
        top = max((float(np.abs(b).max()) for b in layer.blobs[:1]), default=1.0)
        if whole:
            # powers of two: what is dequantized is exact, too
            scale_d = float(rng.choice((0.25, 0.5, 1.0)))
            scale_w = [float(rng.choice((0.25, 0.5))) for _ in range(count)]
        else:
            scale_d = float(np.float32(rng.uniform(0.01, 0.1)))
            scale_w = [float(np.float32(max(top, 0.1) * rng.uniform(0.5, 1) / 100))] * count
        bare = layer.type == "Pooling"
        shifted = not bare and rng.random() < 0.3
        shifts = rng.integers(1, 17, count).tolist() if shifted else [0] * (1 if bare else count)
        layers[layer.name] = LayerRecord(
            scale_d=scale_d,
            offset_d=int(rng.integers(-128, 128)),
            scale_w=(1.0,) if bare else tuple(scale_w),
            offset_w=(0,) * (1 if bare else count),
            shift_bit=tuple(shifts),
        )
    return Record(layers)


def integers(case: Case) -> None:
    """The integer net: each quantized layer's bits, and the net's in every way of running it."""
    net = fuse(case.net).net
    record = random_record(net, case.rng, case.made.seed % 2 == 0)
    if not record.layers:
        return
    try:
        int8 = Int8Net(net, record)
    except PipelineError:
        return  # a bias beyond int32
    inputs = case.made.inputs
    try:
        first = int8.forward(inputs)
    except NetError as error:
        if not ("NaN" in str(error) or "int32" in str(error)):
            raise
        try:
            Int8Net(net, record, device="reference").forward(inputs)
        except NetError:
            return
        raise Difference(f"an error that `reference` has not: {error}") from error
    _layers_alone(case, int8)
    with small_caches(1):
        _layers_alone(case, Int8Net(net, record))
    names = case.names()
    kept = {n for n in names if n in {t for x in int8.net.layers for t in x.tops}}
    if not _folds(int8):
        for found in (
            *(int8.forward(inputs, [name]) for name in sorted(kept & set(first))),
            int8.forward(inputs),
            int8.forward({n: view_of(case.rng, x) for n, x in inputs.items()}),
        ):
            _bits("integers in another order", first, found)
        floats = {x.type for x in int8.net.layers if x.name not in int8.layers}
        if "InnerProduct" not in floats:  # BLAS adds in an order that depends on the batch
            with small_caches(1):
                _bits("integers in parts", first, Int8Net(net, record).forward(inputs))
        with ThreadPoolExecutor(3) as pool:
            for found in pool.map(lambda _: int8.forward(inputs), range(3)):
                _bits("integers in threads", first, found)


def _folds(int8: Int8Net) -> bool:
    """Whether float layers are left whose sums depend on what is asked: BatchNorm and Scale."""
    return any(x.type in ("BatchNorm", "Scale") for x in int8.net.layers)


def _bits(what: str, want: Arrays, found: Arrays) -> None:
    for name, got in found.items():
        if not np.array_equal(got, want[name], equal_nan=True):
            raise Difference(f"{what}: {name}")


def _layers_alone(case: Case, int8: Int8Net) -> None:
    """Each quantized layer, on what it reads, gives the bits of `reference`."""
    last = {v.blob: v for v in sorted(int8.net.readers)}
    for layer, link in zip(int8.net.layers, int8.net.links, strict=True):
        q = int8.layers.get(layer.name)
        (bottom, top) = (link.reads[0], link.writes[0]) if q else (None, None)
        if q is None or last[bottom.blob] != bottom or last[top.blob] != top:
            continue
        found = int8.forward(case.made.inputs, [bottom.blob, top.blob])
        want = INT8_TYPES[layer.type].forward(layer, q, found[bottom.blob], "reference")
        if not np.array_equal(found[top.blob], want, equal_nan=True):
            far = np.nanmax(np.abs(found[top.blob] - want))
            raise Difference(f"integers of layer {layer.name} ({layer.type}) differ by {far:g}")


# ------------------------------------------------------------------------------------- memory

#: Bytes of a pattern behind every buffer of the engine, to be found unchanged.
GUARD = 4096
#: Of mprotect: memory that may be neither read nor written.
PROT_NONE = 0


@contextmanager
def buffers_made_by(aligned: Callable[[int], np.ndarray]) -> Iterator[None]:
    """Let the engine take the memory of its buffers from elsewhere."""
    before = program._aligned
    program._aligned = aligned
    try:
        yield
    finally:
        program._aligned = before


@contextmanager
def guarded_buffers() -> Iterator[list[np.ndarray]]:
    """Put bytes of a pattern behind the engine's buffers; yield them."""
    guards: list[np.ndarray] = []
    make = program._aligned

    def aligned(size: int) -> np.ndarray:
        memory = make(size + GUARD)
        # fresh memory is not zero in general: nothing may rely on it
        memory[:size] = 0xA5
        memory[size:] = 0x5A
        guards.append(memory[size:])
        return memory[:size]

    with buffers_made_by(aligned):
        yield guards


def before_a_closed_page(size: int) -> np.ndarray:
    """Return memory that ends where a page begins that may not be touched.

    Whoever reads or writes there ends the process.
    """
    page = mmap.PAGESIZE
    whole = -(-size // page) * page
    area = mmap.mmap(-1, whole + page)
    address = np.frombuffer(area, np.uint8).ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + whole), ctypes.c_size_t(page), PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")
    memory = np.frombuffer(area, np.uint8)
    begin = (whole - size) // 64 * 64  # buffers begin at a cache line
    memory[:whole] = 0xA5
    return memory[begin : begin + size]


def memory(case: Case) -> None:
    """Nothing is written behind a buffer, and nothing read before it is written."""
    with guarded_buffers() as guards:
        runner = FloatNet(case.net)
        case.all_same("in dirty memory", runner.forward(case.made.inputs))
        for name in case.names()[:2]:
            case.all_same("in dirty memory", runner.forward(case.made.inputs, [name]))
        net = fuse(case.net).net
        record = random_record(net, case.rng, True)
        with suppress(PipelineError, NetError):
            Int8Net(net, record).forward(case.made.inputs)
        if not all((g == 0x5A).all() for g in guards):
            raise Difference("memory behind a buffer was written to")


CHECKS: tuple[Callable[[Case], None], ...] = (
    orders, views, observed, parts, shapes_in_turn, threads, folded, trained, integers, memory,
)  # fmt: skip


def check(seed: int) -> tuple[Counter[str], list[str]]:
    """Run a random net in all ways.

    Returns
    -------
    types : Counter
        Its layers.
    found : list of str
        What differs.
    """
    made = random_net(seed)
    try:
        case = Case(made)
    except ValueError:  # an index at the edge of a table: a millionth more is refused
        return Counter(), []
    found = []
    for run in CHECKS:
        try:
            run(case)
        except Difference as error:
            found.append(f"seed {seed}, {run.__name__}: {error}")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            text = f"{type(error).__name__}: {error}"[:300]
            found.append(f"seed {seed}, {run.__name__}: {text} ({where})")
    return Counter(layer.type for layer in made.net.layers), found


def _work(seeds: range) -> tuple[Counter[str], list[str], int]:
    torch.set_num_threads(1)
    types: Counter[str] = Counter()
    found: list[str] = []
    for seed in seeds:
        try:
            some, more = check(seed)
        except Exception as error:  # raised in the pool, it would leave the others waiting
            some, more = Counter(), [f"seed {seed}: {type(error).__name__}: {error}"[:300]]
        types += some
        found += more
    return types, found, len(seeds)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.differential")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, nargs="*", help="only these")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--guard", action="store_true",
        help="with --seeds: a page that may not be touched behind each of the engine's buffers",
    )  # fmt: skip
    options = parser.parse_args()
    if options.seeds:
        with buffers_made_by(before_a_closed_page) if options.guard else nullcontext():
            found = [line for seed in options.seeds for line in check(seed)[1]]
        print("\n".join(found) or "no difference")
        return bool(found)
    end, nets = time.monotonic() + 60 * options.minutes, 0
    types: Counter[str] = Counter()
    failed = 0

    free = threading.Semaphore(2 * options.processes)  # hand out work no faster than it is done

    def chunks() -> Iterator[range]:
        first = options.start
        while free.acquire() and time.monotonic() < end:
            yield range(first, first + 20)
            first += 20

    # a process is replaced now and then: machine code, once made, stays
    with get_context("spawn").Pool(options.processes, maxtasksperchild=30) as pool:
        for some, found, count in pool.imap_unordered(_work, chunks()):
            free.release()
            types, nets, failed = types + some, nets + count, failed + len(found)
            for line in found:
                print(line, flush=True)
            print(f"\r{nets} nets ", end="", file=sys.stderr, flush=True)
    print(f"{nets} nets from seed {options.start} on, {failed} differences")
    print(", ".join(f"{kind} {n}" for kind, n in types.most_common()))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
