"""The conformance kit of datasets, and how a kit asks another process."""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import cloudpickle
import numpy as np

from assay.data import cache, order
from assay.data.blocks import MASK
from assay.data.pipeline import TrainIterator, train_batches
from assay.data.spec import DataSpec
from assay.errors import DataError
from assay.kinds import Dataset, Source
from assay.testing.kit import Kit, check, skip

READS = 64  # examples of a split that a check reads, at most
BATCHES = 8  # of the training stream that a check reads, at most
BATCH = 4  # divides over 1, 2 and 4 processes
FAILURE = "the kit's own failure"
CHILD = "import pickle, sys; function, plugin = pickle.load(sys.stdin.buffer); print('', function(plugin), sep='\\n')"

T = TypeVar("T")


class DatasetKit(Kit):
    """Checks of a dataset plugin.

    splits: the names of the splits that it has. bounds(): the range of its integers.
    changed(), damaged(): the same plugin over other data, and over data that cannot be read; each None, and its check is skipped.
    """

    kind = "dataset"
    splits: ClassVar[Sequence[str]] = ("train", "validation")

    def plugin(self) -> Dataset:
        """The dataset to check; small, for its checks to be quick."""
        return super().plugin()

    def bounds(self) -> Mapping[str, tuple[int, int]]:
        """Name of an array -> the least and the largest number that may be in it.

        By default those that the shipped objectives read: `label`, `inputs` and `targets`, in which -1 does not count.
        """
        spec = self._new().spec()
        tops = {"label": (-1, spec.num_classes), "inputs": (0, spec.vocab_size), "targets": (-1, spec.vocab_size)}
        integers = {name for name, array in spec.elements.items() if np.dtype(array.dtype).kind in "iu"}
        return {name: (low, top - 1) for name, (low, top) in tops.items() if top is not None and name in integers}

    def changed(self) -> Dataset | None:
        """The plugin over data, or with settings, that give other examples."""
        return None

    def damaged(self) -> Dataset | None:
        """The plugin over data of which a training example cannot be read: a broken image, a record cut short."""
        return None

    @check
    def test_the_specification_is_stable(self) -> None:
        """`spec` is the same each time, for two instances, and before and after reading."""
        plugin, other = self._new(), self._new()
        assert isinstance(plugin, Dataset), "it has not all of spec(), source(split) and fingerprint()"
        first = _facts(plugin.spec())
        assert plugin.spec().elements, "`elements` names no array"
        assert MASK not in plugin.spec().elements, f"an array is named '{MASK}', which the pipeline adds itself"
        plugin.source("train")[0]
        for found, when in ((plugin.spec(), "again, after reading"), (other.spec(), "of another instance")):
            assert _facts(found) == first, f"spec() is {first}, and {when} {_facts(found)}"

    @check
    def test_examples_are_as_specified(self) -> None:
        """The examples of every split have the arrays, shapes and dtypes that `spec` says."""
        declared = {n: (tuple(a.shape), np.dtype(a.dtype)) for n, a in self._new().spec().elements.items()}
        for where, example in self._examples():
            found = {name: (np.shape(v), getattr(v, "dtype", type(v).__name__)) for name, v in example.items()}
            assert found == declared, f"{where} has {found}, the specification {declared}"

    @check
    def test_integers_are_in_range(self) -> None:
        """Labels are below `num_classes`, token ids below `vocab_size`."""
        bounds = self.bounds()
        if not bounds:
            skip("there are no labels or tokens; give the range of other integers with bounds()")
        for where, example in self._examples():
            for name, (low, high) in bounds.items():
                least, largest = int(np.min(example[name])), int(np.max(example[name]))
                assert low <= least <= largest <= high, (
                    f"'{name}' of {where} is from {least} to {largest}; may be {low} to {high}"
                )

    @check
    def test_the_length_is_the_number_of_examples(self) -> None:
        """The first and the last example can be read; an index from the length on is an IndexError."""
        for split in self._splits():
            source = self._new().source(split)
            count = len(source)
            assert count > 0, f"split '{split}' is empty; raise a DataError that says why"
            assert count == len(self._new().source(split)), f"two sources of split '{split}' differ in length"
            source[0], source[count - 1]
            for index in (count, count + 1000):
                error = _error_of(source.__getitem__, index)
                assert isinstance(error, IndexError), (
                    f"split '{split}' has {count} examples, and reading index {index} raises {_said(error)}; raise IndexError"
                )

    @check
    def test_gather_equals_single_reads(self) -> None:
        """`gather` gives the stacked single reads, for indices in any order and with repetitions."""
        for split in self._splits():
            source = self._new().source(split)
            gather = getattr(source, "gather", None)
            if gather is None:
                skip(f"the source of '{split}' has no gather")
            indices = np.random.default_rng(0).choice(_some(len(source)), 2 * BATCH)
            for chosen in (indices, indices[:1]):
                singly = [source[int(i)] for i in chosen]
                expected = {name: np.stack([example[name] for example in singly]) for name in singly[0]}
                _same(dict(gather(chosen)), expected, f"gather({chosen.tolist()}) of '{split}'", "single reads")

    @check
    def test_the_order_depends_on_seed_and_epoch_alone(self) -> None:
        """Batches of two epochs are those of another instance, read singly and backwards, for each seed."""
        for seed in (0, 1):
            source, other = self._new().source("train"), self._new().source("train")
            size = _batch_size(source)
            with contextlib.closing(_stream(source, seed=seed)) as stream:
                for start in (0, max(0, len(source) // size - BATCHES // 2)):
                    stream.restore({**stream.state(), "next_batch": start})
                    found = [_copied(next(stream)) for _ in range(BATCHES)]
                    positions = np.arange(start * size, (start + BATCHES) * size)
                    singly = [other[int(i)] for i in order.shuffled(positions, len(source), seed)[::-1]][::-1]
                    for b, batch in enumerate(found):
                        rows = singly[b * size : (b + 1) * size]
                        expected = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
                        what = f"batch {start + b} with seed {seed}"
                        _same(
                            batch,
                            expected | {MASK: batch[MASK]},
                            what,
                            "the examples of another instance, read backwards",
                        )

    @check
    def test_every_position_restores(self) -> None:
        """From the state after any batch, a new instance gives the same rest."""
        with contextlib.closing(_stream(self._new().source("train"))) as stream:
            states, batches = [stream.state()], []
            for _ in range(BATCHES):
                batches.append(_copied(next(stream)))
                states.append(json.loads(json.dumps(stream.state())))
        with contextlib.closing(_stream(self._new().source("train"))) as stream:
            for position in reversed(range(BATCHES)):
                stream.restore(states[position])
                for number in range(position, BATCHES):
                    what = f"batch {number} after a restart at {position}"
                    _same(next(stream), batches[number], what, "without a restart")

    @check
    def test_processes_read_parts_of_one_order(self) -> None:
        """The parts that 2 and 4 processes read of each batch are, put together, the batch of one process."""
        source = self._new().source("train")
        size = _batch_size(source)
        if size == 1:
            skip("there is one training example, which cannot be divided")
        whole = _first(_stream(source))
        for processes in [n for n in (2, 4) if size % n == 0]:
            each = size // processes
            rows = [slice(p * each, (p + 1) * each) for p in range(processes)]
            parts = [_first(_stream(self._new().source("train"), rows=r)) for r in rows]
            for number, batch in enumerate(whole):
                joined = {name: np.concatenate([part[number][name] for part in parts]) for name in batch}
                _same(joined, batch, f"batch {number} of {processes} processes", "of one")

    @check
    def test_the_fingerprint_is_stable(self) -> None:
        """Two instances have the same fingerprint, before and after reading."""
        plugin = self._new()
        first = plugin.fingerprint()
        assert isinstance(first, str), f"fingerprint() is {first!r}; return a string"
        assert first, "the fingerprint is empty"
        plugin.source("train")[0]
        for found, when in (
            (plugin.fingerprint(), "after reading"),
            (self._new().fingerprint(), "of another instance"),
        ):
            assert found == first, f"the fingerprint is {first}, and {when} {found}"

    @check
    def test_the_fingerprint_follows_the_data(self) -> None:
        """Other data have another fingerprint."""
        changed = self.changed()
        if changed is None:
            skip("the kit has no other data: a method changed() that returns the plugin over some")
        assert changed.fingerprint() != self._new().fingerprint(), "other data have the same fingerprint"

    @check
    def test_another_process_finds_the_same(self) -> None:
        """Fingerprint, specification and examples are the same in a new process, where strings hash otherwise."""
        found = functools.partial(_found, splits=self._splits())
        here, there = json.loads(found(self._new())), json.loads(in_new_process(self, found, self._new()))
        differing = [name for name in here if here[name] != there[name]]
        assert not differing, (
            f"another process finds other values of: {', '.join(differing)}; the order of a set, hash() and global state "
            "differ between processes"
        )

    @check
    def test_a_source_can_be_sent(self) -> None:
        """A source can be pickled, before and after reading, and its copy gives the same examples."""
        for split in self._splits():
            source = self._new().source(split)
            for when in ("new", "used"):
                with by_value(self):
                    error = _error_of(cloudpickle.dumps, source)
                    assert error is None, f"a {when} source of '{split}' cannot be pickled: {error!r}"
                    copy = cloudpickle.loads(cloudpickle.dumps(source))
                for index in _some(len(source)).tolist():
                    _same(copy[index], source[index], f"example {index} of a {when} source's copy", "of the source")

    @check
    def test_a_worker_reads_the_same_and_fails_aloud(self) -> None:
        """A worker process reads the same batches, and a read that fails there is a DataError here."""
        source = self._new().source("train")
        size = _batch_size(source)
        count = min(3, len(source) // size)
        last = int(order.shuffled(np.asarray([count * size - 1]), len(source), 0)[0])
        whole = _first(_stream(source))[: count - 1]
        with by_value(self), _no_main(), contextlib.closing(_stream(_Failing(source, last), workers=1)) as stream:
            for number, expected in enumerate(whole):
                try:
                    batch = next(stream)
                except DataError as error:
                    raise AssertionError(f"a worker process cannot read: {error}") from error
                _same(batch, expected, f"batch {number} of a worker process", "of this one")
            failure = _error_of(next, stream)
        assert isinstance(failure, DataError), f"a read that failed in a worker process raised {_said(failure)} here"
        assert FAILURE in str(failure), f"the failure of a worker process does not say its cause: {failure}"

    @check
    def test_damaged_data_are_an_error(self) -> None:
        """Reading data that cannot be read is a DataError."""
        plugin = self.damaged()
        if plugin is None:
            skip("the kit has no damaged data: a method damaged() that returns the plugin over some")

        def read_all() -> None:
            source = plugin.source("train")
            for index in range(len(source)):
                source[index]

        error = _error_of(read_all)
        assert isinstance(error, DataError), (
            f"reading damaged data raised {_said(error)}; raise DataError naming the file"
        )

    @check
    def test_an_unknown_split_is_named(self) -> None:
        """A split that there is not is a DataError that names those there are."""
        unknown = "no_such_split"
        error = _error_of(self._new().source, unknown)
        assert isinstance(error, DataError), f"source('{unknown}') raised {_said(error)}; raise DataError"
        unnamed = [split for split in self._splits() if split not in str(error)]
        assert not unnamed, f"the error for an unknown split does not name {', '.join(unnamed)}: {error}"

    def _new(self) -> Dataset:
        return new(self.plugin())

    def _splits(self) -> Sequence[str]:
        """Those of the experiment, where there is one."""
        if self.experiment is None:
            return tuple(self.splits)
        return tuple(dict.fromkeys(("train", *self.experiment.evaluate_splits)))

    def _examples(self) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
        """Some examples of every split, with what to call them."""
        for split in self._splits():
            source = self._new().source(split)
            for index in _some(len(source)).tolist():
                yield f"example {index} of '{split}'", source[index]


@dataclasses.dataclass(frozen=True)
class _Failing:
    """A source that fails at one example."""

    source: Source
    failing: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == self.failing:
            raise RuntimeError(FAILURE)
        return self.source[index]


def new(plugin: T) -> T:
    """A plugin with the same settings that has not been used, without what the given one may have kept."""
    return dataclasses.replace(plugin) if dataclasses.is_dataclass(plugin) else plugin  # type: ignore[type-var]


def in_new_process(kit: Kit, function: Callable[[T], str], plugin: T) -> str:
    """`function(plugin)` of a new Python process with another hash seed, a string without line ends.

    Raises AssertionError with the process' last words when it fails.
    """
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    path = os.pathsep.join(place for place in sys.path if place)
    with by_value(kit):
        message = cloudpickle.dumps((function, plugin))
    found = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=message,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert found.returncode == 0, f"it fails in a new process: {found.stderr.decode(errors='replace').strip()[-2000:]}"
    return found.stdout.decode().splitlines()[-1]


@contextlib.contextmanager
def by_value(kit: Kit) -> Iterator[None]:
    """What the kit's own modules define is pickled whole: no other process can import a test file or a notebook."""
    names = {c.__module__ for c in type(kit).__mro__ if c.__module__.partition(".")[0] not in ("assay", "builtins")}
    modules = [sys.modules[n] for n in names - cloudpickle.list_registry_pickle_by_value() if n in sys.modules]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Keep worker processes from running the main script again, which need not be guarded, nor be a file."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _found(plugin: Dataset, splits: Sequence[str]) -> str:
    """What must be the same in all processes, as JSON: name -> value."""
    found: dict[str, Any] = {"fingerprint": plugin.fingerprint(), "specification": _facts(plugin.spec())}
    for split in splits:
        source = plugin.source(split)
        examples = [source[i] for i in _some(len(source)).tolist()]
        parts = [part for x in examples for name, v in sorted(x.items()) for part in (name, np.asarray(v).tobytes())]
        found |= {f"length of '{split}'": len(source), f"examples of '{split}'": cache.digest(*parts)}
    return json.dumps(found)


def _facts(spec: DataSpec) -> dict[str, Any]:
    """A specification as plain values; an encoder is its fingerprint."""
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    elements = {name: [list(array.shape), array.dtype] for name, array in sorted(spec.elements.items())}
    return values | {"elements": elements, "encoder": spec.encoder and spec.encoder.fingerprint}


def _some(count: int) -> np.ndarray:
    """All indices below `count`, or where they are many READS of them with the first and the last."""
    if count <= READS:
        return np.arange(count)
    return np.unique([0, count - 1, *np.random.default_rng(0).integers(0, count, READS - 2)])


def _batch_size(source: Source) -> int:
    """The largest of 4, 2 and 1 that the source can fill."""
    return next(size for size in (BATCH, 2, 1) if size <= max(1, len(source)))


def _stream(source: Source, *, rows: slice | None = None, seed: int = 0, workers: int = 0) -> TrainIterator:
    size = _batch_size(source)
    rows = slice(0, size) if rows is None else rows
    return train_batches(source, batch_size=size, seed=seed, rows=rows, prefetch=2, workers=workers)


def _first(stream: TrainIterator) -> list[dict[str, np.ndarray]]:
    """The first batches, and the stream is closed."""
    with contextlib.closing(stream):
        return [_copied(next(stream)) for _ in range(BATCHES)]


def _copied(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in batch.items()}


def _same(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray], what: str, other: str) -> None:
    """Assert that the arrays have the same names, shapes, dtypes and bits."""
    assert one.keys() == two.keys(), f"{what} has the arrays {sorted(one)}, {other} {sorted(two)}"
    differing = [name for name in one if _bits(one[name]) != _bits(two[name])]
    assert not differing, f"{what} differs from {other} in {', '.join(differing)}"


def _bits(values: np.ndarray) -> tuple[Any, ...]:
    values = np.asarray(values)
    return values.shape, values.dtype, values.tobytes()


def _error_of(call: Callable[..., Any], *arguments: Any) -> Exception | None:
    """What the call raises, if anything."""
    try:
        call(*arguments)
    except Exception as error:
        return error
    return None


def _said(error: Exception | None) -> str:
    return "nothing" if error is None else repr(error)
