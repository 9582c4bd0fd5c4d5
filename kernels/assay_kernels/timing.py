"""Times of functions side by side: in turns, and on a GPU of the device alone, by calls that are chained inside one program.

A call from Python costs tens of microseconds, more than many kernels take. So one program calls the function many times. After each call a
tap reads one element of every result and writes one element of the next call's first argument, by the value that it has anyway: the
calls cannot overlap, XLA can neither leave one out nor move parts of it out of the loop, and no array is copied. The tap is in the time of
a chain: one small kernel, the same for everything that is timed so; `tap_seconds` measures it, for who wants to take it off. The arguments
are in as many buffers as the second-level cache cannot hold, and the calls go round them.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Function = Callable[..., Any]
Sampler = Callable[[], float]
"""Measures once: seconds of one call."""

CACHE = 256 << 20  # bytes; several times the second-level cache of any GPU so far
MOST_SETS, MOST_BYTES = 16, 16 << 30
SAMPLE = 0.03  # seconds of one measurement
MOST_CALLS = 4000
_IMPROBABLE = 112.0  # a number in every dtype, or XLA would know that no result can be equal to it


def buffer_sets(arguments: Sequence[Any], touched: int = 0) -> list[tuple[Any, ...]]:
    """The arguments, and as many copies of them as it takes to be larger than the cache.

    touched: bytes that a call reads and writes at least, where that is known: it may be far less than the arguments.
    """
    size = max(1, sum(x.nbytes for x in jax.tree.leaves(arguments)))
    count = math.ceil(CACHE / max(1, min(size, touched or size)))
    count = min(count, MOST_SETS, max(1, MOST_BYTES // size))
    return [tuple(arguments), *(jax.tree.map(jnp.copy, tuple(arguments)) for _ in range(count - 1))]


def loops_for(seconds: float, sets: int) -> int:
    """How often a chain goes round its buffers so that it takes about SAMPLE, a call taking `seconds`."""
    return max(2, min(MOST_CALLS, math.ceil(SAMPLE / max(seconds, 1e-6))) // sets)


def chain(function: Function, loops: int) -> Any:
    """Jitted (moving, fixed) -> moving: `loops` times a call of each set of arguments, where each call waits for the one before.

    moving, fixed: as `divided` gives them; moving is donated.
    """

    def once(moving: list[jax.Array], fixed: list["Fixed"]) -> list[jax.Array]:
        moving = list(moving)
        for i, rest in enumerate(fixed):
            held, others = jax.lax.optimization_barrier((moving[i], rest))
            results = jax.lax.optimization_barrier(function(*others.with_moving(held)))
            following = (i + 1) % len(fixed)
            moving[following] = _tapped(results, moving[following], fixed[following].first)
        return moving

    def run(moving: list[jax.Array], fixed: list["Fixed"]) -> list[jax.Array]:
        return jax.lax.fori_loop(0, loops, lambda _, carried: once(carried, fixed), moving)

    return jax.jit(run, donate_argnums=0)


def divided(sets: Sequence[Sequence[Any]]) -> tuple[list[jax.Array], list["Fixed"]]:
    """(a copy of the first floating point array of each set, which the chain may change; the rest, without it)."""
    moving, fixed = [], []
    for arguments in sets:
        leaves, structure = jax.tree.flatten(tuple(arguments))
        floating = [i for i, x in enumerate(leaves) if x.size and jnp.issubdtype(x.dtype, jnp.floating)]
        at = (floating or [i for i, x in enumerate(leaves) if x.size])[0]
        moving.append(jnp.copy(leaves[at]))
        fixed.append(Fixed(tuple(leaves[:at]), tuple(leaves[at + 1 :]), leaves[at][(0,) * leaves[at].ndim], structure))
    return moving, fixed


def chained_sampler(program: Any, moving: list[jax.Array], fixed: list["Fixed"], loops: int) -> Sampler:
    """Times a compiled chain; the first measurement, which is not counted, has been made."""
    state = [jax.block_until_ready(program(moving, fixed))]

    def sample() -> float:
        began = time.perf_counter()
        state[0] = jax.block_until_ready(program(state[0], fixed))
        return (time.perf_counter() - began) / (loops * len(fixed))

    return sample


def call_sampler(program: Any, arguments: Sequence[Any]) -> Sampler:
    """Times single calls, as they are made from Python; the first one, which is not counted, has been made."""
    jax.block_until_ready(program(*arguments))

    def sample() -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        return time.perf_counter() - began

    return sample


def torch_sampler(function: Function, sets: Sequence[Sequence[Any]], seconds: float) -> tuple[Sampler, str]:
    """(times calls of a function of torch tensors by CUDA events, how: "graph", or "launched" where it cannot be captured)."""
    import torch

    tensors = [[torch.from_dlpack(x) for x in jax.block_until_ready(arguments)] for arguments in sets]
    calls = loops_for(seconds, len(sets)) * len(sets)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def several() -> None:
        for i in range(calls):
            function(*tensors[i % len(tensors)])

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # warm: cuBLAS handles, cuDNN plans
        for _ in range(2):
            function(*tensors[0])
    torch.cuda.synchronize()
    replay, how = several, "launched"
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            several()
        replay, how = graph.replay, "graph"
    except RuntimeError:
        torch.cuda.synchronize()
    replay()

    def sample() -> float:
        torch.cuda.synchronize()
        begin.record()
        replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / calls

    return sample, how


def in_turns(
    samplers: Mapping[str, Sampler], rounds: int, failed: Callable[[str, Exception], None]
) -> dict[str, list[float]]:
    """Seconds of one call, one number for each round; the order turns with the rounds. What raises is left out, and `failed` told."""
    found: dict[str, list[float]] = {name: [] for name in samplers}
    for i in range(rounds):
        for name in list(found)[:: -1 if i % 2 else 1]:
            try:
                found[name].append(samplers[name]())
            except Exception as error:
                del found[name]
                failed(name, error)
    return found


def launch_seconds() -> float:
    """What a call from Python costs by itself."""
    program, x = jax.jit(lambda x: x + 1), jnp.zeros(())
    jax.block_until_ready(program(x))
    return min(call_sampler(program, (x,))() for _ in range(10))


def tap_seconds() -> float:
    """What the tap of a chain costs: the time of a call in a chain of calls that do nothing."""
    moving, fixed = divided([(jnp.ones((128,)),) for _ in range(MOST_SETS)])
    loops = MOST_CALLS // MOST_SETS
    sample = chained_sampler(chain(lambda x: x, loops), moving, fixed, loops)
    return min(sample() for _ in range(3))


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes a second, read and written, of x + 1 over `size` bytes."""
    x = jnp.zeros((size // 4,), jnp.float32)
    step = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, x: jax.lax.optimization_barrier(x + 1), x))
    return 10 * 2 * size / min(call_sampler(step, (x,))() for _ in range(5))


