"""Small programs of every sort that models are made of: what the ONNX wrapper must get right, or refuse with the operation named."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from assay.exported import Dim, Program, Signature, Tensor

F32, I32 = "float32", "int32"
Function = Callable[..., dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One program of the battery; `refused`: the operation that the refusal names, None for what must convert."""

    program: Program
    dims: Mapping[str, Dim]
    weights: Mapping[str, np.ndarray]
    refused: str | None = None


CASES: dict[str, Case] = {}


def add(
    name: str,
    function: Function,
    inputs: Mapping[str, Tensor],
    dims: Mapping[str, Dim],
    weights: Mapping[str, tuple[int, ...]],
    refused: str | None = None,
) -> None:
    """A case with weights of these shapes, positive where their path ends in "var", with variance 1 / fan-in elsewhere."""
    rng = np.random.default_rng(len(CASES))
    drawn = {}
    for path, shape in weights.items():
        value = rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1])))
        drawn[path] = (np.abs(value) + 0.5 if path.endswith("var") else value).astype(np.float32)
    program = Program(name, lambda weights, inputs: function(weights, **inputs), Signature(inputs, {}))
    CASES[name] = Case(program, dims, drawn, refused)


def program(
    inputs: Mapping[str, Tensor],
    dims: Mapping[str, Dim],
    weights: Mapping[str, tuple[int, ...]] | None = None,
    refused: str | None = None,
) -> Callable[[Function], Function]:
    """Add the function f(weights, **inputs) to the battery."""

    def added(function: Function) -> Function:
        add(function.__name__, function, inputs, dims, weights or {}, refused)
        return function

    return added


def module_program(
    name: str, make: Callable[[nnx.Rngs], nnx.Module], inputs: Mapping[str, Tensor], dims: Mapping[str, Dim]
) -> None:
    """Add a flax module, its variables as weights."""

    def build() -> nnx.Module:
        module = make(nnx.Rngs(0))
        module.eval()
        nnx.pop(module, nnx.RngState)
        return module

    graph, state = nnx.split(nnx.eval_shape(build))
    flat = {"/".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}

    def function(weights: dict[str, Any], **named: Any) -> dict[str, Any]:
        filled = [(path, v.replace(weights[name])) for name, (path, v) in flat.items()]
        return {"y": nnx.merge(graph, nnx.from_flat_state(filled))(*named.values())}

    add(name, function, inputs, dims, {path: v.shape for path, (_, v) in flat.items()})


def norm(x: Any, eps: float = 1e-5) -> Any:
    """LayerNorm without weights."""
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + eps)


B, SEQ = Dim(1, 5), Dim(1, 16)
X = {"x": Tensor(("batch", 8), F32)}
XS = {"x": Tensor(("batch", "seq", 16), F32)}
IMAGE = {"x": Tensor(("batch", 16, 16, 3), F32)}
DYN_IMAGE = {"x": Tensor(("batch", "height", "width", 3), F32)}
TOKENS = {"tokens": Tensor(("batch", "seq"), I32, 64)}
DB, DBS = {"batch": B}, {"batch": B, "seq": SEQ}
DHW = {"batch": Dim(1, 3), "height": Dim(8, 13), "width": Dim(8, 16)}


def integer(name: str, below: int | str, *shape: int | str) -> dict[str, Tensor]:
    """An int32 input in [0, below)."""
    return {name: Tensor(shape, I32, below)}


# Dense


@program(X, DB, {"w": (8, 4), "b": (4,)})
def dense(w: Any, x: Any) -> dict[str, Any]:
    return {"y": x @ w["w"] + w["b"]}


@program(XS, DBS, {"up": (16, 64), "down": (64, 16)})
def gelu_mlp(w: Any, x: Any) -> dict[str, Any]:
    return {"y": x + jax.nn.gelu(norm(x) @ w["up"]) @ w["down"]}


