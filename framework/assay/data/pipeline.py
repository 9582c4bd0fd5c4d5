"""Batches from a source, through Grain: shuffled endlessly for training, whole and in order for evaluation.

Grain reads ahead, in a thread or in worker processes. What it reads are blocks of several consecutive batches, so that the cost of
its machinery, and of Python, is paid once for many small batches. Everything is addressed by batch number: every process finds its
rows of any batch without a word to the others, and to resume is to start at another number.
"""

import dataclasses
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from assay.data import order
from assay.data.workers import outlive_signals
from assay.errors import DataError
from assay.kinds import Source

MASK = "mask"
BLOCK_BYTES = 1 << 20
BLOCK_BATCHES = 64
EVALUATION_PREFETCH = 2
ENDLESS = 1 << 62

HostBatch = dict[str, np.ndarray]


def train_batches(
    source: Source, *, batch_size: int, seed: int, rows: slice, prefetch: int, workers: int
) -> "TrainIterator":
    """This process' rows of an endless stream of batches.

    Batch b holds the global positions [b * batch_size, (b + 1) * batch_size) of the order that `seed` gives (assay.data.order): a
    batch may span two epochs, and no example is left out of any. `rows` is the part of each batch that this process reads; the
    processes' parts put together are the same stream however many processes there are.

    prefetch: batches read ahead, at least. workers: processes that read; 0 reads in a thread of this one.
    Raises DataError when there are fewer examples than batch_size.
    """
    if len(source) < batch_size:
        raise DataError(
            f"the training split has {len(source)} examples, fewer than one batch of {batch_size}; "
            f"set experiment.batch_size to {len(source)} or less, or give more data"
        )
    return TrainIterator(_Batches(source, batch_size, rows, seed), prefetch, workers)


