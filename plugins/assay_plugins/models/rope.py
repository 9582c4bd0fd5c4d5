"""Rotary position embedding: queries and keys turned by an angle proportional to their position."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotation = tuple[Float[Array, "rows seq 1 half"], Float[Array, "rows seq 1 half"]]
"""Cosines and sines of each position's angles, for all heads."""

Band = tuple[float, float, int]
"""(low, high, context): numbers of turns within `context` positions (see `frequencies`)."""


def rotation(
    positions: Int[Array, "rows seq"], head_dim: int, theta: float, scaling: float = 1.0, band: Band | None = None
) -> Rotation:
    """Angles position * frequency, one for each pair of dimensions, in fp32 (see `frequencies`).

    positions: rows is the batch, or 1 where all rows have the same positions.
    """
    by = jnp.asarray(frequencies(head_dim, theta, scaling, band), jnp.float32)
    angles = positions.astype(jnp.float32)[:, :, None, None] * by[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def frequencies(head_dim: int, theta: float, scaling: float, band: Band | None) -> Float[np.ndarray, " half"]:
    """theta^(-2i / head_dim), i in [0, head_dim / 2) (Su et al. 2021, arXiv:2104.09864, eq. 15), slower by `scaling`, in float64.

    Without a band all are divided by `scaling` (position interpolation, Chen et al. 2023, arXiv:2306.15595). With one, those with
    `high` turns or more within `context` positions stay, those with `low` or fewer are divided, and between them the share that
    stays grows linearly with the turns (Llama 3.1, Grattafiori et al. 2024, arXiv:2407.21783, as its published code has it).
    """
    plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if band is None:
        return plain / scaling
    low, high, context = band
    kept = np.clip((context * plain / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1 - kept) / scaling)


def rotate(x: Float[Array, "batch seq heads head_dim"], by: Rotation) -> Float[Array, "batch seq heads head_dim"]:
    """`x` with the pair (i, i + head_dim / 2) of each head turned by angle i: the pairing of Llama's weights in Hugging Face's layout.

    Computed in fp32; same dtype as `x`. The inner product of two rotated vectors depends on their distance only.
    """
    cos, sin = by
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