@program(XS, DBS, {"gate": (16, 48), "up": (16, 48), "down": (48, 16)})
def swiglu(w: Any, x: Any) -> dict[str, Any]:
    return {"y": (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"]}


module_program(
    "mlp_batchnorm_dropout",
    lambda r: nnx.Sequential(
        nnx.Linear(8, 16, rngs=r),
        nnx.BatchNorm(16, rngs=r),
        nnx.relu,
        nnx.Dropout(0.1, rngs=r),
        nnx.Linear(16, 3, rngs=r),
    ),
    X,
    DB,
)


@program(X, DB, {"w": (8, 8), "a": (8, 2), "b": (2, 8)})
def lora(w: Any, x: Any) -> dict[str, Any]:
    return {"y": x @ w["w"] + (x @ w["a"]) @ w["b"] * 2.0}


@program(XS, DBS, {"scale": (16,)})
def rmsnorm(w: Any, x: Any) -> dict[str, Any]:
    return {"y": x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * w["scale"]}


@program({**X, "z": Tensor(("batch", 8), F32)}, DB)
def vmapped_dot(w: Any, x: Any, z: Any) -> dict[str, Any]:
    return {"y": jax.vmap(jnp.dot)(x, z)}


@program({**X, "z": Tensor(("batch", 5), F32)}, DB, {"w": (8, 5, 3)})
def three_operand_einsum(w: Any, x: Any, z: Any) -> dict[str, Any]:
    return {"y": jnp.einsum("bi,bj,ijk->bk", x, z, w["w"])}


@program({"x": Tensor(("batch", "seq", 2, 8), F32)}, DBS, {"w": (2, 8, 16)})
def headed_projection(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jnp.einsum("bshd,hde->bse", x, w["w"])}


# Convolutions and pooling


@program(IMAGE, DB, {"a": (3, 3, 3, 8), "b": (3, 3, 8, 8), "skip": (1, 1, 3, 8)})
def residual_conv(w: Any, x: Any) -> dict[str, Any]:
    h = jax.nn.relu(conv(x, w["a"], 2))
    return {"y": conv(h, w["b"], 1) + conv(x, w["skip"], 2)}


def conv(x: Any, kernel: Any, stride: int = 1, groups: int = 1, padding: str = "SAME") -> Any:
    """NHWC convolution."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@program({"x": Tensor(("batch", 16, 16, 8), F32)}, DB, {"w": (3, 3, 1, 8)})
def depthwise_conv(w: Any, x: Any) -> dict[str, Any]:
    return {"y": conv(x, w["w"], groups=8)}


module_program(
    "groupnorm_conv_transpose",
    lambda r: nnx.Sequential(nnx.GroupNorm(8, num_groups=4, rngs=r), nnx.ConvTranspose(8, 4, (4, 4), (2, 2), rngs=r)),
    {"x": Tensor(("batch", 8, 8, 8), F32)},
    DB,
)


@program(IMAGE, DB, {"w": (3, 3, 3, 8)})
def positional_max_pool(w: Any, x: Any) -> dict[str, Any]:
    return {"y": nnx.max_pool(conv(x, w["w"]), (3, 3), (2, 2), "SAME").mean((1, 2))}


@program(IMAGE, DB)
def average_pool(w: Any, x: Any) -> dict[str, Any]:
    return {"y": nnx.avg_pool(x, (2, 2), (2, 2))}


@program(DYN_IMAGE, DHW, {"a": (3, 3, 3, 8), "b": (3, 3, 8, 8)})
def strided_conv_odd_sizes(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jax.nn.relu(conv(conv(x, w["a"], 2), w["b"], 2)).mean((1, 2))}


@program(DYN_IMAGE, DHW, {"a": (3, 3, 3, 8)})
def dynamic_conv_pool_mean(w: Any, x: Any) -> dict[str, Any]:
    h = nnx.max_pool(conv(x, w["a"], 2), window_shape=(3, 3), strides=(2, 2), padding="SAME")
    return {"y": h.mean((1, 2))}


@program({"x": Tensor(("batch", "seq", 4), F32)}, {"batch": B, "seq": Dim(4, 16)}, {"w": (5, 4, 6)})
def causal_conv1d(w: Any, x: Any) -> dict[str, Any]:
    padded = jnp.pad(x, ((0, 0), (4, 0), (0, 0)))
    return {"y": lax.conv_general_dilated(padded, w["w"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))}


@program({"x": Tensor(("batch", 12, 12, 4), F32)}, DB, {"w": (3, 3, 4, 4)})
def dilated_conv(w: Any, x: Any) -> dict[str, Any]:
    return {
        "y": lax.conv_general_dilated(
            x, w["w"], (1, 1), "SAME", rhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    }


# Resizing


@program({"x": Tensor(("batch", 8, 8, 4), F32)}, DB, {"down": (3, 3, 4, 8), "up": (3, 3, 8, 4)})
def unet_resize(w: Any, x: Any) -> dict[str, Any]:
    h = conv(x, w["down"], 2)
    h = jax.image.resize(h, (h.shape[0], 8, 8, 8), "nearest")
    return {"y": x + conv(h, w["up"])}


@program({"x": Tensor(("batch", 8, 8, 4), F32)}, DB)
def bilinear_resize(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jax.image.resize(x, (x.shape[0], 13, 5, 4), "bilinear")}


@program(DYN_IMAGE, DHW)
def broadcast_upsample(w: Any, x: Any) -> dict[str, Any]:
    b, h, width, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, width, 2, c))
    return {"y": y.reshape(b, 2 * h, 2 * width, c)}


@program({"x": Tensor(("batch", 16, 16, 3), F32)}, DB, {"w": (48, 24)})
def patches(w: Any, x: Any) -> dict[str, Any]:
    b = x.shape[0]
    y = x.reshape(b, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, 16, 48)
    return {"y": y @ w["w"]}


# Attention and caches


def heads(x: Any, kernel: Any, count: int) -> Any:
    """(batch, seq, width) -> (batch, seq, heads, head width)."""
    y = x @ kernel
    return y.reshape(y.shape[0], y.shape[1], count, -1)


def attend(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Grouped-query attention with a boolean mask (query, key) or (batch, 1, query, key)."""
    k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], axis=2) for a in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), -1)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return y.reshape(y.shape[0], y.shape[1], -1)


