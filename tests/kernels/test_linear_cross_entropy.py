"""linear_cross_entropy against float64 and optax, at the edges of its inputs, inside jax's transformations, and on two devices."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from assay_kernels import ImplementationError, audit, disagreements, recording
from assay_kernels.aot import lower_for_cuda, lower_gradient_for_cuda
from assay_kernels.linear_cross_entropy import OP, blocked, cases, linear_cross_entropy, reference, shapes, vjp
from assay_kernels.testing import check

WAYS = {
    "reference": {"impl": "reference"},
    "recomputed": {"impl": "chunked"},
    "blocked": {"impl": "blocked"},
    "announced": {"impl": "chunked", "announce": 1.0},
    "announced, scaled": {"impl": "chunked", "announce": 3.7},
    "announced otherwise": {"impl": "chunked", "announce": None},
}
FEW = ("reference", "recomputed", "announced", "blocked")
FULL = ("plain", "every option", "padded vocabulary")
ALL = {"z_loss": 1e-2, "label_smoothing": 0.1, "softcap": 4.0}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """Random inputs. items: shape of the labels. columns - classes columns pad."""

    items: tuple[int, ...] = (5, 23)
    width: int = 16
    columns: int = 50
    classes: int | None = None
    options: Any = dataclasses.field(default_factory=dict)
    dtype: str = "float32"

    def inputs(self, seed: int = 0, scale: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """(x, w, labels with some ignored, random cotangents)."""
        rng = np.random.default_rng(seed)
        x = scale * rng.normal(size=(*self.items, self.width)).astype(np.float32)
        w = rng.normal(size=(self.width, self.columns)).astype(np.float32)
        labels = rng.integers(0, self.classes or self.columns, self.items)
        labels = np.where(rng.random(self.items) < 0.2, -1, labels) if np.prod(self.items) > 3 else labels
        g = rng.uniform(0.5, 2.0, self.items).astype(np.float32)
        return jnp.asarray(x, self.dtype), jnp.asarray(w, self.dtype), jnp.asarray(labels, jnp.int32), jnp.asarray(g)


CASES = {
    "plain": Case(),
    "one token": Case(items=(1,)),
    "primes": Case(items=(101,), width=13, columns=53),
    "one class": Case(columns=1),
    "every option": Case(options=ALL),
    "padded vocabulary": Case(columns=64, classes=51, options=ALL),
    "z-loss": Case(options={"z_loss": 0.1}),
    "label smoothing": Case(options={"label_smoothing": 0.3}),
    "soft-cap": Case(options={"softcap": 2.0}),
    "three axes": Case(items=(2, 3, 7)),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> None:
    """At most sixteen rows in a chunk, so that there are several and the last is filled up."""
    monkeypatch.setitem(shapes.CHUNK, "cpu", (1, 16))


def ours(case: Case, *, impl: str, announce: Any = False) -> Callable[[Any], tuple[Any, Any]]:
    """inputs -> ((loss, nll, lse), the gradients of sum(g * loss)).

    announce: the factor between the cotangents and the weights; None for weights that are no multiple of them, False for none.
    """
    options = {**case.options, "classes": case.classes, "impl": impl}

    def call(inputs: Any) -> tuple[Any, Any]:
        x, w, labels, g = inputs
        weights = None if announce is False else g**2 if announce is None else g / announce

        def total(x: jax.Array, w: jax.Array) -> tuple[jax.Array, Any]:
            found = linear_cross_entropy(x, w, labels, weights=weights, **options)
            return jnp.sum(jnp.where(labels >= 0, found.loss * g, 0.0)), found

        gradients, found = jax.grad(total, (0, 1), has_aux=True)(x, w)
        return found, gradients

    return call


def outputs(inputs: Any, case: Case, **way: Any) -> tuple[Any, Any]:
    """What `ours` gives."""
    return jax.jit(ours(case, **way))(inputs)


@functools.cache
def exact(case: Case, seed: int = 0, scale: float = 1.0) -> tuple[Any, Any]:
    """The same from the definition in float64, of the inputs' own (rounded) values."""
    x, w, labels, g = (
        np.asarray(v, np.float64 if v.dtype != jnp.int32 else np.int64) for v in case.inputs(seed, scale)
    )
    o = {"z_loss": 0.0, "label_smoothing": 0.0, "softcap": None, **case.options}

    def total(x: Any, w: Any) -> tuple[Any, Any]:
        logits = x @ w[:, : case.classes or case.columns]
        logits = logits if o["softcap"] is None else o["softcap"] * jnp.tanh(logits / o["softcap"])
        top = jnp.max(logits, axis=-1, keepdims=True)
        lse = (top + jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)))[..., 0]
        nll = lse - jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        s = o["label_smoothing"]
        loss = (1 - s) * nll + s * (lse - jnp.mean(logits, axis=-1)) + o["z_loss"] * lse**2
        found = [jnp.where(labels >= 0, v, 0.0) for v in (loss, nll, lse)]
        return jnp.sum(found[0] * g), found

    with jax.enable_x64(True):
        gradients, found = jax.jit(jax.grad(total, (0, 1), has_aux=True))(jnp.asarray(x), jnp.asarray(w))
        return jax.tree.map(np.asarray, (found, gradients))


