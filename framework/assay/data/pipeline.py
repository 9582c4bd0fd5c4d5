"""Batches from a source: shuffled endlessly for training, whole and in order for evaluation.

Everything is addressed by batch number: every process finds its rows of any batch without a word to the others, and to resume is
to start at another number. Grain reads ahead (assay.data.blocks), in a thread or in worker processes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from assay.data import order
from assay.data.blocks import Batches, HostBatch, batches_of, reader, take
from assay.errors import DataError
from assay.kinds import Source

EVALUATION_PREFETCH = 2
ENDLESS = 1 << 62


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
    return TrainIterator(Batches(source, batch_size, rows, seed), prefetch, workers)


def evaluation_batches(source: Source, *, batch_size: int, rows: slice, workers: int = 0) -> Iterator[HostBatch]:
    """This process' rows of the whole split, once and in order.

    Every process gets ceil(len(source) / batch_size) batches of the same shape; rows after the last example are zeros with mask
    False. Raises DataError when the split is empty.
    """
    if not len(source):
        raise DataError("the split to evaluate has no examples")
    number = -(-len(source) // batch_size)
    blocks = reader(Batches(source, batch_size, rows, None), 0, number, EVALUATION_PREFETCH, workers)
    try:
        while (block := take(blocks)) is not None:
            yield from batches_of(block)
    finally:
        blocks.close()


class TrainIterator(Iterator[HostBatch]):
    """Endless batches: a dict of arrays (rows, *shape) by name, with `mask`, bool (rows,), all True. Made by `train_batches`."""

    def __init__(self, batches: Batches, prefetch: int, workers: int) -> None:
        self._batches, self._prefetch, self._workers = batches, prefetch, workers
        self._next = 0
        self._skipped: set[int] = set()
        self._blocks: Any = None
        self._ready: Iterator[HostBatch] = iter(())

    def __next__(self) -> HostBatch:
        """The next batch that is not to be skipped. Raises DataError, with the cause, when the source or a worker process fails."""
        batch = self._following()
        while self._next - 1 in self._skipped:
            batch = self._following()
        return batch

    def skip(self, batch: int) -> None:
        """Leave a batch out when its turn comes."""
        self._skipped.add(batch)

    def batches_back(self, count: int) -> list[int]:
        """The numbers of the last `count` batches handed out, oldest first."""
        found, number = list[int](), self._next
        while len(found) < count:
            number -= 1
            if number not in self._skipped:
                found.insert(0, number)
        return found

    def read(self, batch: int) -> HostBatch:
        """One batch by its number, whatever comes next."""
        return {name: values[0] for name, values in self._batches.run(batch, 1).items()}

    def examples(self, batch: int) -> list[int]:
        """The numbers of this process' examples in a batch, as the dataset counts them."""
        return self._batches.examples(batch).tolist()

    def state(self) -> dict[str, Any]:
        """Where the batches handed out so far end (not those read ahead), as a small JSON-able dict."""
        return {
            "next_batch": self._next,
            "skipped": [b for b in sorted(self._skipped) if b >= self._next],
            **self._identity(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
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
        self._skipped |= set(state["skipped"])

    def close(self) -> None:
        """Stop reading ahead, and the worker processes. The next batch starts them again."""
        blocks, self._blocks, self._ready = self._blocks, None, iter(())
        if blocks is not None:
            blocks.close()

    def _identity(self) -> dict[str, int]:
        b = self._batches
        assert b.seed is not None
        return {"order": order.VERSION, "seed": b.seed, "batch_size": b.batch_size, "examples": len(b.source)}

    def _following(self) -> HostBatch:
        batch = next(self._ready, None)
        if batch is None:
            self._ready = batches_of(self._read())
            batch = next(self._ready)
        self._next += 1
        return batch

    def _read(self) -> HostBatch:
        """The next block; after a failure the one that failed is tried again."""
        if self._blocks is None:
            self._blocks = reader(self._batches, self._next, ENDLESS, self._prefetch, self._workers)
        try:
            block = take(self._blocks)
        except BaseException:
            self.close()
            raise
        assert block is not None
        return block
