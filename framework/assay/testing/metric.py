"""The conformance kit of metrics."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from assay.data.spec import DataSpec
from assay.kinds import Metric
from assay.outcome import Outcome
from assay.plan.plan import spec_of
from assay.testing.examples import CLASSES, SPECS
from assay.testing.kit import Kit, check, skip

EXAMPLES = 48
State = dict[str, np.ndarray]


class MetricKit(Kit):
    """Checks of a metric plugin.

    spec(): the data it is told of; by default that of labelled images, then of tokens, whichever it takes.
    outcome(size, seed): what an objective gives for `size` examples; by default a classifier's.
    reference(outcome): its values by other means, such as scikit-learn's; None where there is nothing to compare with.
    tolerance: largest relative difference between divisions, devices and compilations.
    """

    kind = "metric"
    tolerance: ClassVar[float] = 2e-5

    def plugin(self) -> Metric:
        """The metric to check."""
        return super().plugin()

    def spec(self) -> DataSpec:
        """What the metric is told of the data."""
        return SPECS["images"] if self.experiment is None else spec_of(self.experiment.dataset)

    def outcome(self, size: int, seed: int = 0) -> Outcome:
        """Losses, weights (a few of them 0), logits and targets of `size` examples of CLASSES classes, fp32."""
        draw = np.random.default_rng(seed)
        logits = jnp.asarray(draw.normal(size=(size, CLASSES)) * 2, jnp.float32)
        targets = jnp.asarray(draw.integers(0, CLASSES, size), jnp.int32)
        losses = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return Outcome(losses, jnp.asarray(draw.random(size) > 0.2, jnp.float32), logits, targets)

    def reference(self, outcome: Outcome) -> Mapping[str, float] | None:
        """The values that the metric must have on `outcome`."""
        return None

    @check
    def test_a_state_is_arrays_by_name(self) -> None:
        """A batch gives a flat dict of numbers or arrays, the same names and shapes for every batch size."""
        states = [jax.eval_shape(self._update, self.outcome(size)) for size in (1, 2, EXAMPLES)]
        for state in states:
            assert isinstance(state, dict), f"update returns {type(state).__name__}; return a dict of arrays"
            assert all(hasattr(x, "shape") for x in state.values()), (
                "update returns a nested dict; return arrays by name"
            )
        shapes = [{k: v.shape for k, v in state.items()} for state in states]
        assert shapes[0] == shapes[1] == shapes[2], f"the state's shapes depend on the batch size: {shapes}"

    @check
    def test_any_division_gives_the_same_value(self) -> None:
        """Whole, in halves, one by one and unevenly divided, a split has the same value."""
        whole = self._value([self.outcome(EXAMPLES)])
        for sizes in ([24, 24], [1] * EXAMPLES, [40, 5, 3], [7, 41]):
            self._close(self._value(_divided(self.outcome(EXAMPLES), sizes)), whole, f"in batches of {sizes[:3]}…")

    @check
    def test_merging_is_associative_and_commutative(self) -> None:
        """Batches may be merged in any order and grouping."""
        merge = self.plugin().merge
        a, b, c = (self._state(self.outcome(9, seed)) for seed in (0, 1, 2))
        self._close(merge(merge(a, b), c), merge(a, merge(b, c)), "(a + b) + c and a + (b + c)")
        self._close(merge(a, b), merge(b, a), "a + b and b + a")

    @check
    def test_examples_that_do_not_count_add_nothing(self) -> None:
        """Items of weight 0, even when they are not finite, change no value; a split of nothing has one too, perhaps NaN."""
        counted, nothing = self.outcome(EXAMPLES), self.outcome(8, 1)
        nothing = _spoilt(dataclasses.replace(nothing, weights=jnp.zeros_like(nothing.weights)))
        expected = self._value([counted])
        self._close(self._value([_spoilt(counted)]), expected, "with items of weight 0 spoilt and as they were")
        self._close(self._value([counted, nothing]), expected, "with and without a batch of weight 0")
        empty = self._state(nothing)
        for state in (empty, {k: np.zeros_like(v) for k, v in empty.items()}):  # zeros: as names are found before a run
            values = self.plugin().compute(state)
            assert values.keys() == expected.keys(), f"a split of nothing has values {list(values)}"

    @check
    def test_compiled_equals_eager(self) -> None:
        """jit changes no value more than rounding does."""
        outcome = self.outcome(EXAMPLES)
        eager, compiled = self._update(outcome), self._compiled(outcome)
        self._close(compiled, eager, "compiled and eager states")

    @check
    def test_a_mesh_of_devices_changes_nothing(self) -> None:
        """With the batch divided over all devices the state is that of one device."""
        if jax.device_count() < 2:
            skip("there is one device; set XLA_FLAGS=--xla_force_host_platform_device_count=8")
        outcome = self.outcome(EXAMPLES)
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("batch",))
        places = [jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("batch",))]
        divided = _by_item(lambda x: jax.device_put(x, places[1]), jax.device_put(outcome, places[0]))
        self._close(self._compiled(divided), self._compiled(outcome), "states on eight devices and on one")

    @check
    def test_values_are_numbers_by_name(self) -> None:
        """`compute` gives floats under the same names for every split, and leaves the state as it is."""
        state = self._state(self.outcome(EXAMPLES))
        before = {k: np.array(v) for k, v in state.items()}
        values = self.plugin().compute(state)
        assert values, "compute gives no value"
        wrong = [name for name, value in values.items() if type(value) is not float]
        assert not wrong, f"not Python floats: {', '.join(wrong)}"
        assert all(np.array_equal(before[k], state[k]) for k in before), "compute changes the state that it is given"
        again = self.plugin().compute(self._state(self.outcome(5, 3)))
        assert values.keys() == again.keys(), f"other names for another split: {list(values)}, {list(again)}"

    @check
    def test_it_equals_its_reference(self) -> None:
        """The values are those of `reference(outcome)`, where the kit has one."""
        outcome = self.outcome(EXAMPLES)
        expected = self.reference(outcome)
        if expected is None:
            skip("there is nothing to compare with: define reference(outcome)")
        self._close(self._value([outcome]), dict(expected), "against the reference")

    def _update(self, outcome: Outcome) -> dict[str, jax.Array]:
        return self.plugin().update(outcome, self.spec())

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self._update)

    def _state(self, outcome: Outcome) -> State:
        """The state of a batch as the core makes and keeps it: under jit, then in float64 on the host."""
        return {k: np.asarray(v, np.float64) for k, v in jax.device_get(self._compiled(outcome)).items()}

    def _value(self, outcomes: list[Outcome]) -> dict[str, float]:
        metric = self.plugin()
        return metric.compute(functools.reduce(metric.merge, map(self._state, outcomes)))

    def _close(self, found: Any, expected: Any, what: str) -> None:
        assert found.keys() == expected.keys(), f"{what}: {list(found)} and {list(expected)}"
        for name in expected:
            a, b = np.asarray(found[name], np.float64), np.asarray(expected[name], np.float64)
            same = np.allclose(
                a, b, rtol=self.tolerance, atol=self.tolerance * np.max(np.abs(b), initial=0), equal_nan=True
            )
            assert same, f"{what}: {name} is {a} and {b}"


def _divided(outcome: Outcome, sizes: list[int]) -> list[Outcome]:
    """The outcome in parts of so many examples."""
    ends = np.cumsum(sizes)
    return [_by_item(lambda x, a=end - size, b=end: x[a:b], outcome) for end, size in zip(ends, sizes, strict=True)]


def _by_item(function: Any, outcome: Outcome) -> Outcome:
    """The outcome with `function` of the arrays that have a value for each item; an objective may add others."""
    names = ("losses", "weights", "logits", "targets")
    return dataclasses.replace(outcome, **{n: jax.tree.map(function, getattr(outcome, n)) for n in names})


def _spoilt(outcome: Outcome) -> Outcome:
    """The outcome with losses and logits that are not numbers, and targets of -1, wherever the weight is 0."""
    counts = outcome.weights > 0

    def kept(values: Any, other: float) -> Any:
        return (
            None
            if values is None
            else jnp.where(counts.reshape(counts.shape + (1,) * (values.ndim - counts.ndim)), values, other)
        )

    losses, logits, targets = kept(outcome.losses, jnp.nan), kept(outcome.logits, jnp.nan), kept(outcome.targets, -1)
    return dataclasses.replace(outcome, losses=losses, logits=logits, targets=targets)
