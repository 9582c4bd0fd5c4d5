"""Mamba-2 against a float64 recurrence written in numpy, and the properties that define it."""

import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay import config, registry
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError
from assay.network import Network, make_network
from assay.parallel.constrain import layout as active_layout
from assay.parallel.layout import make_layout, parameter_shardings
from assay.plan.flops import forward_cost
from assay.testing.examples import SPECS, batch_of
from assay.testing.model import ModelKit
from assay.train.launch import start
from assay_kernels.linear_scan import linear_scan, runs_of, step
from assay_plugins.models.mamba2 import Mamba2
from assay_plugins.objectives.next_token import NextToken
from assay_plugins.parallelism.fsdp import FSDP
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor
from assay_plugins.parallelism.tensor import Tensor
from assay_plugins.tokenizers.char import Char

VOCAB, SEQ = 11, 13
EXPERIMENT = Path(__file__).parents[2] / "experiments/lm_code_ssm.gin"


def recurrence(x, log_decay, b, c, runs, state=None):
    """The definition, position by position in float64: shapes as `linear_scan` has them."""
    x, log_decay, b, c = (np.asarray(a, np.float64) for a in (x, log_decay, b, c))
    share = x.shape[2] // b.shape[2]
    h = np.zeros((*x.shape[:1], *x.shape[2:], b.shape[-1])) if state is None else np.asarray(state, np.float64)
    outputs = np.zeros(x.shape)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            for head in range(x.shape[2]):
                goes_on = t == 0 or runs[row][t] == runs[row][t - 1]
                decay = math.exp(log_decay[row, t, head]) if goes_on else 0.0
                new = np.outer(x[row, t, head], b[row, t, head // share])
                h[row, head] = decay * h[row, head] + new
                outputs[row, t, head] = h[row, head] @ c[row, t, head // share]
    return outputs, h


def drawn(length: int, *, heads: int = 4, groups: int = 2, rows: int = 2, rate: float = 0.5):
    """(x, log_decay, b, c), such that sums over a row are of size 1."""
    rng = np.random.default_rng(length)
    x = 0.3 * rng.normal(size=(rows, length, heads, 3))
    log_decay = -rate * rng.exponential(size=(rows, length, heads))
    b, c = 0.5 * rng.normal(size=(2, rows, length, groups, 5))
    return tuple(jnp.asarray(a, jnp.float32) for a in (x, log_decay, b, c))


def random_runs(length: int, rows: int = 2) -> np.ndarray:
    """Documents of random lengths; the first row has one document."""
    starts = np.random.default_rng(7).random((rows, length)) < 0.15
    starts[0], starts[:, 0] = False, False
    return np.cumsum(starts, axis=1).astype(np.int32)


def by_steps(x, log_decay, b, c, runs, state):
    """`step` over the positions, the state set to 0 between documents."""
    outputs = []
    for t in range(x.shape[1]):
        if t:
            state = jnp.where((runs[:, t] == runs[:, t - 1])[:, None, None, None], state, 0)
        y, state = step(x[:, t], log_decay[:, t], b[:, t], c[:, t], state)
        outputs.append(y)
    return jnp.stack(outputs, axis=1), state


@pytest.mark.parametrize("length", [1, 16, 45])
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_equal_the_recurrence(length: int, packed: bool) -> None:
    arrays, runs = drawn(length), random_runs(length) * packed
    state = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 3, 5)), jnp.float32)
    given = jnp.asarray(runs) if packed else None
    y, last = jax.jit(lambda *a: linear_scan(*a, chunk=8, runs=given, state=state))(*arrays)
    for expected, expected_last in (recurrence(*arrays, runs, state), by_steps(*arrays, runs, state)):
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(last, expected_last, rtol=0, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_chunks_equal_those_of_the_recurrence(packed: bool) -> None:
    length = 21
    arrays, runs = drawn(length), jnp.asarray(random_runs(length) * packed)
    state = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 3, 5)), jnp.float32)
    weights = jax.random.normal(jax.random.key(3), arrays[0].shape)

    def loss(arrays: Any, chunked: bool) -> jax.Array:
        *arrays, state = arrays
        if chunked:
            y, last = linear_scan(*arrays, chunk=8, runs=runs if packed else None, state=state)
        else:
            y, last = by_steps(*arrays, runs, state)
        return jnp.sum(y * weights) + jnp.sum(last**2)

    found, expected = (
        jax.jit(jax.grad(loss), static_argnums=1)((*arrays, state), chunked) for chunked in (True, False)
    )
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
        assert np.abs(np.asarray(two)).max() > 0.1


