"""A digest of an array's bits that does not depend on how devices divide it, to tell whether what was restored is what was saved."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
NARROW = {jnp.dtype(kind) for kind in (jnp.int2, jnp.int4, jnp.uint2, jnp.uint4)}  # no bitcast takes them


def digests(tree: Any) -> dict[str, int]:
    """Dotted path -> digest, for every array of `tree`. Waits for the device.

    One after the other: a program for all would hold the words of all at once on a CPU, and programs that wait for all devices, started
    without waiting for each other, keep one another from a CPU's threads for ever.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): int(np.asarray(_digest(leaf).addressable_data(0)))
        for path, leaf in flat
    }


@jax.jit
def _digest(x: Array) -> UInt32[Array, ""]:
    """Sum over elements of their bits, mixed with their place, modulo 2^32: exact in any order.

    Each element's word goes through the finaliser of MurmurHash3 after its place was added, so that neither a swap of two elements
    nor a change of one bit leaves the sum as it was, but for one case in 2^32.
    """
    words = _words(x).astype(jnp.uint32).reshape(-1)
    place = jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(0x9E3779B1)
    z = words + place
    z = (z ^ (z >> 16)) * jnp.uint32(0x85EBCA6B)
    z = (z ^ (z >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(z ^ (z >> 16), dtype=jnp.uint32)


def _words(x: Array) -> Array:
    """The bits of `x` as unsigned integers of at most 32 bits."""
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == jnp.bool_ or x.dtype in NARROW:
        x = x.astype(jnp.int8)
    return jax.lax.bitcast_convert_type(x, WORDS[min(x.dtype.itemsize, 4)])
