"""What every implementation of linear_cross_entropy must get right, for assay_kernels.testing; LARGE is for a GPU."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from assay_kernels.linear_cross_entropy.shapes import Options
from assay_kernels.testing import Case

ALL = {"z_loss": 1e-2, "label_smoothing": 0.1, "softcap": 4.0}


def _drawn(
    seed: int,
    *,
    tokens: int = 115,
    width: int = 16,
    columns: int = 50,
    dtype: str = "float32",
    scale: float = 1.0,
    weights: str | None = None,
    ignored: float = 0.2,
    poisoned: bool = True,
    **options: Any,
) -> tuple[Any, ...]:
    """The arguments. ignored: the share of the labels; their rows are NaN where poisoned. weights: see `_weights`."""
    rng = np.random.default_rng(seed)
    chosen = Options(options.pop("classes", columns), **options)
    x = scale * rng.normal(size=(tokens, width))
    w = rng.normal(size=(width, columns)) / np.sqrt(width)
    labels = rng.integers(0, chosen.classes, tokens)
    labels = np.where(rng.random(tokens) < ignored, -1, labels)
    x = np.where((labels < 0)[:, None] & poisoned, np.nan, x)
    given = _weights(weights, seed, tokens)
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), jnp.asarray(labels, jnp.int32), given, chosen


def _weights(kind: str | None, seed: int, tokens: int) -> Any:
    """None, or "kept": twice the cotangents that assay_kernels.testing will draw for the loss; "broken": no multiple of them."""
    if kind is None:
        return None
    given = 2 * np.random.default_rng(seed + 1).normal(size=tokens)
    return jnp.asarray(given if kind == "kept" else given**2 + 1, jnp.float32)


def _case(ceiling: float | None = None, **options: Any) -> Case:
    if options.get("weights") == "kept":
        return Case(functools.partial(_drawn, **options), (0, 1), lambda found: found.loss, ceiling)
    return Case(functools.partial(_drawn, **options), (0, 1), ceiling=ceiling)


CASES: Mapping[str, Case] = {
    "plain": _case(),
    "one token": _case(tokens=1, ignored=0.0),
    "one class": _case(columns=1, ceiling=1e-5, label_smoothing=0.0, z_loss=0.1),
    "primes": _case(tokens=101, width=13, columns=53),
    "bf16": _case(tokens=64, width=64, columns=256, dtype="bfloat16"),
    "fp16, primes": _case(tokens=131, width=61, columns=257, dtype="float16"),
    "every option": _case(**ALL),
    "every option, bf16, padded vocabulary": _case(columns=64, classes=51, dtype="bfloat16", **ALL),
    "weights that hold": _case(weights="kept", **ALL),
    "weights that do not": _case(weights="broken", **ALL),
    "all ignored": _case(ignored=1.1),
    "an ignored class": _case(ignore_index=3),
    "logits of 1e4": _case(ceiling=1e-2, scale=1e4, poisoned=False),
}

LARGE: Mapping[str, Case] = {
    "several chunks": _case(tokens=2111, width=128, columns=70001),
    "bf16, weights": _case(tokens=4096, width=256, columns=50304, classes=50257, dtype="bfloat16", weights="kept"),
    "bf16, every option": _case(tokens=3001, width=96, columns=65539, dtype="bfloat16", **ALL),
}