def test_strong_decay_gives_finite_gradients() -> None:
    arrays = drawn(32, rate=40.0)

    def total(*arrays: Any) -> tuple[jax.Array, jax.Array]:
        y, _ = linear_scan(*arrays, chunk=32)
        return jnp.sum(y**2), y

    gradients, y = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_allclose(y, recurrence(*arrays, random_runs(32) * 0)[0], atol=1e-5)


def test_segments_become_runs() -> None:
    segments = jnp.asarray([[1, 1, 2, 2, 0, 0], [3, 3, 3, 1, 3, 3]])
    np.testing.assert_array_equal(runs_of(segments), [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2]])


def text_spec(length: int = SEQ, vocab: int = VOCAB) -> DataSpec:
    row = ArraySpec((length,), "int32")
    return DataSpec({"inputs": row, "targets": row}, vocab_size=vocab)


def small(**options: Any) -> Mamba2:
    return Mamba2(**{"layers": 2, "width": 16, "heads": 4, "state": 5, "groups": 2, "chunk": 4, **options})


SETTINGS = {
    "plain": {},
    "shared": {"groups": 1, "head_dim": 3, "tied_head": True},
    "long_convolution": {"convolution": 6, "chunk": 64},
    "no_convolution": {"convolution": 1},
}


def network_of(model: Mamba2, spec: DataSpec | None = None) -> tuple[Network, Any]:
    """The network, and parameters drawn with enough spread that every one of them matters."""
    network = make_network(model, spec or text_spec())
    leaves, tree = jax.tree.flatten(network.params)
    rng = np.random.default_rng(0)
    return network, tree.unflatten([jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves])


def tokens(rows: int = 2, length: int = SEQ) -> jax.Array:
    return jax.random.randint(jax.random.key(5), (rows, length), 0, VOCAB)


def packed_row() -> dict[str, jax.Array]:
    return {
        "inputs": tokens(),
        "segment_ids": jnp.asarray([[1] * 5 + [2] * 6 + [0] * 2, [1] * 2 + [2] * 2 + [3] * 9]),
        "positions": jnp.asarray([[*range(5), *range(6), 0, 1], [0, 1, 0, 1, *range(9)]]),
    }


def logits_of(network: Network, params: Any, **batch: Any) -> np.ndarray:
    call = jax.jit(lambda p, b: network.merge(p, {})(b, train=False, rngs=None))
    return np.asarray(call(params, batch))


@pytest.mark.parametrize(("name", "packed"), [("plain", False), *((name, True) for name in SETTINGS)])
def test_equals_the_equations(name: str, packed: bool) -> None:
    model = small(**SETTINGS[name])
    network, params = network_of(model)
    batch = packed_row() if packed else {"inputs": tokens()}
    expected = reference(model, jax.tree.map(np.float64, params), batch)
    np.testing.assert_allclose(logits_of(network, params, **batch), expected, rtol=2e-5, atol=2e-5)


def reference(model: Mamba2, params: Any, batch: Any) -> np.ndarray:
    """Logits in float64, each position and head on its own."""
    table = params["tokens"]["embedding"]
    ids = np.asarray(batch["inputs"])
    segments = np.asarray(batch.get("segment_ids", np.zeros_like(ids)))
    x = table[ids]
    for i in range(model.layers):
        p = params["blocks"][str(i)]
        x = x + np_mixer(model, p["mixer"], np_unit(x, model.norm_epsilon) * p["norm"]["scale"], segments)
    x = np_unit(x, model.norm_epsilon) * params["norm"]["scale"]
    return x @ (table.T if model.tied_head else params["head"]["kernel"])


