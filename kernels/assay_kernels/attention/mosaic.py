"""attention by kernels of our own for Hopper: what they can do, how they are configured, and their derivative."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from assay_kernels.attention.mosaic_backward import Backward, Inputs, delta, of_keys, of_queries
from assay_kernels.attention.mosaic_forward import LOG2_E, ROWS, Forward, Scores, forward
from assay_kernels.attention.plan import order_of, spans
from assay_kernels.attention.shapes import Attention, Options, Sizes, sizes_of
from assay_kernels.target import current_target
from assay_kernels.tuning import tuned

BLOCK_Q = 2 * ROWS  # queries of a forward tile; lse and segment ids are padded to multiples of it
UNSEEN = 1e30  # in place of lse = -inf of a query that sees nothing: exp2(score - it) is 0


@dataclasses.dataclass(frozen=True)
class Config:
    """block_k, stages, own_output: of the forward kernel (see Forward). queries_*, keys_*: of the backward kernels (see Backward).

    split: whether the gradients of keys and values come from a kernel each.
    """

    block_k: int
    stages: int
    own_output: bool
    queries_groups: int
    queries_block: int
    queries_stages: int
    keys_groups: int
    keys_block: int
    keys_stages: int
    split: bool

    @property
    def forward(self) -> Forward:
        """Of the forward kernel."""
        return Forward(self.block_k, self.stages, self.own_output)

    @property
    def queries(self) -> Backward:
        """Of the kernel for the queries' gradient."""
        return Backward(self.queries_groups, self.queries_block, self.queries_stages)

    @property
    def keys(self) -> Backward:
        """Of the kernel for the keys' and values' gradients."""
        return Backward(self.keys_groups, self.keys_block, self.keys_stages)


HEAD_DIMS = (64, 96, 128, 192)


def rule(head_dim: int, extras: bool) -> Config:
    """The configuration without a measured one. extras: a soft-cap or segments, whose masks and derivatives need registers."""
    return {
        64: Config(128, 4, True, 2, 64 if extras else 128, 4 if extras else 2, 2, 64, 4, False),
        96: Config(128, 2, True, 2, 64, 4, 2, 64, 4, False),
        128: Config(128, 2, True, 2, 64, 2, 2, 64, 4, extras),
        192: Config(64, 2, True, 2, 64, 2, 2, 64, 2, True),
    }[head_dim]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed while jax traces. offset: None where it is an array. programs: how many forward programs run at the same time."""

    sizes: Sizes
    options: Options
    config: Config
    segments: bool
    offset: int | None
    programs: int

    def scores(self, block_k: int) -> Scores:
        """Those of blocks of so many keys."""
        return Scores(self.sizes, self.options, self.segments, self.sizes.keys % block_k != 0)


def supports(q: jax.Array, k: jax.Array, bias: jax.Array | None, dropout_key: jax.Array | None) -> str | None:
    """Why these kernels cannot do such a call on a Hopper GPU, or None."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 or float16, not {q.dtype}"
    if q.shape[3] not in HEAD_DIMS:
        return f"takes a head_dim of {', '.join(map(str, HEAD_DIMS))}, not {q.shape[3]}"
    if bias is not None:
        return "takes no bias"
    if dropout_key is not None:
        return "has no dropout"
    return f"q {q.shape}, k {k.shape}: there is nothing to compute" if 0 in (*q.shape, *k.shape) else None


TUNED_EXACTLY = ("head_dim",)


def configured(q: jax.Array, k: jax.Array, segments: bool, options: Options) -> Config:
    """The configuration for such a call: a measured one, or the rule's."""
    otherwise = rule(q.shape[3], segments or options.softcap is not None)
    return tuned(
        "attention", "mosaic", tuning_key(q.shape, k.shape, segments, options), exact=TUNED_EXACTLY, otherwise=otherwise
    )


def tuning_key(q: tuple[int, ...], k: tuple[int, ...], segments: bool, options: Options) -> dict[str, int | str]:
    """What the best configuration depends on. q, k: their shapes."""
    flags = {"causal": options.causal, "segments": segments, "softcap": options.softcap is not None}
    sizes = {"head_dim": q[3], "queries": q[1], "keys": k[1]}
    return {**sizes, **{name: "yes" if flag else "no" for name, flag in flags.items()}}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    bias: None,
    offset: int | jax.Array,
    dropout_key: None,
    options: Options,
) -> Attention:
    """As `reference`."""
    return configured_attention(
        q, k, v, q_segment_ids, kv_segment_ids, offset, options, configured(q, k, q_segment_ids is not None, options)
    )


