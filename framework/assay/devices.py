"""XLA flags that Assay sets before jax is used. The user's own flags win."""

import os

CPU_FLAGS = {
    # Dots go to the YNN library, which multiplies small matrices faster than XLA's own loops (76 to 65 ms for a step of nanoGPT's
    # small CPU setting in plain flax and optax, 2 cores, jax 0.10.2); sums stay fp32.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
}


def configure() -> None:
    """Add the flags to XLA_FLAGS, except those that the user set. Call it before anything imports jax."""
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in CPU_FLAGS.items() if f"--{name}" not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
