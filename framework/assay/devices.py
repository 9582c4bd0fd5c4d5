"""What Assay sets before jax is used: XLA flags, and where compiled programs are kept. The user's own settings win."""

import hashlib
import os
import platform
from pathlib import Path

from assay.data import cache

CPU_FLAGS = {
    # Dots go to the YNN library, which multiplies small matrices faster than XLA's own loops (76 to 65 ms for a step of nanoGPT's
    # small CPU setting in plain flax and optax, 2 cores, jax 0.10.2); sums stay fp32.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
}
DETERMINISTIC_FLAGS = {
    # Scatters, reductions and products in an order that does not change from run to run; no algorithm is chosen by timing it.
    "xla_gpu_deterministic_ops": "true",
    "xla_gpu_autotune_level": "0",
}
CACHE = "JAX_COMPILATION_CACHE_DIR"


def configure(*, deterministic: bool = False) -> None:
    """Add the flags to XLA_FLAGS, except those that the user set, and keep compiled programs between processes.

    Call it before anything imports jax; once more with `deterministic`, before jax starts its backend, where that is known later.
    """
    given = os.environ.get("XLA_FLAGS", "")
    flags = CPU_FLAGS | (DETERMINISTIC_FLAGS if deterministic else {})
    added = [f"--{name}={value}" for name, value in flags.items() if f"--{name}" not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
    os.environ.setdefault(CACHE, str(cache.root() / "xla" / _processor()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def cache_line() -> str:
    """Where compiled programs are kept, and how many there are."""
    place = os.environ.get(CACHE)
    if not place:
        return "compiled    not kept between processes"
    count = sum(1 for _ in Path(place).glob("*-cache")) if Path(place).is_dir() else 0
    return f"compiled    {place}, {count} programs kept"


def _processor() -> str:
    """Names the kind of processor: XLA's code for one may use instructions that another lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    except OSError:
        facts = [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:8]}"
