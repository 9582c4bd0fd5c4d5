"""The one global order of training examples: a pure function of the seed and the epoch, with random access.

Epoch e visits all examples in a pseudo-random permutation keyed by (seed, e); the epochs follow each other without a gap. A
permutation is never stored: it is a Feistel network over the smallest power of two that holds the indices, walked along its
cycles until it lands inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It is vectorised: Grain's own
`index_shuffle` costs some microseconds for each index, which at small batches is more than reading the example.
"""

import functools
import hashlib

import numpy as np
from jaxtyping import Int64, UInt64

ROUNDS = 8
VERSION = 1  # part of an iterator's state: a change of the order must not pass for the old one


def shuffled(positions: Int64[np.ndarray, " n"], examples: int, seed: int) -> Int64[np.ndarray, " n"]:
    """The examples at global `positions` (>= 0) of the endless order over `examples` examples.

    >>> sorted(shuffled(np.arange(5), examples=5, seed=0).tolist())
    [0, 1, 2, 3, 4]
    """
    epochs, offsets = np.divmod(positions, examples)
    indices = np.empty_like(offsets)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _permuted(offsets[here], examples, _keys(seed, int(epoch)))
    return indices


def _permuted(offsets: Int64[np.ndarray, " n"], examples: int, keys: tuple[int, ...]) -> Int64[np.ndarray, " n"]:
    """Cycle walking: apply the network until the value is a valid index. At most half of the values need another walk."""
    bits = max(2, (examples - 1).bit_length())
    values = _network(offsets.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(values >= examples)
    while outside.size:
        values[outside] = _network(values[outside], bits, keys)
        outside = outside[values[outside] >= examples]
    return values.astype(np.int64)


def _network(values: UInt64[np.ndarray, " n"], bits: int, keys: tuple[int, ...]) -> UInt64[np.ndarray, " n"]:
    """A Feistel network on `bits` bits, its two parts as equal as the number allows; the parts swap widths each round."""
    low = bits // 2
    high = bits - low
    left, right = values >> np.uint64(low), values & np.uint64((1 << low) - 1)
    for key in keys:
        left, right = right, left ^ (_mixed(right, key) & np.uint64((1 << high) - 1))
        low, high = high, low
    return (left << np.uint64(low)) | right


def _mixed(values: UInt64[np.ndarray, " n"], key: int) -> UInt64[np.ndarray, " n"]:
    """A keyed hash of 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = values + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@functools.lru_cache(maxsize=64)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    """Round keys. Hashed, so that (seed 0, epoch 1) has nothing to do with (seed 1, epoch 0)."""
    digest = hashlib.shake_256(f"assay order {VERSION}/{seed}/{epoch}".encode()).digest(8 * ROUNDS)
    return tuple(int(word) for word in np.frombuffer(digest, "<u8"))
