"""A run's checkpoints, through Orbax: written in the background, complete or absent, restored onto any mesh.

A checkpoint holds the item `state`, one array for each dotted path of the training state ("params.blocks.0.norm.scale"), and the
item `extra`, JSON with all the rest that is needed to go on (data iterator, configuration, plugin versions), and a digest of each array.
Its manifest (assay.checkpoint.manifest) says whether its files are what was written; the digests say whether what was read is.
"""

import ctypes
import errno
import logging
import math
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from assay.checkpoint import manifest
from assay.checkpoint.digests import digests
from assay.errors import CheckpointError

FORMAT = 2
_policy = ocp.checkpoint_managers
T = TypeVar("T")


class _Reported(logging.Filter):
    """Drops asyncio's report of a write that failed in Orbax and that nobody awaited: the failure itself is raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for such a report."""
        trace = record.exc_info[2] if record.exc_info else None
        return not any("orbax" in frame.filename for frame in traceback.extract_tb(trace))


# Orbax narrates every save, and logs in full each error that it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").addFilter(_Reported())


class Checkpoints:
    """The checkpoints in `directory`, which is created.

    keep: how many of the newest stay. best: a metric name ("validation/loss"; with a leading "+" higher is better) by
    which one more stays, or None. read_only: never delete or create anything.
    """

    def __init__(self, directory: Path, *, keep: int = 1, best: str | None = None, read_only: bool = False) -> None:
        policies: list[Any] = [_policy.LatestN(keep)]
        higher = best is not None and best.startswith("+")
        value = None if best is None else _Value(best.removeprefix("+"), -math.inf if higher else math.inf)
        if value is not None:
            policies.append(
                _policy.BestN(get_metric_fn=value, reverse=not higher, n=1, keep_checkpoints_without_metrics=False)
            )
        options = ocp.CheckpointManagerOptions(
            best_fn=value,  # without it Orbax does not write the metrics, and a resumed run would not know its best
            best_mode="max" if higher else "min",
            preservation_policy=_policy.AnyPreservationPolicy(policies),
            create=not read_only,
            read_only=read_only,
            temporary_path_class=manifest.Sealed,
            cleanup_tmp_directories=not read_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=_give_memory_back),
        )
        self.directory = directory.absolute()
        self._keeps_best = best is not None
        # Not compressed: trained parameters would shrink by 7 %, for a third of all the processor time that a save takes.
        state = ocp.PyTreeCheckpointHandler(use_compression=False)
        self._handlers = {"state": state, "extra": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=self._handlers)

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step of the best checkpoint, or None where no best is kept."""
        return self._manager.best_step() if self._keeps_best else None

    def step(self, wanted: int | None = None) -> int:
        """`wanted`, or the newest. Raises CheckpointError naming the steps there are."""
        steps = self.steps()
        if wanted is None and steps:
            return steps[-1]
        if wanted not in steps or wanted is None:
            there = f"there are steps {steps}" if steps else "there is none yet"
            raise CheckpointError(
                f"no checkpoint{'' if wanted is None else f' of step {wanted}'} in {self.directory}: {there}"
            )
        return wanted

    def save(self, step: int, state: Any, extra: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Begin to write a checkpoint. Returns once the arrays are copied to the host, so that they may be donated.

        Raises CheckpointError when this or an earlier write failed; checkpoints that were complete stay as they are.
        """
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(dotted(state)),
            extra=ocp.args.JsonSave({"format": FORMAT, **extra, "digests": digests(state)}),
        )
        try:
            self._manager.save(step, args=arguments, metrics=dict(metrics) or None, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def check(self) -> None:
        """Raise CheckpointError when a write in the background has failed. Cheap: it never waits."""
        # Orbax's check_for_errors would do, did not the thread that ends a save take the error first, to raise it at the next save.
        if self._manager._finalize_thread.map(lambda thread: thread is None or thread.is_alive()):
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Return once everything begun is complete on disk. Raises CheckpointError when it could not be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def extra(self, step: int) -> dict[str, Any]:
        """The JSON part of a checkpoint. Raises CheckpointError for another format version or a damaged file."""
        self._check_files(step, "extra/")
        try:
            value = self._manager.restore(step, args=ocp.args.Composite(extra=ocp.args.JsonRestore()))["extra"]
        except Exception as error:
            raise CheckpointError(f"checkpoint {step} in {self.directory} cannot be read: {error}") from error
        if value["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} has format {value['format']}, this Assay reads format {FORMAT}; "
                "use the Assay version that wrote it (run.json names it)"
            )
        return dict(value)

    def restore(self, step: int, abstract: T) -> T:
        """The arrays of `abstract` (a tree of ShapeDtypeStructs with shardings), which may be a part of what was saved.

        Raises CheckpointError where the checkpoint is damaged, lacks one of them or holds another shape.
        """
        wanted = dotted(abstract)
        self._check_files(step)
        self._compare(step, wanted)
        arguments = ocp.args.PyTreeRestore(
            item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        try:
            values = self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except Exception as error:
            raise CheckpointError(f"checkpoint {step} in {self.directory} cannot be restored: {error}") from error
        saved = self.extra(step)["digests"]
        changed = [path for path, digest in digests(values).items() if saved.get(path) != digest]
        if changed:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} is damaged: {', '.join(changed[:3])} "
                "came back with other values than were saved; take another step"
            )
        _give_memory_back()
        return jax.tree.unflatten(jax.tree.structure(abstract), [values[path] for path in wanted])

    def close(self) -> None:
        """Wait for what was begun, then stop the background threads."""
        try:
            self._manager.close()
        except Exception as error:
            raise self._failed(error) from error

    def _check_files(self, step: int, part: str = "") -> None:
        """Raise CheckpointError naming the files, of those that begin with `part`, that are not what was written."""
        wrong = manifest.damage(self.directory / str(self.step(step)), part)
        if wrong:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} is damaged: {'; '.join(wrong[:3])}; take another step"
            )

    def _compare(self, step: int, wanted: Mapping[str, Any]) -> None:
        """Raise CheckpointError listing where the checkpoint differs from `wanted` in names or shapes."""
        try:
            saved = {k: tuple(v.shape) for k, v in self._manager.item_metadata(step)["state"].tree.items()}
        except Exception as error:
            raise CheckpointError(f"checkpoint {step} in {self.directory} cannot be read: {error}") from error
        wrong = [f"  {k}: not in the checkpoint" for k in wanted if k not in saved]
        wrong += [
            f"  {k}: saved with shape {saved[k]}, needed {tuple(v.shape)}"
            for k, v in wanted.items()
            if k in saved and saved[k] != tuple(v.shape)
        ]
        if wrong:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} does not fit the experiment:\n" + "\n".join(wrong)
            )

    def _failed(self, error: BaseException) -> CheckpointError:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        text = str(error)
        full = (
            (isinstance(cause, OSError) and cause.errno == errno.ENOSPC)
            or "No space left" in text
            or "RESOURCE_EXHAUSTED" in text
        )
        advice = "the disk is full; make room, then resume the run" if full else text
        kept = self.steps()
        state = f"complete checkpoints: steps {kept}" if kept else "no complete checkpoint exists"
        return CheckpointError(f"could not write a checkpoint in {self.directory}: {advice} ({state})")


def _give_memory_back() -> None:
    """Return freed memory to the system, once the arrays are written (from the thread in the background) or read.

    glibc keeps what threads have freed, here the buffers of writers and readers: without this, each save adds to the process for ever.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Value:
    """Looks one metric up; a checkpoint without it, or where it is not a number, ranks last."""

    def __init__(self, name: str, worst: float) -> None:
        self.name, self.worst = name, worst

    def __call__(self, metrics: Mapping[str, float]) -> float:
        value = metrics.get(self.name, math.nan)
        return self.worst if math.isnan(value) else value


def dotted(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by their dotted paths, in flattening order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}