ATTENTION = {"q": (16, 16), "k": (16, 8), "v": (16, 8), "o": (16, 16)}


@program(XS, DBS, ATTENTION)
def causal_attention(w: Any, x: Any) -> dict[str, Any]:
    s = x.shape[1]
    mask = jnp.arange(s)[:, None] >= jnp.arange(s)[None]
    return {"y": attend(heads(x, w["q"], 4), heads(x, w["k"], 2), heads(x, w["v"], 2), mask) @ w["o"]}


@program(XS, DBS, ATTENTION)
def library_attention(w: Any, x: Any) -> dict[str, Any]:
    q, k, v = heads(x, w["q"], 4), heads(x, w["k"], 2), heads(x, w["v"], 2)
    return {"y": jax.nn.dot_product_attention(q, k, v, is_causal=True)}


@program(XS, DBS)
def rope(w: Any, x: Any) -> dict[str, Any]:
    angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * (10_000.0 ** (-jnp.arange(8) / 8))
    a, b = jnp.split(x, 2, -1)
    return {
        "y": jnp.concatenate([a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)], -1)
    }


@program(TOKENS, DBS, {"embed": (64, 16), **ATTENTION})
def language_model(w: Any, tokens: Any) -> dict[str, Any]:
    x = w["embed"][tokens] * 8
    s = x.shape[1]
    mask = jnp.tril(jnp.ones((s, s), bool))
    x = x + attend(heads(norm(x), w["q"], 4), heads(norm(x), w["k"], 2), heads(norm(x), w["v"], 2), mask) @ w["o"]
    return {"y": jax.nn.log_softmax(norm(x) @ w["embed"].T)}


CACHE = {"k": Tensor(("batch", "cache", 2, 4), F32), "v": Tensor(("batch", "cache", 2, 4), F32)}
NEW = {"x": Tensor(("batch", "new", 16), F32)}
DCACHE = {"batch": B, "new": Dim(1, 4), "cache": Dim(12, 31)}


@program({**NEW, **CACHE, **integer("position", 8)}, DCACHE, ATTENTION)
def cache_update_slice(w: Any, x: Any, k: Any, v: Any, position: Any) -> dict[str, Any]:
    k = lax.dynamic_update_slice(k, heads(x, w["k"], 2), (0, position, 0, 0))
    v = lax.dynamic_update_slice(v, heads(x, w["v"], 2), (0, position, 0, 0))
    mask = jnp.arange(k.shape[1])[None] <= position + jnp.arange(x.shape[1])[:, None]
    return {"y": attend(heads(x, w["q"], 4), k, v, mask), "k": k, "v": v}


