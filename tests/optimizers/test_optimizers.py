"""Optimizers against their published formulas in numpy, in float64, and against optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from assay.kinds import Optimizer
from assay.parallel.layout import bytes_per_device, make_layout, parameter_shardings, state_shardings
from assay_plugins.optimizers.adafactor import Adafactor
from assay_plugins.optimizers.adamw import AdamW
from assay_plugins.optimizers.lion import Lion
from assay_plugins.optimizers.muon import Muon
from assay_plugins.optimizers.sgd import SGD
from assay_plugins.parallelism.fsdp import FSDP
from assay_plugins.schedules.linear import Linear

ALL = [AdamW, Lion, SGD, Adafactor, Muon]
AXES = {
    "embedding": ("vocab", "embed"),
    "block": {
        "up": ("embed", "mlp"),
        "bias": ("mlp",),
        "query": ("embed", "heads", "head_dim"),
        "shift": ("heads", "head_dim"),
    },
    "stack": {"scale": ("layers", "embed"), "down": ("layers", "mlp", "embed")},
    "conv": (None, None, "conv_in", "conv_out"),
}
SHAPES = {
    "embedding": (11, 6),
    "block": {"up": (6, 9), "bias": (9,), "query": (6, 3, 4), "shift": (3, 4)},
    "stack": {"scale": (2, 6), "down": (2, 9, 6)},
    "conv": (3, 3, 2, 5),
}
MATRICES = {"embedding", "block/up", "block/query", "stack/down", "conv"}
STEPS = 4
RATE = Linear(peak=0.03, warmup_steps=2, final=0.1)


def draw(seed):
    """A tree of normal arrays like the parameters, by path."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: generator.normal(size=shape).astype(np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def flat(tree):
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x)
        for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


GRADIENTS = [draw(seed) for seed in range(1, STEPS + 1)]


def trained(transformation):
    """The parameters after STEPS steps from draw(0), by path, and the state."""
    update = jax.jit(transformation.update)
    params = jax.tree.map(jnp.asarray, draw(0))
    state = transformation.init(params)
    for gradients in GRADIENTS:
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return flat(params), state


def expected(rule, *, clip=None, rate=RATE):
    """The same with `rule(memory, t, lr, parameter, gradient, decays) -> parameter` in float64; memory is one dict for each."""
    rate = rate.build(STEPS)
    params = {name: value.astype(np.float64) for name, value in flat(draw(0)).items()}
    memories = {name: {} for name in params}
    for t, tree in enumerate(GRADIENTS, 1):
        gradients = {name: value.astype(np.float64) for name, value in flat(tree).items()}
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        factor = 1.0 if clip is None else min(1.0, clip / norm)
        for name, p in params.items():
            params[name] = rule(memories[name], t, float(rate(t - 1)), p, factor * gradients[name], name in MATRICES)
    return params


def assert_same(ours, theirs, rtol=2e-5):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, atol=1e-6, err_msg=name)


def adamw_rule(b1, b2, eps, decay):
    def rule(memory, t, lr, p, g, decays):
        memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
        memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
        step = memory["m"] / (1 - b1**t) / (np.sqrt(memory["v"] / (1 - b2**t)) + eps)
        return p - lr * (step + decay * decays * p)

    return rule


def test_adamw_at_nanogpts_settings():
    plugin = AdamW(learning_rate=RATE, b1=0.9, b2=0.99, weight_decay=0.1, clip_norm=1.0)
    assert_same(trained(plugin.build(STEPS, AXES))[0], expected(adamw_rule(0.9, 0.99, 1e-8, 0.1), clip=1.0))


def test_a_wide_clip_changes_nothing():
    ours, _ = trained(SGD(learning_rate=RATE, clip_norm=1e4).build(STEPS, AXES))
    assert_same(ours, trained(SGD(learning_rate=RATE).build(STEPS, AXES))[0], rtol=0)


def test_a_gradient_that_is_not_finite_is_not_hidden():
    transformation = SGD(learning_rate=0.1, clip_norm=1.0).build(1, {"w": (None,)})
    params = {"w": jnp.ones(2)}
    for bad in (jnp.nan, jnp.inf):
        updates, _ = transformation.update({"w": jnp.asarray([1.0, bad])}, transformation.init(params), params)
        assert not np.isfinite(updates["w"]).all()