def np_mixer(model: Mamba2, p: Any, u: np.ndarray, segments: np.ndarray) -> np.ndarray:
    rows, length, _ = u.shape
    maps = {name: np.tensordot(u, p[name]["kernel"], axes=1) for name in ("z", "x", "b", "c", "dt")}
    x, b, c = (np_silu(np_convolution(p[f"{n}_convolution"], maps[n], segments)) for n in "xbc")
    b, c = (part.reshape(rows, length, model.groups, model.state) for part in (b, c))
    dt = np.log1p(np.exp(maps["dt"] + p["dt_bias"]))
    y, _ = recurrence(dt[..., None] * x, -np.exp(p["log_rate"]) * dt, b, c, segments)
    y = (y + p["skip"][:, None] * x) * np_silu(maps["z"])
    unit = np_unit(y.reshape(rows, length, model.groups, -1), model.norm_epsilon).reshape(y.shape)
    return np.tensordot(unit * p["scale"], p["out"]["kernel"], axes=2)


def np_convolution(p: Any, x: np.ndarray, segments: np.ndarray) -> np.ndarray:
    taps, y = p["kernel"].shape[0], np.zeros(x.shape) + p["bias"]
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            for back in range(min(taps, t + 1)):
                if np.all(segments[row, t - back : t + 1] == segments[row, t]):
                    y[row, t] += p["kernel"][taps - 1 - back] * x[row, t - back]
    return y


def np_silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def np_unit(x: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)


def test_packed_documents_do_not_see_each_other() -> None:
    network, params = network_of(small())
    batch = packed_row()
    packed = logits_of(network, params, **batch)
    for row, begin, end in ((0, 0, 5), (0, 5, 11), (1, 0, 2), (1, 2, 4), (1, 4, 13)):
        alone = logits_of(network, params, inputs=batch["inputs"][row : row + 1, begin:end])
        np.testing.assert_allclose(packed[row, begin:end], alone[0], rtol=1e-5, atol=1e-5)
    apart = {**batch, "segment_ids": jnp.ones_like(batch["inputs"])}
    assert np.abs(logits_of(network, params, **apart) - packed).max() > 1e-2


def test_the_future_does_not_change_the_past() -> None:
    network, params = network_of(small())
    inputs = tokens()
    before, after = (logits_of(network, params, inputs=x) for x in (inputs, inputs.at[:, 7].add(1) % VOCAB))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.all(np.abs(before[:, 7:] - after[:, 7:]).max(axis=-1) > 1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_decoding_equals_the_whole_row(name: str) -> None:
    network, params = network_of(small(**SETTINGS[name], layers=1))
    inputs, prompt = tokens(), 6
    expected = logits_of(network, params, inputs=inputs)
    decode = jax.jit(lambda p, t, cache, position: network.merge(p, {}).decode(t, cache, position))
    cache = network.merge(params, {}).init_cache(2, SEQ, jnp.float32)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), cache)
    first, cache = decode(params, inputs[:, :prompt], cache, jnp.int32(0))
    parts = [first]
    ends = [*range(prompt, SEQ - 2), SEQ]  # one by one, and three together at the end
    for position, end in itertools.pairwise(ends):
        logits, cache = decode(params, inputs[:, position:end], cache, jnp.int32(position))
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=1e-5, atol=1e-5)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), cache) == shapes


def test_a_decoded_position_costs_the_same_in_any_length() -> None:
    network, params = network_of(small())

    def cost(length: int) -> int:
        cache = network.merge(params, {}).init_cache(2, length, jnp.float32)
        decode = lambda p, cache: network.merge(p, {}).decode(tokens(length=1), cache, length - 1)
        return forward_cost(decode, params, cache).flops

    assert 0 < cost(8) == cost(4096) < forward_cost(lambda p: network.merge(p, {})({"inputs": tokens()}), params).flops


