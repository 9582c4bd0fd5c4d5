"""Rotary position embedding: queries and keys turned by an angle proportional to their position."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rotation = tuple[Float[Array, "rows seq 1 half"], Float[Array, "rows seq 1 half"]]
"""Cosines and sines of each position's angles, for all heads."""


def rotation(positions: Int[Array, "rows seq"], head_dim: int, theta: float) -> Rotation:
    """Angles position * theta^(-2i / head_dim), i in [0, head_dim / 2) (Su et al. 2021, arXiv:2104.09864, eq. 15), in fp32.

    positions: rows is the batch, or 1 where all rows have the same positions.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "batch seq heads head_dim"], by: Rotation) -> Float[Array, "batch seq heads head_dim"]:
    """`x` with the pair (i, i + head_dim / 2) of each head turned by angle i: the pairing of Llama's weights in Hugging Face's layout.

    Computed in fp32; same dtype as `x`. The inner product of two rotated vectors depends on their distance only.
    """
    cos, sin = by
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
