"""Runs of consecutive batches, as Grain reads them ahead.

Grain's machinery, and Python itself, cost some hundred microseconds for each item. So an item is a block of several batches where
batches are small, and reading one block is a few calls of numpy.
"""

import contextlib
import dataclasses
import traceback
from collections.abc import Iterator
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

HostBatch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Batches:
    """Random access to any run of consecutive batches. seed: of the training order; None reads in order, once."""

    source: Source
    batch_size: int
    rows: slice
    seed: int | None

    def examples(self, batch: int) -> np.ndarray:
        """The examples of the rows of a batch of the training order, int64 (rows,)."""
        assert self.seed is not None
        start, stop, _ = self.rows.indices(self.batch_size)
        return order.shuffled(batch * self.batch_size + np.arange(start, stop), len(self.source), self.seed)

    def run(self, first: int, count: int) -> HostBatch:
        """Batches [first, first + count): arrays (count, rows, *shape), and `mask`, False after the last example."""
        start, stop, _ = self.rows.indices(self.batch_size)
        batches, rows = np.arange(first, first + count), np.arange(start, stop)
        positions = (batches[:, None] * self.batch_size + rows[None, :]).ravel()
        if self.seed is None:
            mask = positions < len(self.source)
            found = _padded(read(self.source, positions[mask] if mask.any() else np.zeros(1, np.int64)), mask)
        else:
            mask = np.ones(positions.shape, np.bool_)
            found = read(self.source, order.shuffled(positions, len(self.source), self.seed))
        if MASK in found:
            raise DataError(f"examples have an array named '{MASK}', which the pipeline adds itself; rename it")
        return {name: v.reshape(count, stop - start, *v.shape[1:]) for name, v in (found | {MASK: mask}).items()}


def reader(batches: Batches, first: int, count: int, prefetch: int, workers: int) -> Any:
    """A Grain iterator over blocks that keeps at least `prefetch` batches ready beyond the block in use."""
    blocks = Blocks(batches, first, count, _batches_in_a_block(batches))
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


def take(blocks: Any) -> HostBatch | None:
    """The next block, or None at the end. Raises DataError for every failure: of the source, or of a worker process."""
    try:
        block = next(blocks, None)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"a process that reads data failed: {type(error).__name__}: {error}; "
            "experiment.workers = 0 reads in the training process, where the cause shows"
        ) from error
    return None if block is None else {name: _owned(values) for name, values in block.items()}


def batches_of(block: HostBatch) -> Iterator[HostBatch]:
    """The batches of a block."""
    for i in range(len(block[MASK])):
        yield {name: values[i] for name, values in block.items()}


def read(source: Source, indices: np.ndarray) -> HostBatch:
    """The examples at `indices`, int (rows,), stacked: in one call where the source has `gather`."""
    gather = getattr(source, "gather", None)
    if gather is not None:
        return dict(gather(indices))
    examples = [source[int(index)] for index in indices]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@dataclasses.dataclass(frozen=True)
class Blocks:
    """`count` batches from `first` on as Grain sees them: a list of blocks of `per_block` batches."""

    batches: Batches
    first: int
    count: int
    per_block: int

    def __len__(self) -> int:
        return -(-self.count // self.per_block)

    def __getitem__(self, index: int) -> HostBatch:
        begin = index * self.per_block
        with _reporting():
            return self.batches.run(self.first + begin, min(self.per_block, self.count - begin))


def _batches_in_a_block(batches: Batches) -> int:
    """One where examples are read singly, since those are the slow ones; else as many as fill BLOCK_BYTES."""
    if not hasattr(batches.source, "gather"):
        return 1
    start, stop, _ = batches.rows.indices(batches.batch_size)
    with _reporting():
        example = sum(values.nbytes for values in read(batches.source, np.zeros(1, np.int64)).values())
    return max(1, min(BLOCK_BATCHES, BLOCK_BYTES // max(1, example * (stop - start))))


def _padded(found: HostBatch, mask: np.ndarray) -> HostBatch:
    """The examples in the rows where `mask`, zeros elsewhere. Without any such row `found` shows only shapes and dtypes."""
    padded = {name: np.zeros((len(mask), *values.shape[1:]), values.dtype) for name, values in found.items()}
    for name, values in found.items():
        padded[name][mask] = values[: int(mask.sum())]
    return padded


def _owned(values: np.ndarray) -> np.ndarray:
    """A copy of what lies in a worker's shared memory, which must not outlive the interpreter; else the array itself."""
    return np.array(values) if isinstance(values, grain.multiprocessing.SharedMemoryArray) else values


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """A source's failure as a DataError with text alone: an exception that cannot be pickled would never leave a worker process."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error)) from error
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}:{last.lineno}"
        raise DataError(f"reading examples failed: {type(error).__name__}: {error} ({place})") from error
