"""The mixture of experts, windows, scaled angles, biases by place and padded vocabularies of model.transformer."""

import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay.data.spec import ArraySpec, DataSpec
from assay.network import make_network
from assay.parallel.constrain import layout
from assay.parallel.layout import make_layout
from assay.plan.flops import forward_cost
from assay.testing.model import ModelKit
from assay_kernels import H200, counting, for_target, recording
from assay_kernels.aot import custom_calls, lower_gradient_for_cuda
from assay_plugins.models.attention import attention
from assay_plugins.models.layers import normal
from assay_plugins.models.moe import Experts
from assay_plugins.models.rope import frequencies
from assay_plugins.models.transformer import Transformer
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor

ROW = ArraySpec((12,), "int32")
TEXT = DataSpec({"inputs": ROW, "targets": ROW}, vocab_size=16)
SMALL = Transformer(layers=1, width=16, heads=4, kv_heads=2)
SETTINGS = {
    "experts": {"experts": 3, "experts_per_token": 2, "mlp_width": 24},
    "dense": {"experts": 3, "experts_per_token": 2, "mlp_width": 24, "expert_dispatch": "dense"},
    "window": {"layers": 2, "window": 4, "window_layers": (1,)},
    "band": {"rope_scaling": 4.0, "rope_band": (1.0, 3.0, 32), "rope_theta": 60.0},
}


class TestMixture(ModelKit):
    def plugin(self) -> Transformer:
        return dataclasses.replace(SMALL, **SETTINGS["experts"])


def network_of(spec: DataSpec = TEXT, **options: Any) -> tuple[Any, Any]:
    network = make_network(dataclasses.replace(SMALL, **options), spec)
    leaves, tree = jax.tree.flatten(network.params)
    rng = np.random.default_rng(0)
    return network, tree.unflatten([jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves])


def tokens() -> jax.Array:
    return jax.random.randint(jax.random.key(5), (2, 12), 0, 16)


@pytest.mark.parametrize("dispatch", ["dense", "grouped"])
def test_a_token_goes_through_the_chosen_experts(dispatch: Any) -> None:
    layer = layer_of(dispatch)
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 5, 6)), np.float64)
    found = np.asarray(layer(jnp.asarray(x, jnp.float32)))
    router, gate, up, down = (np.asarray(p[...], np.float64) for p in (layer.router, layer.gate, layer.up, layer.down))
    for row, column in np.ndindex(2, 5):
        token = x[row, column]
        scores = np.exp(token @ router)
        scores /= scores.sum()
        best = np.argsort(scores)[-2:]
        expected = 0.0
        for e in best:
            opened = token @ gate[e]
            expected = expected + scores[e] / scores[best].sum() * (
                (opened / (1 + np.exp(-opened)) * (token @ up[e])) @ down[e]
            )
        np.testing.assert_allclose(found[row, column], expected, rtol=1e-4, atol=1e-4)


def layer_of(dispatch: Any, width: int = 6, mlp_width: int = 10, experts: int = 4, chosen: int = 2) -> Experts:
    sizes = {"width": width, "mlp_width": mlp_width, "experts": experts, "chosen": chosen}
    return Experts(**sizes, init=normal(1.0), out_init=normal(1.0), rngs=nnx.Rngs(0), dispatch=dispatch)


def value_and_gradients(dispatch: Any, x: jax.Array, dtype: str = "float32", **sizes: Any) -> Any:
    """(result, gradients of a weighted sum with respect to x and all parameters)."""
    graph, params = nnx.split(layer_of(dispatch, **sizes))
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    weights = jax.random.normal(jax.random.key(2), x.shape)

    def total(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = nnx.merge(graph, params)(x)
        return jnp.sum(y * weights), y

    gradients, y = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, x.astype(dtype))
    return {"y": y, "params": nnx.to_pure_dict(gradients[0]), "x": gradients[1]}


def check_alike(found: Any, expected: Any, most: float) -> None:
    paths, others = jax.tree.leaves_with_path(found), jax.tree.leaves(expected)
    for (path, a), b in zip(paths, others, strict=True):
        b = np.asarray(b, np.float64)
        assert np.linalg.norm(np.asarray(a, np.float64) - b) <= most * np.linalg.norm(b), jax.tree_util.keystr(path)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 2e-6), ("bfloat16", 5e-2)])
