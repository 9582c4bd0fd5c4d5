"""Several processes that train together: how they meet, share a text, and agree on stopping. With one it all costs nothing."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from assay.errors import LayoutError

_LENGTH = 4096  # bytes of a shared text, at most


def initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meet the other processes; without arguments as Slurm or another launcher that jax knows says.

    coordinator: "HOST:PORT" of process 0. On CPU they speak by gloo. Raises LayoutError for arguments that do not fit, and when
    they do not meet.
    """
    given = (coordinator, processes, process)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise LayoutError("several processes need --coordinator, --processes and --process together, or --distributed")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise LayoutError(f"--coordinator {coordinator}: must be HOST:PORT")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise LayoutError(f"--process {process}: must be from 0 to {processes - 1}, as there are {processes}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise LayoutError(f"the processes did not meet: {error}; is the coordinator's address in reach?") from error


def is_first() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def shared_text(text: str | None) -> str:
    """The text of the first process, in all of them; the others give None."""
    if jax.process_count() == 1:
        assert text is not None, "the only process has the text"
        return text
    data = np.zeros(_LENGTH, np.uint8)
    if text is not None:
        encoded = np.frombuffer(text.encode(), np.uint8)
        data[: len(encoded)] = encoded
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(data))).rstrip(b"\0").decode()


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class Agreement:
    """Whether any process says yes, computed by the devices behind the step that was just handed to them: nobody waits for it.

    devices: those of the step, and no others: XLA's threads on CPU, as many as a process has devices, could all wait for the step.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self._alone = jax.process_count() == 1
        if not self._alone:
            mesh = Mesh(np.array(devices), ("all",))
            self._local = sum(device.process_index == jax.process_index() for device in devices)
            self._split = NamedSharding(mesh, PartitionSpec("all"))
            self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self, flag: bool) -> Any:
        """Hand in this process' flag. All processes ask the same number of times, and get the same answer from `any`."""
        if self._alone:
            return flag
        local = np.full(self._local, flag, np.int32)
        return self._max(jax.make_array_from_process_local_data(self._split, local))

    def any(self, answer: Any) -> bool:
        """Whether any process said yes. Waits for it."""
        return bool(answer) if self._alone else bool(np.asarray(answer.addressable_data(0)))