@program(
    {"x": Tensor(("batch", 1, 16), F32), **CACHE, **integer("position", 8, "batch")},
    {"batch": B, "cache": Dim(12, 31)},
    ATTENTION,
)
def cache_position_of_each_row(w: Any, x: Any, k: Any, v: Any, position: Any) -> dict[str, Any]:
    rows = jnp.arange(x.shape[0])
    k, v = k.at[rows, position].set(heads(x, w["k"], 2)[:, 0]), v.at[rows, position].set(heads(x, w["v"], 2)[:, 0])
    mask = (jnp.arange(k.shape[1])[None] <= position[:, None])[:, None, None]
    return {"y": attend(heads(x, w["q"], 4), k, v, mask), "k": k, "v": v}


@program(
    {**NEW, **{name: Tensor(("batch", "past", 2, 4), F32) for name in "kv"}},
    {"batch": B, "new": Dim(1, 4), "past": Dim(1, 8)},
    ATTENTION,
)
def cache_grows(w: Any, x: Any, k: Any, v: Any) -> dict[str, Any]:
    past = k.shape[1]
    k = jnp.concatenate([k, heads(x, w["k"], 2)], 1)
    v = jnp.concatenate([v, heads(x, w["v"], 2)], 1)
    mask = jnp.arange(k.shape[1])[None] <= past + jnp.arange(x.shape[1])[:, None]
    return {"y": attend(heads(x, w["q"], 4), k, v, mask), "k": k, "v": v}


# Graphs and segments

EDGES = {
    "x": Tensor(("nodes", 8), F32),
    **integer("senders", "nodes", "edges"),
    **integer("receivers", "nodes", "edges"),
}
GRAPH = {"nodes": Dim(1, 12), "edges": Dim(1, 30)}


@program(EDGES, GRAPH, {"w": (8, 8)})
def graph_convolution(w: Any, x: Any, senders: Any, receivers: Any) -> dict[str, Any]:
    degree = jnp.zeros(x.shape[0]).at[receivers].add(1.0)
    messages = jax.ops.segment_sum((x @ w["w"])[senders], receivers, x.shape[0])
    return {"y": messages / jnp.maximum(degree, 1.0)[:, None]}


@program(EDGES, GRAPH)
def segment_maximum(w: Any, x: Any, senders: Any, receivers: Any) -> dict[str, Any]:
    y = jax.ops.segment_max(x[senders], receivers, x.shape[0])
    return {"y": jnp.where(jnp.isfinite(y), y, 0.0)}


@program(EDGES, GRAPH, {"w": (8, 8), "a": (8,)})
def segment_softmax(w: Any, x: Any, senders: Any, receivers: Any) -> dict[str, Any]:
    h = x @ w["w"]
    scores = jax.nn.leaky_relu((h[senders] + h[receivers]) @ w["a"])
    top = jax.ops.segment_max(scores, receivers, x.shape[0])
    e = jnp.exp(scores - top[receivers])
    total = jax.ops.segment_sum(e, receivers, x.shape[0])
    return {"y": jax.ops.segment_sum((e / total[receivers])[:, None] * h[senders], receivers, x.shape[0])}


# Loops


@program(XS, DBS, {"w": (16, 16), "u": (16, 16)})
def scan_cell(w: Any, x: Any) -> dict[str, Any]:
    def step(h: Any, u: Any) -> Any:
        h = jnp.tanh(h @ w["w"] + u @ w["u"])
        return h, h

    last, all_ = lax.scan(step, jnp.zeros((x.shape[0], 16)), x.transpose(1, 0, 2))
    return {"y": all_, "last": last}


@program({"x": Tensor(("batch", 9, 16), F32)}, DB, {"w": (16, 24), "u": (8, 24)})
def gru_scan(w: Any, x: Any) -> dict[str, Any]:
    def step(h: Any, u: Any) -> Any:
        r, z, n = jnp.split(u @ w["w"], 3, -1)
        hr, hz, hn = jnp.split(h @ w["u"], 3, -1)
        update = jax.nn.sigmoid(z + hz)
        h = update * h + (1 - update) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn)
        return h, h

    return {"y": lax.scan(step, jnp.zeros((x.shape[0], 8)), x.transpose(1, 0, 2))[1]}