class Whole(nnx.Module):
    """A model without its `decode`, so that sampling reads the whole window for each token."""

    def __init__(self, module: nnx.Module) -> None:
        self.module = module

    def __call__(self, batch: Any, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        return self.module(batch, train=train, rngs=rngs)


def test_samples_from_the_state_are_those_from_whole_windows() -> None:
    encoder = Char().fit(["abcdefghijk"])
    row = ArraySpec((8,), "int32")
    spec = DataSpec({"inputs": row, "targets": row}, vocab_size=encoder.vocab_size, encoder=encoder)
    network, params = network_of(small(layers=1), spec)
    texts = [
        NextToken().sample(module, spec, ["a", "dcba"], length=12, temperature=1.0, top_k=None, seed=0)
        for module in (network.merge(params, {}), Whole(network.merge(params, {})))
    ]
    assert texts[0] == texts[1]
    assert all(len(text) == 12 for text in texts[0])


def test_chunks_change_no_value() -> None:
    network, params = network_of(small(layers=1))
    expected = logits_of(network, params, **packed_row())
    for chunk in (5, 64):
        other = make_network(small(layers=1, chunk=chunk), text_spec())
        np.testing.assert_allclose(logits_of(other, params, **packed_row()), expected, rtol=1e-5, atol=1e-5)


def test_parameter_names_and_axes() -> None:
    network = make_network(small(), text_spec())
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): names
        for path, names in jax.tree_util.tree_leaves_with_path(network.axes, is_leaf=lambda x: isinstance(x, tuple))
        if "/1/" not in jax.tree_util.keystr(path, simple=True, separator="/")
    }
    inner, mixer = ("heads", "head_dim"), "blocks/0/mixer"
    assert found == {
        "tokens/embedding": ("vocab", "embed"),
        "blocks/0/norm/scale": ("embed",),
        f"{mixer}/z/kernel": ("embed", *inner),
        f"{mixer}/x/kernel": ("embed", *inner),
        f"{mixer}/b/kernel": ("embed", "head_dim"),
        f"{mixer}/c/kernel": ("embed", "head_dim"),
        f"{mixer}/dt/kernel": ("embed", "heads"),
        f"{mixer}/x_convolution/kernel": (None, *inner),
        f"{mixer}/x_convolution/bias": inner,
        f"{mixer}/b_convolution/kernel": (None, "head_dim"),
        f"{mixer}/b_convolution/bias": ("head_dim",),
        f"{mixer}/c_convolution/kernel": (None, "head_dim"),
        f"{mixer}/c_convolution/bias": ("head_dim",),
        f"{mixer}/dt_bias": ("heads",),
        f"{mixer}/log_rate": ("heads",),
        f"{mixer}/skip": ("heads",),
        f"{mixer}/scale": inner,
        f"{mixer}/out/kernel": (*inner, "embed"),
        "norm/scale": ("embed",),
        "head/kernel": ("embed", "vocab"),
    }


def test_the_published_model_has_its_parameters() -> None:
    # mamba2-130m, counted in the `transformers` library: state 128, one group, vocabulary 50277 padded to 50288, tied.
    model = Mamba2(layers=24, width=768, heads=24, state=128, tied_head=True, vocab_multiple=16)
    assert make_network(model, text_spec(8, 50277)).parameter_count == 128_989_632


def test_initial_time_steps_and_rates_lie_in_their_ranges() -> None:
    params, _ = make_network(small(heads=1, head_dim=2, groups=1), text_spec()).init(jax.random.key(0))
    wide, _ = make_network(small(heads=512, head_dim=1, groups=1, layers=1), text_spec()).init(jax.random.key(0))
    mixer = wide["blocks"]["0"]["mixer"]
    steps, rates = np.log1p(np.exp(np.float64(mixer["dt_bias"]))), np.exp(mixer["log_rate"])
    assert steps.min() == pytest.approx(1e-3, rel=0.1)
    assert steps.max() == pytest.approx(0.1, rel=0.1)
    assert np.log(steps).mean() == pytest.approx(math.log(1e-2), rel=0.05)
    assert rates.min() == pytest.approx(1, rel=0.1)
    assert rates.max() == pytest.approx(16, rel=0.1)
    assert params["blocks"]["0"]["mixer"]["log_rate"].shape == (1,)


