"""Reading in worker processes: the same batches, and no failure that hangs or goes unseen."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from assay.data.arrays import Arrays
from assay.data.pipeline import TrainIterator, train_batches
from assay.errors import DataError
from assay.kinds import Source

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test

EXAMPLES = Arrays({"x": np.arange(1000)})


def stream(source: Source, workers: int) -> TrainIterator:
    return train_batches(source, batch_size=7, seed=0, rows=slice(0, 7), prefetch=4, workers=workers)


def test_workers_give_the_same_batches_and_go_on_from_any_state() -> None:
    alone, shared = stream(EXAMPLES, 0), stream(EXAMPLES, 2)
    for _ in range(200):  # blocks from both workers
        np.testing.assert_array_equal(next(alone)["x"], next(shared)["x"])
    assert alone.state() == shared.state()
    state = shared.state()
    shared.close()
    expected = [next(alone)["x"] for _ in range(3)]
    alone.restore(state)
    np.testing.assert_array_equal([next(alone)["x"] for _ in range(3)], expected)
    alone.close()


@dataclasses.dataclass
class Broken:
    """Fails at every example, in its own way."""

    fail: Callable[[], None]

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        self.fail()
        return {"x": np.zeros(2)}


class Unpicklable(Exception):
    def __reduce__(self) -> str:
        raise TypeError("cannot be pickled")


def _raise_unpicklable() -> None:
    raise Unpicklable("disk on fire")


def _exit_quietly() -> None:
    sys.exit(0)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("fail", "message"),
    [(_raise_unpicklable, "Unpicklable: disk on fire"), (_exit_quietly, "SystemExit"), (_crash, "exit code -9")],
)
def test_a_failure_in_a_worker_is_a_data_error_here(fail: Callable[[], None], message: str) -> None:
    batches = stream(Broken(fail), 1)
    with pytest.raises(DataError, match=message):
        next(batches)
    batches.close()


class Unsendable(Broken):
    def __reduce__(self) -> str:
        raise TypeError("an open file")


def test_a_source_that_cannot_be_sent_is_a_data_error() -> None:
    with pytest.raises(DataError, match="an open file"):
        next(stream(Unsendable(_exit_quietly), 1))


SCRIPT = """
import time
import numpy as np
from assay.data.arrays import Arrays
from assay.data.pipeline import train_batches

if __name__ == "__main__":
    batches = train_batches(Arrays({"x": np.arange(100)}), batch_size=7, seed=0, rows=slice(0, 7), prefetch=4, workers=1)
    next(batches)
    import multiprocessing
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(100)
"""


def has_ended(process: int) -> bool:
    """Whether it is gone, or waits for whoever is first in its container, who may never ask how it ended."""
    try:
        return ") Z " in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return True


def test_workers_ignore_interrupts_and_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    os.kill(worker, signal.SIGINT)
    os.kill(worker, signal.SIGTERM)
    time.sleep(0.5)
    os.kill(worker, 0)  # raises when it has died
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(600):
        if has_ended(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")