@program(X, DB, {"w": (4, 8, 8)})
def scan_stacked_layers(w: Any, x: Any) -> dict[str, Any]:
    return {"y": lax.scan(lambda h, k: (h + jnp.tanh(h @ k), None), x, w["w"])[0]}


@program(X, DB, {"w": (8, 8)})
def fori_loop(w: Any, x: Any) -> dict[str, Any]:
    return {"y": lax.fori_loop(0, 5, lambda i, h: h + jnp.sin(h @ w["w"]) * i, x)}


@program({**X, **integer("count", 7)}, DB)
def while_loop(w: Any, x: Any, count: Any) -> dict[str, Any]:
    return {"y": lax.while_loop(lambda s: s[0] < count, lambda s: (s[0] + 1, s[1] * 0.5 + 1), (jnp.int32(0), x))[1]}


@program({**X, **integer("flag", 2)}, DB, {"w": (8, 8)})
def two_branches(w: Any, x: Any, flag: Any) -> dict[str, Any]:
    return {"y": lax.cond(flag > 0, lambda a: a @ w["w"], lambda a: -a, x)}


@program({**X, **integer("which", 4)}, DB, {"w": (8, 8)})
def switch(w: Any, x: Any, which: Any) -> dict[str, Any]:
    return {"y": lax.switch(which, [lambda a: a, lambda a: a @ w["w"], jnp.sin, lambda a: a * 2], x)}


@program({"x": Tensor(("batch", 16, 8), F32)}, DB)
def associative_scan(w: Any, x: Any) -> dict[str, Any]:
    def combine(a: Any, b: Any) -> Any:
        return a[0] * b[0], b[0] * a[1] + b[1]

    return {"y": lax.associative_scan(combine, (jax.nn.sigmoid(x), x), axis=1)[1]}


@program(XS, DBS)
def cumulative_sum(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jnp.cumsum(x, 1)}


# Sorting, indexing


@program(X, DB)
def top_k(w: Any, x: Any) -> dict[str, Any]:
    values, indices = lax.top_k(x, 3)
    return {"y": values, "indices": indices}


@program(XS, DBS)
def sort_and_argsort(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jnp.sort(x, 1), "order": jnp.argsort(x, -1)}


@program({**XS, **integer("index", 16, "batch", "seq", 3)}, DBS)
def take_along_axis(w: Any, x: Any, index: Any) -> dict[str, Any]:
    return {"y": jnp.take_along_axis(x, index, -1)}


@program({"x": Tensor(("batch", 16, 8), F32), **integer("start", 12)}, DB)
def dynamic_slice(w: Any, x: Any, start: Any) -> dict[str, Any]:
    return {"y": lax.dynamic_slice_in_dim(x, start, 4, 1)}


@program(XS, DBS)
def roll_and_flip(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jnp.roll(x, 3, -1)[:, ::-1]}


@program(X, DB)
def argmax_one_hot(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jax.nn.one_hot(jnp.argmax(x, -1), 8), "index": jnp.argmax(x, -1)}


@program({**TOKENS, **integer("length", "seq", "batch")}, DBS, {"embed": (64, 8)})
def masked_mean(w: Any, tokens: Any, length: Any) -> dict[str, Any]:
    mask = jnp.arange(tokens.shape[1])[None] <= length[:, None]
    return {"y": jnp.where(mask[..., None], w["embed"][tokens], 0).sum(1) / mask.sum(1, keepdims=True)}


# Mixtures of experts


@program(X, DB, {"gate": (8, 4), "up": (4, 8, 16), "down": (4, 16, 8)})
def experts_dense(w: Any, x: Any) -> dict[str, Any]:
    values, indices = lax.top_k(jax.nn.softmax(x @ w["gate"]), 2)
    mix = jnp.einsum("bk,bke->be", values, jax.nn.one_hot(indices, 4))
    h = jax.nn.silu(jnp.einsum("bd,edh->beh", x, w["up"]))
    return {"y": jnp.einsum("beh,ehd,be->bd", h, w["down"], mix)}