def product_rate(side: int = 8192) -> float:
    """FLOP/s of products of two random bf16 matrices with `side` rows and columns."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in keys)
    b = b / math.sqrt(side)  # so that a product is as large as its factor
    step = jax.jit(lambda a, b: jax.lax.fori_loop(0, 10, lambda _, a: a @ b, a))
    return 10 * 2 * side**3 / min(call_sampler(step, (a, b))() for _ in range(5))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fixed:
    """A set of arguments without the array that moves. first: that array's first element."""

    before: tuple[Any, ...]
    after: tuple[Any, ...]
    first: Any
    structure: Any = dataclasses.field(metadata={"static": True})

    def with_moving(self, moving: jax.Array) -> Any:
        """The set, whole."""
        return jax.tree.unflatten(self.structure, [*self.before, moving, *self.after])


def _tapped(results: Any, following: jax.Array, first: jax.Array) -> jax.Array:
    """`following`, with its first element written again once the results are there."""
    values = [x[(0,) * x.ndim].astype(jnp.float32) for x in jax.tree.leaves(results) if x.size]
    seen = sum(values, jnp.float32(0))
    written = jnp.where(seen == _IMPROBABLE, seen.astype(first.dtype), first)
    return jax.lax.dynamic_update_slice(following, written.reshape((1,) * following.ndim), (0,) * following.ndim)
