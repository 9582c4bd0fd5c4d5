"""What the process uses of its machine, for the context "system": processor, memory, and memory of devices where they tell."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


class SystemStatistics:
    """Calls `emit` with statistics every `interval` seconds, in a thread, until `stop`."""

    def __init__(self, emit: Callable[[dict[str, float]], None], interval: float) -> None:
        self._emit, self._interval = emit, interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="assay-system", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for a call of `emit` that has begun."""
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        before = _clocks()
        while not self._stopped.wait(self._interval):
            now = _clocks()
            cpu = 100 * (now[0] - before[0]) / max(now[1] - before[1], 1e-9)
            before = now
            self._emit({"process_cpu_percent": cpu, **_host_memory(), **_device_memory()})


def _clocks() -> tuple[float, float]:
    """Processor seconds of this process over all its threads, and seconds of time."""
    return time.process_time(), time.monotonic()


def _host_memory() -> dict[str, float]:
    """Resident bytes of this process and bytes available on the host; nothing on systems without /proc."""
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return {}
    return {"process_resident_bytes": float(resident), "host_available_bytes": float(available)}


def _device_memory() -> dict[str, float]:
    """Bytes in use and their peak, by device. A process that has not imported jax uses no device."""
    jax = sys.modules.get("jax")
    if jax is None:
        return {}
    found = {}
    for device in jax.local_devices():
        statistics = device.memory_stats() or {}  # None on CPU
        for key in ("bytes_in_use", "peak_bytes_in_use"):
            if key in statistics:
                found[f"device_{device.id}_{key}"] = float(statistics[key])
    return found