@program(X, DB, {"gate": (8, 4), "up": (4, 8, 8)})
def experts_ragged_dot(w: Any, x: Any) -> dict[str, Any]:
    expert = jnp.argmax(x @ w["gate"], -1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=4)
    y = lax.ragged_dot(x[order], w["up"], sizes.astype(jnp.int32))
    return {"y": y[jnp.argsort(order)]}


# Transformations of functions


@program(X, DB, {"w": (8, 8)})
def checkpointed(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jax.checkpoint(lambda a: jnp.tanh(a @ w["w"]))(x)}


@jax.custom_vjp
def clipped(x: Any) -> Any:
    """Identity with a clipped gradient."""
    return x * 1.0


clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (jnp.clip(g, -1, 1),))


@program(X, DB)
def custom_gradient(w: Any, x: Any) -> dict[str, Any]:
    return {"y": clipped(x) + jax.nn.relu6(x)}


@program(X, DB, {"w": (8, 8)})
def gradient_inside(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jax.grad(lambda a: jnp.sum(jnp.tanh(a @ w["w"]) ** 2))(x)}


@program({"x": Tensor(("batch", 6, 6), F32)}, DB, refused="cholesky")
def cholesky(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jnp.linalg.cholesky(x @ x.transpose(0, 2, 1) + 6 * jnp.eye(6))}


# Whole modules

module_program(
    "unet_block",
    lambda r: nnx.Sequential(
        nnx.Conv(4, 8, (3, 3), rngs=r),
        nnx.GroupNorm(8, num_groups=2, rngs=r),
        nnx.silu,
        nnx.Conv(8, 8, (3, 3), (2, 2), rngs=r),
        nnx.ConvTranspose(8, 4, (3, 3), (2, 2), rngs=r),
    ),
    {"x": Tensor(("batch", 8, 8, 4), F32)},
    DB,
)
module_program(
    "flax_attention",
    lambda r: nnx.MultiHeadAttention(4, 16, decode=False, rngs=r),
    XS,
    DBS,
)

# Numbers


@program(X, DB, {"w": (8, 8)})
def weights_in_int8(w: Any, x: Any) -> dict[str, Any]:
    q = jnp.clip(jnp.round(w["w"] * 40), -127, 127).astype(jnp.int8)
    return {"y": x @ (q.astype(jnp.float32) / 40)}


@program(X, DB, {"w": (8, 8)})
def int8_by_int8(w: Any, x: Any) -> dict[str, Any]:
    a, b = jnp.round(x * 20).astype(jnp.int8), jnp.round(w["w"] * 20).astype(jnp.int8)
    return {"y": lax.dot(a, b, preferred_element_type=jnp.int32)}


@program({"x": Tensor(("batch", 16), F32)}, DB, refused="fft")
def real_fft(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jnp.abs(jnp.fft.rfft(x))}


@program(X, DB)
def special_functions(w: Any, x: Any) -> dict[str, Any]:
    return {
        "y": jax.scipy.special.erf(x)
        + jnp.expm1(x)
        + jnp.log1p(jnp.abs(x))
        + jnp.logaddexp(x, 1.0)
        + jnp.sign(x) * jnp.arctan2(x, 2.0)
    }


@program(X, DB)
def integer_arithmetic(w: Any, x: Any) -> dict[str, Any]:
    i = jnp.floor(x * 10).astype(jnp.int32)
    return {"y": (i // 3) + (i % 4) * 2 - (i >> 1) + (i & 5) + jnp.abs(i)}


# What ONNX cannot say


@program(X, DB, refused="random_seed")
def random_normal(w: Any, x: Any) -> dict[str, Any]:
    return {"y": x + jax.random.normal(jax.random.key(0), x.shape[1:])}


@program({"x": Tensor(("batch", 6, 4), F32)}, DB, refused="svd")
def singular_values(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jnp.linalg.svd(x, compute_uv=False)}


@program(X, DB, refused="pure_callback")
def host_callback(w: Any, x: Any) -> dict[str, Any]:
    return {"y": jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)}