@pytest.mark.parametrize(("experts", "chosen"), [(4, 2), (4, 4), (4, 1), (16, 3)])
def test_sorted_tokens_give_what_all_experts_for_all_tokens_give(
    experts: int, chosen: int, dtype: str, most: float
) -> None:
    x = jax.random.normal(jax.random.key(1), (3, 7, 6))
    dense, grouped = (value_and_gradients(d, x, dtype, experts=experts, chosen=chosen) for d in ("dense", "grouped"))
    if chosen > 1:  # the share of a single expert is 1: the router has no gradient
        assert np.any(np.asarray(dense["params"]["router"], np.float32))
    else:
        assert not np.any(np.asarray(grouped["params"]["router"], np.float32))
    check_alike(grouped, dense, most)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "shape", [(8, 6, 6), (6, 5, 6)]
)  # 6 rows cannot be divided over the 4 devices that share the batch
def test_devices_that_share_batch_and_hidden_width(target: str, shape: tuple[int, ...]) -> None:
    """For CUDA each device routes its own tokens through its part of the hidden width."""
    x = jax.random.normal(jax.random.key(1), shape)
    expected = value_and_gradients("dense", x)
    placed = make_layout(FSDPTensor(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    chosen = for_target(H200) if target == "cuda" else contextlib.nullcontext()
    with layout(placed.sharding), chosen, recording() as choices:
        found = value_and_gradients("grouped", x)
    check_alike(found, expected, 2e-6)
    assert {c.implementation for c in choices} == {"blocked"}
    divided = target == "cuda" and shape[0] == 8
    rows = math.prod(shape[:2]) * 2 // (4 if divided else 1)
    assert choices[0].arrays[0] == f"float32[{rows},6]"
    if target == "cuda" and not divided:
        assert "'batch' of size 6 cannot be divided over 4 devices" in str(choices[0])


def test_on_a_hopper_gpu_all_three_products_are_kernels() -> None:
    graph, params = nnx.split(layer_of("grouped", width=64, mlp_width=128))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), params)
    loss = lambda x, *leaves: jnp.sum(nnx.merge(graph, jax.tree.unflatten(tree, leaves))(x).astype(jnp.float32))
    leaves, tree = jax.tree.flatten(params)
    with recording() as choices:
        text = lower_gradient_for_cuda(loss, jax.ShapeDtypeStruct((2, 32, 64), jnp.bfloat16), *leaves)
    assert {c.implementation for c in choices} == {"mosaic"}
    assert "mosaic_gpu_v2" in custom_calls(text)


def test_mixtral_has_its_published_size() -> None:
    # Mixtral 8x7B (arXiv:2401.04088, table 1): 47B parameters, of which a token uses 13B.
    model = Transformer(
        layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, mlp_width=14336, experts=8, experts_per_token=2
    )
    spec = DataSpec({"inputs": ROW}, vocab_size=32000)
    assert make_network(model, spec).parameter_count == 46_702_792_704
    unused = 32 * 6 * 3 * 4096 * 14336
    assert make_network(model, spec).parameter_count - unused == pytest.approx(12.9e9, rel=0.01)


@pytest.mark.parametrize("offset", [0, 3])
def test_a_window_leaves_the_last_keys(offset: int) -> None:
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(1, n, 2, 4)), jnp.float32) for n in (5, 8, 8))
    found = attention(query, key, value, causal=True, window=3, offset=offset)
    for t in range(5):
        last = t + offset
        kept = slice(max(0, last - 2), last + 1)
        expected = attention(query[:, t : t + 1], key[:, kept], value[:, kept], causal=False)
        np.testing.assert_allclose(found[:, t : t + 1], expected, rtol=1e-5, atol=1e-6)


def test_a_window_hides_what_is_far() -> None:
    network, params = network_of(window=4)
    first = tokens()
    one, two = (network.merge(params, {})({"inputs": x}, train=False) for x in (first, first.at[:, 2].add(1) % 16))
    moved = np.abs(one - two).max(axis=(0, 2)) > 0
    assert moved.tolist() == [False] * 2 + [True] * 4 + [False] * 6


@pytest.mark.parametrize("name", SETTINGS)
def test_decoding_equals_the_whole_row(name: str) -> None:
    network, params = network_of(**SETTINGS[name])
    module, inputs = network.merge(params, {}), tokens()
    expected = module({"inputs": inputs}, train=False)
    decode = jax.jit(lambda p, t, cache, position: network.merge(p, {}).decode(t, cache, position))
    logits, cache = decode(params, inputs[:, :4], module.init_cache(2, 12, jnp.float32), jnp.int32(0))
    parts = [logits]
    for position in range(4, 12):
        logits, cache = decode(params, inputs[:, position : position + 1], cache, jnp.int32(position))
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=1e-4, atol=1e-5)


