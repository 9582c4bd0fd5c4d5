"""The decoder against published sizes, a numpy implementation of its equations, and the properties that define it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError
from assay.network import Network, make_network
from assay_plugins.models.transformer import Transformer

VOCAB, SEQ = 11, 12
GPT2 = {"norm": "layernorm", "position": "learned", "activation": "gelu_tanh", "tied_head": True, "biases": True}
LLAMA = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "kv_heads": 2}
SETTINGS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "nanogpt": {**GPT2, "biases": False, "activation": "gelu"},
    "qk_norm": {**LLAMA, "qk_norm": True, "head_dim": 6, "rope_theta": 100.0},
    "no_position": {**GPT2, "position": "none", "kv_heads": 1, "tied_head": False},
}


def text_spec(length: int = SEQ, vocab: int = VOCAB) -> DataSpec:
    row = ArraySpec((length,), "int32")
    return DataSpec({"inputs": row, "targets": row}, vocab_size=vocab)


def small(**options: Any) -> Transformer:
    return Transformer(**{"layers": 2, "width": 16, "heads": 4, **options})


def network_of(model: Transformer, spec: DataSpec | None = None) -> tuple[Network, Any]:
    """The network, and parameters drawn with enough spread that every one of them matters."""
    network = make_network(model, spec or text_spec())
    leaves, tree = jax.tree.flatten(network.params)
    rng = np.random.default_rng(0)
    return network, tree.unflatten([jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves])


def tokens(rows: int = 2, length: int = SEQ) -> jax.Array:
    return jax.random.randint(jax.random.key(5), (rows, length), 0, VOCAB)


def logits_of(network: Network, params: Any, **batch: Any) -> np.ndarray:
    call = jax.jit(lambda p, b: network.merge(p, {})(b, train=False, rngs=None))
    return np.asarray(call(params, batch))


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_equations(name: str) -> None:
    model = small(**SETTINGS[name])
    network, params = network_of(model)
    inputs = tokens()
    expected = reference(model, jax.tree.map(np.float64, params), np.asarray(inputs))
    np.testing.assert_allclose(logits_of(network, params, inputs=inputs), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_abstract_build_equals_the_real_one(name: str) -> None:
    network = make_network(small(**SETTINGS[name], layers=1), text_spec())
    params, stats = network.init(jax.random.key(0))
    assert stats == {}
    found, expected = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (params, network.params))
    assert found == expected
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


def test_parameter_names_and_axes() -> None:
    network = make_network(small(**LLAMA), text_spec())
    axes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): names
        for path, names in jax.tree_util.tree_leaves_with_path(network.axes, is_leaf=lambda x: isinstance(x, tuple))
        if "/1/" not in jax.tree_util.keystr(path, simple=True, separator="/")
    }
    assert axes == {
        "tokens/embedding": ("vocab", "embed"),
        "blocks/0/attention_norm/scale": ("embed",),
        "blocks/0/attention/query/kernel": ("embed", "heads", "head_dim"),
        "blocks/0/attention/key/kernel": ("embed", "kv_heads", "head_dim"),
        "blocks/0/attention/value/kernel": ("embed", "kv_heads", "head_dim"),
        "blocks/0/attention/out/kernel": ("heads", "head_dim", "embed"),
        "blocks/0/mlp_norm/scale": ("embed",),
        "blocks/0/mlp/gate/kernel": ("embed", "mlp"),
        "blocks/0/mlp/up/kernel": ("embed", "mlp"),
        "blocks/0/mlp/down/kernel": ("mlp", "embed"),
        "norm/scale": ("embed",),
        "head/kernel": ("embed", "vocab"),
    }


def test_initialisation_is_gpt2s() -> None:
    model = Transformer(layers=2, width=64, heads=4, **GPT2)
    params, _ = make_network(model, text_spec(64, 512)).init(jax.random.key(0))
    block = params["blocks"]["1"]
    for leaf in (params["tokens"]["embedding"], block["attention"]["query"]["kernel"], block["mlp"]["up"]["kernel"]):
        assert np.std(leaf) == pytest.approx(0.02, rel=0.05)
    for leaf in (block["attention"]["out"]["kernel"], block["mlp"]["down"]["kernel"]):
        assert np.std(leaf) == pytest.approx(0.02 / 2, rel=0.05)
    assert not np.any(block["mlp"]["up"]["bias"])
    assert np.all(block["mlp_norm"]["scale"] == 1)
    assert not np.allclose(block["attention"]["query"]["kernel"], params["blocks"]["0"]["attention"]["query"]["kernel"])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_future_does_not_change_the_past(name: str) -> None:
    network, params = network_of(small(**SETTINGS[name]))
    inputs = tokens()
    changed = inputs.at[:, 7].add(1) % VOCAB
    before, after = (logits_of(network, params, inputs=x) for x in (inputs, changed))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.all(np.abs(before[:, 7:] - after[:, 7:]).max(axis=-1) > 1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    network, params = network_of(small(**SETTINGS[name]))
    row = tokens(1)
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3])
    positions = jnp.asarray([[*range(5), *range(4), *range(3)]])
    packed = logits_of(network, params, inputs=row, segment_ids=segments, positions=positions)
    for start, stop in ((0, 5), (5, 9)):
        alone = logits_of(network, params, inputs=row[:, start:stop])
        np.testing.assert_allclose(packed[:, start:stop], alone, rtol=1e-5, atol=1e-5)
    assert np.all(np.isfinite(packed))


def test_rope_sees_distances_only() -> None:
    network, params = network_of(small(**LLAMA))
    inputs = tokens()
    there = jnp.broadcast_to(jnp.arange(SEQ)[None], inputs.shape)
    here, shifted, stretched = (
        logits_of(network, params, inputs=inputs, positions=p) for p in (there, there + 37, 2 * there)
    )
    np.testing.assert_allclose(here, shifted, rtol=1e-3, atol=1e-4)
    assert np.abs(here - stretched).max() > 1e-2


def test_shared_keys_equal_repeated_ones() -> None:
    shared, params = network_of(small(**LLAMA))
    full = make_network(small(**{**LLAMA, "kv_heads": 4}), text_spec())
    repeated = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.repeat(x, 2, axis=1) if {"key", "value"} & {k.key for k in path} else x, params
    )
    inputs = tokens()
    np.testing.assert_allclose(
        logits_of(shared, params, inputs=inputs), logits_of(full, repeated, inputs=inputs), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_decoding_equals_the_whole_row(name: str) -> None:
    network, params = network_of(small(**SETTINGS[name]))
    inputs = tokens()
    expected = logits_of(network, params, inputs=inputs)
    decode = jax.jit(lambda p, t, cache, position: network.merge(p, {}).decode(t, cache, position))
    cache = network.merge(params, {}).init_cache(2, SEQ, jnp.float32)
    first, cache = decode(params, inputs[:, :4], cache, jnp.int32(0))
    parts = [first]
    for position in range(4, SEQ):
        logits, cache = decode(params, inputs[:, position : position + 1], cache, jnp.int32(position))
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=1e-4, atol=1e-5)


def test_rematerialisation_changes_no_number() -> None:
    inputs = tokens()
    found = {}
    for remat in ("none", "full", "dots"):
        network, params = network_of(small(**LLAMA, layers=1, dropout=0.2, remat=remat))

        def loss(params: Any, network: Network = network) -> jax.Array:
            return jnp.sum(network.merge(params, {})({"inputs": inputs}, train=True, rngs=nnx.Rngs(3)) ** 2)

        found[remat] = jax.jit(jax.value_and_grad(loss))(params)
        computed = str(jax.make_jaxpr(jax.grad(loss))(params)).count("remat")
        assert (computed > 0) == (remat != "none")
    for remat in ("full", "dots"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found["none"], found[remat])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bfloat16_is_near_and_gradients_are_finite(name: str) -> None:
    network, params = network_of(small(**SETTINGS[name]))
    params = jax.tree.map(lambda x: x / 5, params)
    inputs = tokens()

    def loss(params: Any, dtype: str) -> tuple[jax.Array, jax.Array]:
        logits = network.merge(params, {}, dtype)({"inputs": inputs}, train=True, rngs=None)
        return jnp.mean(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)), logits

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (gradients, logits), (_, exact) = gradient(params, "bfloat16"), gradient(params, "float32")
    assert logits.dtype == jnp.bfloat16
    assert float(jnp.abs(logits - exact).max()) < 0.02
    assert all(x.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(gradients))


def test_dropout_happens_in_training_only() -> None:
    network, params = network_of(small(**GPT2, dropout=0.5))
    inputs = tokens()
    call = jax.jit(lambda p, key: network.merge(p, {})({"inputs": inputs}, train=True, rngs=nnx.Rngs(key)))
    first, again, other = (np.asarray(call(params, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    plain, _ = network_of(small(**GPT2))
    np.testing.assert_array_equal(logits_of(network, params, inputs=inputs), logits_of(plain, params, inputs=inputs))
    with pytest.raises(ValueError, match=r"dropout = 0\.5: a call with train=True needs rngs"):
        network.merge(params, {})({"inputs": inputs}, train=True, rngs=None)


def test_padded_vocabulary_has_no_probability() -> None:
    network, params = network_of(small(**LLAMA, vocab_multiple=8))
    logits = logits_of(network, params, inputs=tokens())
    assert logits.shape[-1] == 16
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1))
    assert np.all(probabilities[..., VOCAB:] == 0)
    cut = jax.tree.map(lambda x: x, params)
    cut["tokens"]["embedding"] = params["tokens"]["embedding"][:VOCAB]
    cut["head"]["kernel"] = params["head"]["kernel"][:, :VOCAB]
    expected = logits_of(make_network(small(**LLAMA), text_spec()), cut, inputs=tokens())
    np.testing.assert_allclose(logits[..., :VOCAB], expected, rtol=1e-5, atol=1e-5)


def test_context_beyond_the_rows() -> None:
    network = make_network(small(**GPT2, context=20), text_spec())
    assert network.params["positions"]["embedding"].shape == (20, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"heads = 3: must divide width = 16, or set head_dim"),
        ({"kv_heads": 3}, r"kv_heads = 3: must divide heads = 4"),
        ({"layers": 0}, r"layers = 0: must be at least 1"),
        ({"mlp_width": 0}, r"mlp_width = 0: must be at least 1"),
        ({"dropout": 1.0}, r"dropout = 1.0: must be at least 0 and less than 1"),
        ({"head_dim": 5}, r"head_dim = 5: must be even with position = 'rope'"),
    ],
)
def test_bad_sizes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_bad_data() -> None:
    images = DataSpec({"image": ArraySpec((8, 8, 1), "float32")}, num_classes=10)
    with pytest.raises(
        ConfigError, match=r"model\.transformer needs a dataset of tokens; this one has image \(8, 8, 1\)"
    ):
        small().build(images, nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"context = 4: must be at least 12"):
        small(context=4).build(text_spec(), nnx.Rngs(0))


def reference(model: Transformer, params: Any, inputs: np.ndarray) -> np.ndarray:
    """The decoder in float64 numpy, written from the papers with a loop over heads and positions."""
    x = params["tokens"]["embedding"][inputs]
    if model.position == "learned":
        x = x + params["positions"]["embedding"][None, : inputs.shape[1]]
    for i in range(model.layers):
        block = params["blocks"][str(i)]
        x = x + _attention(model, block["attention"], _norm(model, block["attention_norm"], x))
        x = x + _feed_forward(model, block["mlp"], _norm(model, block["mlp_norm"], x))
    x = _norm(model, params["norm"], x)
    head = params["tokens"]["embedding"].T if model.tied_head else params["head"]["kernel"]
    return x @ head


def _norm(model: Transformer, p: Any, x: np.ndarray) -> np.ndarray:
    if model.norm == "rmsnorm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_epsilon) * p["scale"]
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + model.norm_epsilon) * p["scale"]
    return y + p["bias"] if "bias" in p else y


def _attention(model: Transformer, p: Any, x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    size = p["query"]["kernel"].shape[2]
    for head in range(model.heads):
        shared = head * (model.kv_heads or model.heads) // model.heads
        q, k, v = (
            x @ p[name]["kernel"][:, h] + (p[name]["bias"][h] if model.biases else 0)
            for name, h in (("query", head), ("key", shared), ("value", shared))
        )
        if model.qk_norm:
            q, k = _norm(model, p["query_norm"], q), _norm(model, p["key_norm"], k)
        if model.position == "rope":
            q, k = _turned(model, q), _turned(model, k)
        for t in range(x.shape[1]):
            scores = np.einsum("bd,bsd->bs", q[:, t], k[:, : t + 1]) / np.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[:, t] += np.einsum("bs,bsd->bd", weights, v[:, : t + 1]) @ p["out"]["kernel"][head]
    return out + p["out"]["bias"] if model.biases else out


def _turned(model: Transformer, x: np.ndarray) -> np.ndarray:
    """Pairs (i, i + half) as complex numbers, times e^(i angle)."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * model.rope_theta ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _feed_forward(model: Transformer, p: Any, x: np.ndarray) -> np.ndarray:
    def linear(name: str, y: np.ndarray) -> np.ndarray:
        return y @ p[name]["kernel"] + (p[name]["bias"] if model.biases else 0)

    up = linear("up", x)
    if model.activation == "swiglu":
        gate = linear("gate", x)
        hidden = gate / (1 + np.exp(-gate)) * up
    elif model.activation == "gelu":
        hidden = up * 0.5 * (1 + np.vectorize(math.erf)(up / np.sqrt(2)))
    else:
        hidden = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return linear("down", hidden)