def evaluation_batches(source: Source, *, batch_size: int, rows: slice, workers: int = 0) -> Iterator[HostBatch]:
    """This process' rows of the whole split, once and in order.

    Every process gets ceil(len(source) / batch_size) batches of the same shape; rows after the last example are zeros with mask
    False. Raises DataError when the split is empty.
    """
    if not len(source):
        raise DataError("the split to evaluate has no examples")
    number = -(-len(source) // batch_size)
    blocks = _reader(_Batches(source, batch_size, rows, None), 0, number, EVALUATION_PREFETCH, workers)
    try:
        while (block := _take(blocks)) is not None:
            yield from _rows_of(block)
    finally:
        blocks.close()


class TrainIterator(Iterator[HostBatch]):
    """Endless batches: a dict of arrays (rows, *shape) by name, with `mask`, bool (rows,), all True. Made by `train_batches`."""

    def __init__(self, batches: "_Batches", prefetch: int, workers: int) -> None:
        self._batches, self._prefetch, self._workers = batches, prefetch, workers
        self._next = 0
        self._blocks: Any = None
        self._ready: Iterator[HostBatch] = iter(())

    def __next__(self) -> HostBatch:
        """The next batch. Raises DataError, with the cause, when the source or a worker process fails."""
        batch = next(self._ready, None)
        if batch is None:
            self._ready = _rows_of(self._read())
            batch = next(self._ready)
        self._next += 1
        return batch

    def state(self) -> dict[str, int]:
        """Where the batches handed out so far end (not those read ahead), as a small JSON-able dict."""
        return {"next_batch": self._next, **self._identity()}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on where `state` was taken, at once; any process count, number of workers or prefetch will do.

        Raises DataError when it is the state of another order: other examples, batch size, seed or ordering.
        """
        differing = [f"{k} was {state.get(k)}, is {v}" for k, v in self._identity().items() if state.get(k) != v]
        if differing:
            raise DataError(
                f"the checkpoint's position belongs to another order of examples ({'; '.join(differing)}); "
                "resume with the same dataset, batch_size and seed"
            )
        self.close()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """Stop reading ahead, and the worker processes. The next batch starts them again."""
        blocks, self._blocks, self._ready = self._blocks, None, iter(())
        if blocks is not None:
            blocks.close()

    def _identity(self) -> dict[str, int]:
        b = self._batches
        assert b.seed is not None
        return {"order": order.VERSION, "seed": b.seed, "batch_size": b.batch_size, "examples": len(b.source)}

    def _read(self) -> HostBatch:
        """The next block; after a failure the one that failed is tried again."""
        if self._blocks is None:
            self._blocks = _reader(self._batches, self._next, ENDLESS, self._prefetch, self._workers)
        try:
            block = _take(self._blocks)
        except BaseException:
            self.close()
            raise
        assert block is not None
        return block


@dataclasses.dataclass(frozen=True)
class _Batches:
    """Random access to any run of consecutive batches. seed: of the training order; None reads in order, once."""

    source: Source
    batch_size: int
    rows: slice
    seed: int | None

    def read(self, first: int, count: int) -> HostBatch:
        """Batches [first, first + count): arrays (count, rows, *shape)."""
        start, stop, _ = self.rows.indices(self.batch_size)
        positions = (
            np.arange(first, first + count)[:, None] * self.batch_size + np.arange(start, stop)[None, :]
        ).ravel()
        examples = len(self.source)
        if self.seed is not None:
            indices, mask = order.shuffled(positions, examples, self.seed), np.ones(positions.shape, np.bool_)
        else:
            mask = positions < examples
            indices = positions[mask]
        found = read(self.source, indices) if indices.size else read(self.source, np.zeros(1, np.int64))
        if MASK in found:
            raise DataError(f"examples have an array named '{MASK}', which the pipeline adds itself; rename it")
        rows = {name: _spread(values, mask) for name, values in found.items()} | {MASK: mask}
        return {name: values.reshape(count, stop - start, *values.shape[1:]) for name, values in rows.items()}


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """`count` batches from `first` on as Grain sees them: a list of blocks of `per_block` batches."""

    batches: _Batches
    first: int
    count: int
    per_block: int

    def __len__(self) -> int:
        return -(-self.count // self.per_block)

    def __getitem__(self, index: int) -> HostBatch:
        begin = index * self.per_block
        try:
            return self.batches.read(self.first + begin, min(self.per_block, self.count - begin))
        except (
            Exception,
            SystemExit,
        ) as error:  # an exception that cannot be pickled would never leave a worker process
            raise _as_data_error(error) from error


def read(source: Source, indices: np.ndarray) -> HostBatch:
    """The examples at `indices`, int (rows,), stacked: in one call where the source has `gather`."""
    gather = getattr(source, "gather", None)
    if gather is not None:
        return dict(gather(indices))
    examples = [source[int(index)] for index in indices]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`values` in the rows where `mask`, zeros elsewhere."""
    if mask.all():
        return values
    padded = np.zeros((len(mask), *values.shape[1:]), values.dtype)
    padded[mask] = values[: int(mask.sum())]
    return padded


def _reader(batches: _Batches, first: int, count: int, prefetch: int, workers: int) -> Any:
    """A Grain iterator over blocks that keeps at least `prefetch` batches ready beyond the block in use."""
    blocks = _Blocks(batches, first, count, _batches_in_a_block(batches))
    ahead = -(-prefetch // blocks.per_block)
    threads = 0 if workers else 1
    read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads * ahead)
    dataset = grain.MapDataset.source(blocks).to_iter_dataset(read_options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl's flags, which only absl's own main function parses
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=-(-ahead // workers))
        dataset = dataset.mp_prefetch(options, worker_init_fn=outlive_signals)
    return iter(dataset)


def _batches_in_a_block(batches: _Batches) -> int:
    """One where examples are read singly, since those are the slow ones; else as many as fill BLOCK_BYTES."""
    if not hasattr(batches.source, "gather"):
        return 1
    start, stop, _ = batches.rows.indices(batches.batch_size)
    example = sum(values.nbytes for values in read(batches.source, np.zeros(1, np.int64)).values())
    return max(1, min(BLOCK_BATCHES, BLOCK_BYTES // max(1, example * (stop - start))))


def _take(blocks: Any) -> HostBatch | None:
    """The next block, or None at the end. Raises DataError for every failure: of the source, or of a worker process."""
    try:
        block = next(blocks, None)
        return None if block is None else {name: _owned(values) for name, values in block.items()}
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"a process that reads data failed: {type(error).__name__}: {error}; "
            "experiment.workers = 0 reads in the training process, where the cause shows"
        ) from error


def _owned(values: np.ndarray) -> np.ndarray:
    """A copy of what lies in a worker's shared memory, which must not outlive the interpreter; else the array itself."""
    return np.array(values) if isinstance(values, grain.multiprocessing.SharedMemoryArray) else values


def _rows_of(block: HostBatch) -> Iterator[HostBatch]:
    """The batches of a block."""
    for i in range(len(block[MASK])):
        yield {name: values[i] for name, values in block.items()}


def _as_data_error(error: BaseException) -> DataError:
    if isinstance(error, DataError):
        return DataError(str(error))
    last = traceback.extract_tb(error.__traceback__)[-1]
    return DataError(f"reading examples failed: {type(error).__name__}: {error} ({last.filename}:{last.lineno})")