@pytest.mark.parametrize(
    "parallelism",
    [
        pytest.param(FSDP(), id="fsdp", marks=pytest.mark.slow),
        pytest.param(Tensor(), id="tensor", marks=pytest.mark.slow),
        pytest.param(FSDPTensor(tensor=4), id="both"),
    ],
)
def test_every_layout_gives_the_same_logits_and_gradients(parallelism: Any) -> None:
    network, params = network_of(small(heads=8, layers=1, groups=1), text_spec(16, 16))
    batch = {**batch_of(network.spec, 8), "segment_ids": jnp.repeat(jnp.arange(4)[None], 4, axis=1).repeat(8, axis=0)}
    layout = make_layout(parallelism)

    def loss(params: Any, batch: Any, placed: bool) -> jax.Array:
        module: Any = network.merge(params, {})
        if not placed:
            return jnp.mean(jax.nn.logsumexp(module(batch), axis=-1))
        with active_layout(layout.sharding):
            return jnp.mean(jax.nn.logsumexp(module(batch), axis=-1))

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=2)
    expected = gradient(params, batch, False)
    shardings = parameter_shardings(layout, network.params, network.axes)
    there = jax.device_put(params, shardings)
    kernel = there["blocks"]["0"]["mixer"]["x"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape
    rows = {k: jax.device_put(v, layout.batch(np.ndim(v))) for k, v in batch.items()}
    found = gradient(there, rows, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


@pytest.mark.parametrize("chunk", [64, 511])
def test_sums_are_fp32_under_bfloat16(chunk: int) -> None:
    # 511 equal terms: a sum kept in bf16 stops growing at 256, and one rounded to bf16 is 512.
    ones = lambda *shape: jnp.ones((1, 511, *shape), jnp.bfloat16)
    y, state = linear_scan(ones(1, 1), jnp.zeros((1, 511, 1)), ones(1, 1), ones(1, 1), chunk=chunk)
    assert y.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    assert float(state[0, 0, 0, 0]) == 511
    np.testing.assert_array_equal(y[0, :, 0, 0], jnp.arange(1, 512).astype(jnp.bfloat16))


def test_dropout_happens_in_training_only() -> None:
    network, params = network_of(small(dropout=0.5))
    inputs = tokens()
    call = jax.jit(lambda p, key: network.merge(p, {})({"inputs": inputs}, train=True, rngs=nnx.Rngs(key)))
    first, again, other = (np.asarray(call(params, jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    plain = make_network(small(), text_spec())
    np.testing.assert_array_equal(logits_of(network, params, inputs=inputs), logits_of(plain, params, inputs=inputs))


def test_padded_vocabulary_has_no_probability() -> None:
    network, params = network_of(small(vocab_multiple=8, tied_head=True))
    probabilities = jax.nn.softmax(jnp.asarray(logits_of(network, params, inputs=tokens())), axis=-1)
    assert probabilities.shape[-1] == 16
    assert np.all(probabilities[..., VOCAB:] == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3, "groups": 1}, r"heads = 3: must divide 2 width = 32, or set head_dim"),
        ({"groups": 3}, r"groups = 3: must divide heads = 4"),
        ({"layers": 0}, r"layers = 0: must be at least 1"),
        ({"state": 0}, r"state = 0: must be at least 1"),
        ({"convolution": 0}, r"convolution = 0: must be at least 1"),
        ({"chunk": 0}, r"chunk = 0: must be at least 1"),
        ({"dropout": 1.0}, r"dropout = 1\.0: must be at least 0 and less than 1"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_images_are_refused() -> None:
    spec = DataSpec({"image": ArraySpec((8, 8, 1), "float32")}, num_classes=10)
    with pytest.raises(ConfigError, match=r"model\.mamba2 needs a dataset of tokens"):
        make_network(small(), spec)


@pytest.mark.slow
def test_the_experiment_learns_at_a_reduced_size(tmp_path: Path) -> None:
    settings = ["STEPS=60", "model.mamba2.layers=2", "model.mamba2.width=64", "model.mamba2.state=16", "CONTEXT=64"]
    settings += ["dataset.python_stdlib.max_bytes=300_000", "tokenizer.bpe.vocab_size=300", "experiment.trackers=[]"]
    settings += ["schedule.cosine.warmup_steps=10", "experiment.sample_every=0", "parallelism.data_parallel.data=1"]
    with registry.temporary("model", "mamba2", Mamba2):
        loaded = config.load(EXPERIMENT, settings)
        finished = start(loaded, tmp_path)
    assert finished.status == "completed"
    assert finished.values["validation/loss"] < 0.85 * math.log(300)


@pytest.mark.slow
class TestKit(ModelKit):
    def plugin(self) -> Mamba2:
        return Mamba2(layers=1, width=16, heads=8, state=8, chunk=8)


@pytest.mark.slow
class TestKitPacked(TestKit):
    """Rows of three documents, the last one padding."""

    def spec(self) -> DataSpec:
        row = ArraySpec((16,), "int32")
        return DataSpec({**SPECS["tokens"].elements, "segment_ids": row, "positions": row}, vocab_size=48)

    def batch(self, size: int) -> dict[str, np.ndarray]:
        segments = np.repeat([[1, 2, 0]], [7, 6, 3], axis=1)
        return {**batch_of(self.spec(), size), "segment_ids": np.repeat(segments, size, axis=0).astype(np.int32)}