def error(found: Any, true: Any) -> float:
    """The largest of the relative errors, in norm, of a tree's arrays."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True)
    return max(float(np.linalg.norm(np.asarray(a, np.float64) - b) / (np.linalg.norm(b) + 1e-30)) for a, b in pairs)


def check_exact(case: Case, way: str, most: float = 2e-6) -> None:
    inputs = case.inputs()
    (found, gradients), (true, true_gradients) = outputs(inputs, case, **WAYS[way]), exact(case)
    if case.columns == 1:  # the loss is exactly 0
        assert max(np.abs(v).max() for v in (found[0], *gradients)) < 1e-5
        return
    assert error(found, true) < most
    assert error(gradients, true_gradients) < most


@pytest.mark.parametrize(("name", "way"), [(n, w) for n in CASES for w in (WAYS if n in FULL else FEW[1:])])
def test_values_and_gradients_are_those_of_float64(name: str, way: str) -> None:
    check_exact(CASES[name], way)


@pytest.mark.parametrize(
    ("impl", "name"),
    [
        ("chunked", "weights that hold"),
        ("chunked", "every option, bf16, padded vocabulary"),
        ("blocked", "fp16, primes"),
        ("blocked", "logits of 1e4"),
    ],
)
def test_some_of_the_cases_that_every_implementation_must_pass(impl: str, name: str) -> None:
    check(OP, impl, cases.CASES[name])


def test_of_the_cases_one_takes_the_gradients_of_the_forward_pass_and_one_does_not(monkeypatch) -> None:
    monkeypatch.setattr(vjp, "_gradients", lambda plan, x, w, *rest: (x * jnp.nan, w * jnp.nan))
    check(OP, "chunked", cases.CASES["weights that hold"])
    with pytest.raises(AssertionError, match="gradient 0 is off"):
        check(OP, "chunked", cases.CASES["weights that do not"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_optaxs_cross_entropy(smoothing: float) -> None:
    x, w, labels, _ = Case().inputs()
    labels = jnp.abs(labels)

    def theirs(x: jax.Array, w: jax.Array) -> jax.Array:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, w.shape[1]), smoothing)
        return jnp.sum(optax.softmax_cross_entropy(x @ w, targets) ** 2)

    def ours(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(linear_cross_entropy(x, w, labels, label_smoothing=smoothing).loss ** 2)

    (a, da), (b, db) = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, w) for f in (theirs, ours))
    assert error((b, db), jax.tree.map(lambda v: np.asarray(v, np.float64), (a, da))) < 2e-6


@pytest.mark.parametrize("way", FEW)
def test_bf16_is_no_worse_than_a_naive_head_in_bf16(way: str) -> None:
    case = Case(items=(64,), width=64, columns=256, dtype="bfloat16")
    inputs = case.inputs()
    x, w, labels, g = inputs

    def naive(x: jax.Array, w: jax.Array) -> jax.Array:
        nll = optax.softmax_cross_entropy_with_integer_labels((x @ w).astype(jnp.float32), jnp.maximum(labels, 0))
        return jnp.sum(jnp.where(labels >= 0, nll * g, 0.0))

    (found, gradients), (true, true_gradients) = outputs(inputs, case, **WAYS[way]), exact(case)
    assert error(found, true) < 1e-5  # products are accumulated in fp32, and nothing is rounded after that
    assert [v.dtype for v in gradients] == [jnp.bfloat16] * 2
    theirs = error(jax.jit(jax.grad(naive, (0, 1)))(x, w), true_gradients)
    assert error(gradients, true_gradients) <= 1.5 * theirs


@pytest.mark.parametrize("way", FEW)
def test_nothing_leaks_from_ignored_rows(way: str) -> None:
    case = Case(options=ALL)
    x, w, labels, g = case.inputs()
    poisoned = jnp.where((labels < 0)[..., None], jnp.nan, x)
    clean = outputs((x, w, labels, g), case, **WAYS[way])
    found = outputs((poisoned, w, labels, g), case, **WAYS[way])
    jax.tree.map(np.testing.assert_array_equal, found, clean)
    assert not np.any(np.asarray(found[1][0])[np.asarray(labels) < 0])


@pytest.mark.parametrize("way", FEW)
def test_all_rows_may_be_ignored(way: str) -> None:
    x, w, labels, g = Case().inputs()
    found = outputs((x * jnp.nan, w, jnp.full_like(labels, -7), g), Case(), **WAYS[way])
    assert not any(np.any(v) for v in jax.tree.leaves(found))


@pytest.mark.parametrize("way", FEW)
def test_extreme_logits(way: str) -> None:
    case = CASES["plain"]
    found, gradients = outputs(case.inputs(scale=1e4), case, **WAYS[way])
    true, true_gradients = exact(case, scale=1e4)
    assert np.max(true[0]) > 1e5
    assert error(found, true) < 1e-6
    assert error(gradients, true_gradients) < 2e-2  # of logits near 1e5, which are exact to 0.01 in fp32


@pytest.mark.parametrize("impl", ["reference", "chunked", "blocked"])
def test_a_label_that_is_no_class_gives_nan_and_an_ignored_one_zero(impl: str) -> None:
    x, w, _, _ = Case(items=(5,)).inputs()
    labels = jnp.asarray([3, 49, 50, -2, 77])
    found = linear_cross_entropy(x, w, labels, classes=49, ignore_index=77, impl=impl)
    for values in found:
        assert np.isnan(values).tolist() == [False, True, True, False, False]
        assert (np.asarray(values) == 0).tolist() == [False, False, False, True, True]
    plain = linear_cross_entropy(x, w, labels.at[4].set(3), ignore_index=3, impl=impl)
    assert plain.loss[0] == plain.loss[4] == 0


def test_the_forward_pass_has_the_gradients_where_the_weights_hold(monkeypatch) -> None:
    """Logits are computed again only for cotangents that are no multiple of the weights."""
    nothing = lambda plan, x, w, *rest: (x * jnp.nan, w * jnp.nan)
    monkeypatch.setattr(vjp, "_gradients", nothing)
    case, inputs = CASES["every option"], CASES["every option"].inputs()
    for way, kept in {"announced": True, "announced, scaled": True, "announced otherwise": False}.items():
        assert np.isfinite(outputs(inputs, case, **WAYS[way])[1][0]).all() == kept, way


def test_other_outputs_can_be_differentiated_too() -> None:
    case = CASES["every option"]
    x, w, labels, g = case.inputs()

    def total(impl: str, weights: Any, x: jax.Array, w: jax.Array) -> jax.Array:
        found = linear_cross_entropy(x, w, labels, weights=weights, impl=impl, **case.options)
        return jnp.sum(g * (found.loss + 2 * found.nll - found.lse**2))

    gradients = [
        jax.jit(jax.grad(functools.partial(total, *way), (0, 1)))(x, w)
        for way in (("reference", None), ("chunked", None), ("chunked", g))
    ]
    for found in gradients[1:]:
        assert error(found, gradients[0]) < 2e-6


def test_no_logits_of_all_tokens_are_in_memory() -> None:
    case = Case(items=(1024,), width=8, columns=512)
    x, w, labels, g = case.inputs()

    def bytes_of(impl: str, weights: Any) -> int:
        loss = lambda x, w: jnp.sum(linear_cross_entropy(x, w, labels, weights=weights, impl=impl).loss * g)
        return jax.jit(jax.grad(loss, (0, 1))).lower(x, w).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 1024 * 512
    assert bytes_of("reference", None) > logits
    assert bytes_of("chunked", None) < logits / 8
    assert bytes_of("chunked", g) < logits / 8
    assert bytes_of("blocked", None) < logits / 8


@pytest.mark.parametrize("way", ["recomputed", "announced", "blocked"])
def test_inside_vmap_scan_and_remat(way: str) -> None:
    case = CASES["three axes"]
    one = ours(case, **WAYS[way])
    several = jax.tree.map(lambda *v: jnp.stack(v), case.inputs(0), case.inputs(1))
    expected = jax.tree.map(lambda *v: np.stack(v), exact(case, 0), exact(case, 1))
    scanned = lambda several: jax.lax.scan(lambda _, inputs: (None, one(inputs)), None, several)[1]
    for name, many in {"vmap": jax.vmap(one), "scan": scanned}.items():
        assert error(jax.jit(many)(several), expected) < 2e-6, name

    x, w, labels, g = case.inputs()
    weights = g if way == "announced" else None
    f = lambda x: jnp.sum(linear_cross_entropy(x, w, labels, weights=weights).loss * g)
    assert error(jax.jit(jax.grad(jax.checkpoint(f)))(x), exact(case)[1][0]) < 2e-6


def test_labels_and_weights_have_no_gradient() -> None:
    x, w, labels, g = Case().inputs()
    f = lambda x, w, labels, g: jnp.sum(linear_cross_entropy(x, w, labels, weights=g).loss)
    *_, for_labels, for_weights = jax.vjp(f, x, w, labels, g)[1](jnp.float32(1))
    assert for_labels.dtype == jax.dtypes.float0
    assert not np.any(for_weights)


@pytest.mark.parametrize("way", ["recomputed", "announced"])
def test_tokens_divided_over_two_devices(way: str) -> None:
    """By jit's partitioner: the same values, and the devices' parts of w's gradient are added once, not in every chunk."""
    check_partitioned(way, shards=2)