def test_lion():
    def rule(memory, t, lr, p, g, decays):
        m = memory.get("m", np.zeros_like(g))
        memory["m"] = 0.98 * m + 0.02 * g
        return p - lr * (np.sign(0.9 * m + 0.1 * g) + 0.3 * decays * p)

    plugin = Lion(learning_rate=RATE, b1=0.9, b2=0.98, weight_decay=0.3, clip_norm=2.0)
    assert_same(trained(plugin.build(STEPS, AXES))[0], expected(rule, clip=2.0))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(nesterov):
    def rule(memory, t, lr, p, g, decays):
        g = g + 0.01 * decays * p
        memory["m"] = 0.9 * memory.get("m", 0) + g
        return p - lr * (g + 0.9 * memory["m"] if nesterov else memory["m"])

    plugin = SGD(learning_rate=RATE, momentum=0.9, nesterov=nesterov, weight_decay=0.01, clip_norm=1.0)
    assert_same(trained(plugin.build(STEPS, AXES))[0], expected(rule, clip=1.0))


def test_sgd_without_momentum_has_no_memory():
    ours, state = trained(SGD(learning_rate=RATE, momentum=0.0).build(STEPS, AXES))
    assert_same(ours, expected(lambda memory, t, lr, p, g, decays: p - lr * g))
    assert all(leaf.shape == () for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("relative", [False, True])
def test_adafactor(relative):
    def rms(x):
        return np.sqrt(np.mean(x**2))

    def rule(memory, t, lr, p, g, decays):
        beta, square = 1 - t**-0.8, g**2 + 1e-30
        large = sorted(np.argsort(g.shape)[-2:]) if g.ndim > 1 and sorted(g.shape)[-2] >= 6 else None
        if large is None:
            second = memory["v"] = beta * memory.get("v", 0) + (1 - beta) * square
        else:
            row, column = (square.mean(axis=i, keepdims=True) for i in large)
            memory["r"] = beta * memory.get("r", 0) + (1 - beta) * row
            memory["c"] = beta * memory.get("c", 0) + (1 - beta) * column
            second = memory["r"] * memory["c"] / memory["r"].mean(axis=large[1], keepdims=True)
        step = g / np.sqrt(second)
        step /= max(1.0, rms(step) / 0.7)
        step *= max(1e-3, rms(p)) if relative else 1.0
        return p - lr * (step + 0.1 * decays * p)

    plugin = Adafactor(learning_rate=RATE, relative=relative, update_clip=0.7, factor_from=6, weight_decay=0.1)
    ours, state = trained(plugin.build(STEPS, AXES))
    assert_same(ours, expected(rule), rtol=1e-4)
    factored = next(s for s in state if isinstance(s, optax.FactoredState))
    assert factored.v_row["embedding"].shape == (6,)
    assert factored.v_col["embedding"].shape == (11,)


def newton_schulz(g):
    """Five quintic steps on a matrix (inputs, outputs)."""
    x = g / np.linalg.norm(g)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon(nesterov):
    hidden = {(6, 9): (6, 9), (6, 3, 4): (6, 12), (3, 3, 2, 5): (18, 5)}
    adam = adamw_rule(0.9, 0.95, 1e-8, 0.1)

    def rule(memory, t, lr, p, g, decays):
        stacked = g.shape == (2, 9, 6)
        if g.shape not in hidden and not stacked:
            return adam(memory, t, lr, p, g, decays)
        memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
        # optax corrects m's bias one step ahead where it looks ahead
        m = 0.9 * memory["m"] / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t) if nesterov else memory["m"]
        matrices = list(m) if stacked else [m.reshape(hidden[g.shape])]
        directions = [newton_schulz(x) * 0.2 * np.sqrt(max(x.shape)) for x in matrices]
        return p - lr * (np.reshape(directions, g.shape) + 0.1 * p)

    plugin = Muon(learning_rate=RATE, momentum=0.9, nesterov=nesterov, clip_norm=1.0)
    ours, state = trained(plugin.build(STEPS, AXES))
    assert_same(ours, expected(rule, clip=1.0), rtol=2e-4)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim > 1)
    moments = [x.shape for name, x in flat(draw(0)).items() if x.ndim > 1]
    assert shapes == sorted([*moments, (11, 6), (3, 4), (2, 6)])  # a second moment where AdamW works


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        (AdamW(learning_rate=0.01, weight_decay=0.1, decay_mask="all"), optax.adamw(0.01, weight_decay=0.1)),
        (Lion(learning_rate=0.01, weight_decay=0.1, decay_mask="all"), optax.lion(0.01, weight_decay=0.1)),
        (SGD(learning_rate=0.01, nesterov=True), optax.sgd(0.01, momentum=0.9, nesterov=True)),
        (Adafactor(learning_rate=0.01, factor_from=6), optax.adafactor(0.01, min_dim_size_to_factor=6)),
    ],
)
def test_the_same_as_optaxs(ours, published):
    assert_same(trained(ours.build(STEPS, AXES))[0], trained(published)[0], rtol=1e-6)


