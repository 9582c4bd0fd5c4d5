"""What a result may depend on besides its configuration: code, packages, flags, devices, host. Imports jax only when asked."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("assay", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu")
JAX_SETTINGS = (  # those that can change bits; the others are in the environment variables, where the user set them
    "jax_debug_nans",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_random_seed_offset",
    "jax_threefry_partitionable",
)
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "ASSAY_PLUGINS", "NVIDIA_TF32_OVERRIDE")


def environment(directory: Path | None = None) -> dict[str, Any]:
    """The facts as JSON-able data, for a run that starts in this process; this starts jax's backend.

    directory: whose git commit is meant; None for the working directory.
    """
    from assay import registry

    return {
        "python": platform.python_version(),
        "packages": _versions(PACKAGES),
        "plugins": {e.distribution: e.version for e in registry.entries()},
        "flags": {k: v for k, v in sorted(os.environ.items()) if k in _VARIABLES or k.startswith("JAX_")},
        **_jax_facts(),
        "git": git_facts(directory or Path.cwd()),
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count(), "cpu": _cpu_model()},
        "command": sys.argv,
    }


def git_facts(directory: Path) -> dict[str, Any] | None:
    """The commit, and the SHA-256 of the differences from it: changed tracked files, and names of untracked ones.

    "diff" is None where nothing differs. None outside a git repository, before its first commit, and without git.
    """
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(directory, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color")
    untracked = _git(directory, "ls-files", "--others", "--exclude-standard", "--full-name", ":/")
    if changes is None or untracked is None:
        return {"commit": commit.decode().strip(), "diff": "unknown"}
    differences = changes + untracked
    return {
        "commit": commit.decode().strip(),
        "diff": hashlib.sha256(differences).hexdigest() if differences else None,
        "untracked": untracked.count(b"\n"),
    }


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _jax_facts() -> dict[str, Any]:
    import jax
    from jax.extend import backend

    devices = jax.devices()
    settings = {name: getattr(jax.config, name, None) for name in JAX_SETTINGS}
    return {
        "jax": {k: v if isinstance(v, bool | int | str | None) else str(v) for k, v in settings.items()},
        "xla": " ".join(backend.get_backend().platform_version.split()),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
    }


def _git(directory: Path, *arguments: str) -> bytes | None:
    """What git prints, or None when it fails, is missing or takes too long."""
    try:
        # No optional locks: other git commands may be at work in the same directory.
        command = ["git", "--no-optional-locks", "-C", str(directory), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