def test_frequencies_of_llama_3() -> None:
    # Llama 3.1: factor 8, low 1, high 4, context 8192, theta 500000, head_dim 128.
    plain, scaled = frequencies(128, 5e5, 1.0, None), frequencies(128, 5e5, 8.0, (1.0, 4.0, 8192))
    wavelength = 2 * math.pi / plain
    fast, slow = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_allclose(scaled[fast], plain[fast], rtol=1e-12)
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-12)
    smooth = (8192 / wavelength - 1) / 3
    between = ~fast & ~slow
    assert between.sum() > 3
    np.testing.assert_allclose(scaled[between], ((1 - smooth) * plain / 8 + smooth * plain)[between], rtol=1e-12)
    np.testing.assert_allclose(frequencies(128, 5e5, 8.0, None), plain / 8, rtol=1e-12)


@pytest.mark.parametrize(
    ("biases", "there"),
    [
        (("qkv",), {"attention/query", "attention/key", "attention/value"}),
        (("out", "mlp"), {"attention/out", "mlp/gate", "mlp/up", "mlp/down"}),
        (("norm",), {"attention_norm", "mlp_norm"}),
    ],
)
def test_biases_are_where_they_are_asked_for(biases: tuple[str, ...], there: set[str]) -> None:
    network, _ = network_of(biases=biases, norm="layernorm")
    block = network.params["blocks"]["0"]
    names = {f"{part}/{name}" if part in ("attention", "mlp") else part for part in block for name in block[part]}
    found = {
        name
        for name in names
        if "bias" in (block[name] if "/" not in name else block[name.split("/")[0]][name.split("/")[1]])
    }
    assert found == there
    assert ("bias" in network.params["norm"]) == ("norm" in biases)


def test_ids_beyond_the_dataset_s_are_padding() -> None:
    network, params = network_of(vocab_size=24)
    assert network.params["tokens"]["embedding"].shape == (24, 16)
    logits = np.asarray(network.merge(params, {})({"inputs": tokens()}, train=False))
    assert logits.shape[-1] == 24
    assert np.all(logits[..., 16:] == np.float32(-1e30))
    with pytest.raises(ValueError, match=r"vocab_size = 8: must be at least 16, the dataset's vocabulary"):
        dataclasses.replace(SMALL, vocab_size=8).build(TEXT, nnx.Rngs(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 2, "experts_per_token": 3}, r"experts_per_token = 3: must be at most experts = 2"),
        ({"experts": 0}, r"experts = 0: must be at least 1"),
        ({"experts": 2, "activation": "gelu"}, r"activation = 'gelu': must be 'swiglu' with experts"),
        ({"experts": 2, "biases": True}, r"biases = True: experts have none"),
        ({"experts": 2, "biases": ("mlp",)}, r"biases = \('mlp',\): experts have none"),
        ({"window": 0}, r"window = 0: must be at least 1"),
        ({"window_layers": (0,)}, r"window_layers = \(0,\): needs a window"),
        ({"window": 2, "window_layers": (1,)}, r"window_layers = \(1,\): blocks are numbered 0 to 0"),
        ({"rope_scaling": 0.0}, r"rope_scaling = 0\.0: must be greater than 0"),
        ({"rope_band": (4.0, 1.0, 64)}, r"rope_band = .*: must be \(low, high, context\) with 0 <= low < high"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **options)


def test_operations_are_counted_of_the_chosen_experts_alone() -> None:
    def cost(experts: int, dispatch: str) -> int:
        model = dataclasses.replace(SMALL, experts=experts, experts_per_token=2, mlp_width=24, expert_dispatch=dispatch)
        network = make_network(model, TEXT)
        batch = {"inputs": jax.ShapeDtypeStruct((2, 12), jnp.int32)}

        def forward(params: Any, stats: Any, batch: Any) -> Any:
            with counting():
                return network.merge(params, stats)(batch)

        return forward_cost(forward, network.params, network.stats, batch).flops

    router = 2 * (2 * 12) * 16  # of one more expert
    every = 3 * 2 * (2 * 12) * 16 * 24  # the three products of all tokens with one expert
    assert cost(8, "grouped") - cost(4, "grouped") == 4 * router
    assert cost(8, "dense") - cost(4, "dense") == pytest.approx(4 * (router + every), rel=0.1)
