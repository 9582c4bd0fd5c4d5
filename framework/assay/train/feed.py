"""From a process' rows of a batch on the host to one array over the mesh."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from assay.data.pipeline import TrainIterator, train_batches
from assay.errors import LayoutError
from assay.parallel.layout import Layout
from assay.plan.plan import Plan


def training_batches(plan: Plan) -> TrainIterator:
    """This process' rows of the experiment's endless training batches. Raises DataError as `train_batches` does."""
    e = plan.experiment
    return train_batches(
        e.dataset.source("train"),
        batch_size=e.batch_size,
        seed=e.seed,
        rows=local_rows(plan.layout, e.batch_size),
        prefetch=e.prefetch,
        workers=e.workers,
    )


def local_rows(layout: Layout, batch_size: int) -> slice:
    """The rows of a global batch that this process' devices hold.

    Raises LayoutError when they are not one contiguous range (a mesh whose batch axis does not follow the processes).
    """
    indices = layout.batch(1).addressable_devices_indices_map((batch_size,)).values()
    held = sorted({tuple(index[0].indices(batch_size)) for index in indices if index is not None})
    for (_, stop, _), (start, _, _) in itertools.pairwise(held):
        if stop != start:
            raise LayoutError(
                f"this process holds rows {held} of the batch; order the mesh so that they are contiguous ({layout.source})"
            )
    return slice(held[0][0], held[-1][1])


def to_devices(layout: Layout, batch: Mapping[str, np.ndarray], *, stacked: bool = False) -> dict[str, jax.Array]:
    """The global arrays of which `batch` holds this process' rows; stacked: with a leading axis of steps."""
    return {
        k: jax.make_array_from_process_local_data(layout.batch(v.ndim - stacked, stacked=stacked), v)
        for k, v in batch.items()
    }


def stack(batches: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Batches on a new leading axis."""
    return {k: np.stack([batch[k] for batch in batches]) for k in batches[0]}