def configured_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    offset: int | jax.Array,
    options: Options,
    config: Config,
) -> Attention:
    """The same with a given configuration."""
    sizes, static = sizes_of(q, k), isinstance(offset, int)
    tiles = sizes.batch * sizes.heads * math.ceil(sizes.queries / BLOCK_Q)
    plan = Plan(
        sizes,
        options,
        config,
        q_segment_ids is not None,
        offset if isinstance(offset, int) else None,
        min(tiles, current_target().cores),
    )
    ids = [None if x is None else _padded(x.astype(jnp.int32)) for x in (q_segment_ids, kv_segment_ids)]
    out, lse = _attention(plan, q, k, v, *ids, None if static else jnp.asarray(offset, jnp.int32).reshape(1))
    return Attention(out, lse if options.lse else None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, q: Any, k: Any, v: Any, q_ids: Any, k_ids: Any, offset: Any) -> tuple[jax.Array, jax.Array]:
    """(output, lse (B, T, N) in base e). ids: int32, padded to whole blocks."""
    return _attention_fwd(plan, q, k, v, q_ids, k_ids, offset)[0]


def _attention_fwd(plan: Plan, q: Any, k: Any, v: Any, q_ids: Any, k_ids: Any, offset: Any) -> tuple[Any, Any]:
    sizes, config = plan.sizes, plan.config.forward
    order = order_of(
        sizes.batch * sizes.heads,
        sizes.group,
        math.ceil(sizes.queries / BLOCK_Q),
        4 * sizes.keys * sizes.head_dim,
        last_first=plan.options.causal,
    )
    seen = _spans(plan, BLOCK_Q, config.block_k, q_ids, k_ids, offset)
    out, lse = forward(
        q, k, v, q_ids, k_ids, seen, _shift(plan, offset), plan.scores(config.block_k), config, order, plan.programs
    )
    base_e = jnp.swapaxes(lse[:, :, : sizes.queries], 1, 2) / LOG2_E
    return (out, base_e), (q, k, v, q_ids, k_ids, offset, out, lse)


def _attention_bwd(plan: Plan, saved: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    q, k, v, q_ids, k_ids, offset, out, lse = saved
    do, dlse = cotangents
    sizes, config = plan.sizes, plan.config
    do = do.astype(q.dtype)
    common = delta(out, do, jnp.swapaxes(dlse, 1, 2) if plan.options.lse else None, lse.shape[-1])
    given = Inputs(q, k, v, do, jnp.where(jnp.isfinite(lse), lse, UNSEEN), common, q_ids, k_ids)
    bytes_of_head = 4 * sizes.head_dim
    shift = _shift(plan, offset)

    rows, block = config.queries.groups * ROWS, config.queries.block
    order = order_of(
        sizes.batch * sizes.heads,
        sizes.group,
        math.ceil(sizes.queries / rows),
        bytes_of_head * sizes.keys,
        last_first=plan.options.causal,
    )
    seen = _spans(plan, rows, block, q_ids, k_ids, offset)
    dq = of_queries(given, seen, shift, plan.scores(block), config.queries, order)

    rows, block = config.keys.groups * ROWS, config.keys.block
    pairs, blocks = sizes.batch * sizes.kv_heads, math.ceil(sizes.keys / rows)
    order = order_of(pairs, 1, blocks, bytes_of_head * sizes.group * sizes.queries, last_first=False)
    seen = _spans(plan, block, rows, q_ids, k_ids, offset, of_keys=True)
    call = functools.partial(of_keys, given, seen, shift, plan.scores(rows), config.keys, order)
    dk, dv = (*call("keys"), *call("values")) if config.split else call("both")
    return dq, dk, dv, None, None, None


_attention.defvjp(_attention_fwd, _attention_bwd)


def _spans(
    plan: Plan, block_q: int, block_k: int, q_ids: Any, k_ids: Any, offset: Any, *, of_keys: bool = False
) -> Any:
    sizes = plan.sizes
    if q_ids is not None:
        q_ids, k_ids = q_ids[:, : sizes.queries], k_ids[:, : sizes.keys]
    where = plan.offset if plan.offset is not None else offset[0]
    return jnp.asarray(spans(sizes, block_q, block_k, where, q_ids, k_ids, plan.options, of_keys=of_keys))


def _shift(plan: Plan, offset: Any) -> int | jax.Array:
    return plan.offset if plan.offset is not None else offset


def _padded(ids: jax.Array) -> jax.Array:
    return jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % BLOCK_Q)))