def check_partitioned(way: str, shards: int) -> None:
    case = Case(items=(4, 32), options={**ALL, "shards": shards})
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    rows, whole = (jax.NamedSharding(mesh, spec) for spec in (P("data"), P()))
    placed = [jax.device_put(v, s) for v, s in zip(case.inputs(), (rows, whole, rows, rows), strict=True)]
    program = jax.jit(ours(case, **WAYS[way])).lower(placed).compile()
    assert error(program(placed), exact(case)) < 2e-6
    loops = re.findall(r"while\(.*body=%?([\w.]+)", program.as_text())
    bodies = [program.as_text().split(f"%{name} (")[1].split("\n}")[0] for name in loops]
    assert bodies
    assert not any("all-reduce(" in body for body in bodies)


@pytest.mark.parametrize("classes", [31, 51])  # with 31 the second device has no class but padding
@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("impl", ["reference", "chunked", "blocked"])
def test_a_vocabulary_divided_over_two_devices(impl: str, check_vma: bool, classes: int) -> None:
    check_divided(impl, check_vma, classes)


def check_divided(impl: str, check_vma: bool, classes: int) -> None:
    case = Case(columns=64, classes=classes, options=ALL)
    x, w, labels, g = case.inputs()
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("vocab",))
    body = lambda *rows: linear_cross_entropy(*rows, **ALL, classes=classes, axis_name="vocab", impl=impl)
    specs = {"in_specs": (P(), P(None, "vocab"), P()), "out_specs": P(), "check_vma": check_vma}
    divided = jax.shard_map(body, mesh=mesh, **specs)

    def total(x: jax.Array, w: jax.Array) -> tuple[jax.Array, Any]:
        found = divided(x, w, labels)
        return jnp.sum(found.loss * g), found

    gradients, found = jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, w)
    assert error((found, gradients), exact(case)) < 2e-6