@pytest.mark.parametrize("plugin", ALL)
def test_a_plugin_of_its_kind_with_state_in_fp32_under_the_parameters_names(plugin):
    optimizer = plugin(learning_rate=RATE)
    assert isinstance(optimizer, Optimizer)
    _, state = trained(optimizer.build(STEPS, AXES))
    shapes = {name: x.shape for name, x in flat(draw(0)).items()}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        if leaf.ndim == 0:
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        parameter = [p for p in shapes if name.endswith("/" + p)]
        assert leaf.dtype == jnp.float32
        assert parameter or name.endswith("ns_coeffs")
        assert plugin is Adafactor or not parameter or shapes[parameter[0]] == leaf.shape


@pytest.mark.parametrize("plugin", ALL)
def test_state_is_divided_like_the_parameters(plugin):
    axes = {"up": ("embed", "mlp"), "embedding": ("vocab", "embed"), "scale": ("embed",)}
    params = {"up": np.zeros((128, 256)), "embedding": np.zeros((512, 128)), "scale": np.zeros(128)}
    layout = make_layout(FSDP())
    state = jax.eval_shape(plugin(learning_rate=0.1).build(1, axes).init, params)
    placed = state_shardings(layout, state, params, parameter_shardings(layout, params, axes))
    whole, each = (
        bytes_per_device(state, jax.tree.map(lambda _: layout.replicated, state)),
        bytes_per_device(state, placed),
    )
    reduced = (
        4 * (256 + 512) if plugin is Adafactor else 0
    )  # the mean over the divided dimension is the same everywhere
    assert each - reduced == pytest.approx(
        (whole - reduced) / 8, abs=64
    )  # counts and Adafactor's placeholders stay whole


@pytest.mark.parametrize("plugin", ALL)
def test_the_learning_rate_by_step(plugin):
    rate = plugin(learning_rate=RATE).learning_rate_at(10)
    assert [float(rate(i)) for i in (0, 2, 10)] == pytest.approx([0.01, 0.03, 0.003])
    assert float(plugin(learning_rate=0.5).learning_rate_at(10)(3)) == 0.5


@pytest.mark.parametrize("plugin", ALL)
@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"clip_norm": 0.0}, {"weight_decay": -0.1}]
)
def test_settings_out_of_range(plugin, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plugin(**{"learning_rate": 0.1, **wrong})


@pytest.mark.parametrize(
    ("plugin", "wrong"),
    [
        (AdamW, {"b1": 1.0}),
        (AdamW, {"b2": -0.1}),
        (Lion, {"b1": 1.5}),
        (SGD, {"momentum": 1.0}),
        (SGD, {"nesterov": True, "momentum": 0.0}),
        (Adafactor, {"decay_exponent": 1.0}),
        (Adafactor, {"update_clip": 0.0}),
        (Adafactor, {"factor_from": 0}),
        (Muon, {"momentum": 1.0}),
        (Muon, {"newton_schulz_steps": 0}),
        (Muon, {"update_rms": 0.0}),
    ],
)
def test_further_settings_out_of_range(plugin, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plugin(learning_rate=0.1, **wrong)