@pytest.mark.parametrize("way", ["recomputed", "announced"])
def test_value_and_gradient_are_lowered_for_cuda(way: str) -> None:
    case = Case(items=(2, 4096), width=64, columns=65536, dtype="bfloat16", options=ALL)
    shape = lambda s, dtype: jax.ShapeDtypeStruct(s, dtype)
    x, w = shape((2, 4096, 64), jnp.bfloat16), shape((64, 65536), jnp.bfloat16)
    labels, g = shape((2, 4096), jnp.int32), shape((2, 4096), jnp.float32)

    def loss(x: jax.Array, w: jax.Array, labels: jax.Array, g: jax.Array) -> jax.Array:
        weights = g if way == "announced" else None
        return jnp.sum(linear_cross_entropy(x, w, labels, weights=weights, **case.options).loss * g)

    with recording() as choices:
        texts = lower_for_cuda(loss, x, w, labels, g), lower_gradient_for_cuda(loss, x, w, labels, g)
    assert {(c.implementation, c.target.platform) for c in choices} == {("chunked", "cuda")}
    for text in texts:
        assert 'assay_kernel = "linear_cross_entropy.chunked"' in text
        assert "tensor<1024x65536xf32>" in text  # a GPU has larger chunks than the CPU that lowers
        assert "tensor<8192x65536x" not in text


def test_the_record_and_the_compiled_gradient_agree() -> None:
    x, w, labels, g = Case().inputs()
    loss = lambda x, w: jnp.sum(linear_cross_entropy(x, w, labels, weights=g).loss * g)
    with recording() as choices:
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, w).compile()
    assert [c.implementation for c in choices] == ["chunked"]
    assert disagreements(choices, audit(compiled)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((4, 3), jnp.int32)}, "x is int32 and w float32: both must have one floating point dtype"),
        ({"x": jnp.ones((4, 3), jnp.bfloat16)}, "x is bfloat16 and w float32"),
        ({"x": jnp.ones((4, 5))}, r"x \(4, 5\) and w \(3, 7\): must be \(\*items, width\) and \(width, classes\)"),
        ({"labels": jnp.zeros(4)}, "labels are float32: must be integers"),
        ({"labels": jnp.zeros(3, jnp.int32)}, r"labels \(3,\) for x \(4, 3\): must be one for each item"),
        ({"weights": jnp.ones(3)}, r"weights \(3,\): must be one for each item"),
        ({"classes": 8}, "classes = 8: w has 7 columns"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0: must be at least 0 and less than 1"),
        ({"z_loss": -0.1}, "z_loss = -0.1: must be at least 0"),
        ({"shards": 0}, "shards = 0: must be at least 1"),
        ({"softcap": 0.0}, "softcap = 0.0: must be greater than 0"),
    ],
)
def test_bad_inputs_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    arguments = {"x": jnp.ones((4, 3)), "w": jnp.ones((3, 7)), "labels": jnp.zeros(4, jnp.int32), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        linear_cross_entropy(**arguments)


def test_no_tokens_are_left_to_the_reference() -> None:
    empty = jnp.ones((0, 3)), jnp.ones((3, 7)), jnp.zeros(0, jnp.int32)
    with recording() as choices:
        assert linear_cross_entropy(*empty).loss.shape == (0,)
    assert choices[0].refused[0] == ("chunked", "x (0, 3) has no elements to divide into chunks")
    with pytest.raises(ImplementationError, match="has no elements"):
        linear_cross_entropy(*empty, impl="chunked")


def without_zeroing(x: Any, w: Any, labels: Any, options: Any) -> Any:
    return x, *reference_local(x, w, labels, options)[1:]


reference_local = reference.local
MUTATIONS = {
    "every cotangent is taken for the announced one": (
        (vjp, "SAME", 1e9),
        lambda: check_exact(CASES["plain"], "announced otherwise"),
    ),
    "the scale of the cotangents is dropped": (
        (vjp, "_compared", lambda found, expected: (jnp.float32(1.0), jnp.bool_(True))),
        lambda: check_exact(CASES["plain"], "announced, scaled"),
    ),
    "ignored rows reach the products": (
        (vjp, "local", without_zeroing),
        lambda: test_nothing_leaks_from_ignored_rows("recomputed"),
    ),
    "padding takes part in the softmax": (
        (vjp, "logits", lambda x, w, limit, softcap: reference.logits(x, w, None, softcap)),
        lambda: check_exact(CASES["padded vocabulary"], "recomputed"),
    ),
    "the derivative of the soft-cap is left out": (
        (vjp, "of_logits", lambda *a: of_logits(*a[:5], dataclasses.replace(a[5], softcap=None))),
        lambda: check_exact(CASES["soft-cap"], "announced"),
    ),
    "the device's own sum stands for all devices'": (
        (reference, "_over_devices", lambda found, axis: found),
        lambda: check_divided("chunked", False, 51),
    ),
    "the columns that two blocks share count twice": (
        (blocked, "column_of", lambda scores: reference.column_of(scores) + 1000),
        lambda: check_exact(CASES["plain"], "blocked"),
    ),
    "devices add their gradients up in every chunk": (
        (vjp, "Plan", lambda options, chunks, shards: vjp_plan(options, chunks, 1)),
        lambda: check_partitioned("recomputed", shards=2),
    ),
}
vjp_plan = vjp.Plan
of_logits = vjp.of_logits


@pytest.mark.parametrize("name", MUTATIONS)
def test_these_tests_see_a_fault(name: str, monkeypatch) -> None:
    (module, attribute, wrong), check = MUTATIONS[name]
    monkeypatch.setattr(module, attribute, wrong)
    with pytest.raises((AssertionError, ZeroDivisionError, ValueError)):
        check()
