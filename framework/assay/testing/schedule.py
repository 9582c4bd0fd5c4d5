"""The conformance kit of schedules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from assay.errors import ConfigError
from assay.kinds import Schedule
from assay.testing.kit import Kit, check, skip

STEPS = 60
EAGER = 60  # steps, spread over the run, whose rates are asked for one by one
BEYOND = 3  # further steps, since a run that was lengthened asks for them


class ScheduleKit(Kit):
    """Checks of a schedule plugin, in a run of 60 steps or, with an experiment, of that experiment's.

    reference(total_steps): what it must equal, such as a schedule of optax; None where there is nothing to compare with.
    """

    kind = "schedule"

    def plugin(self) -> Schedule:
        """The schedule to check; without an experiment, with a warm-up well below 60 steps."""
        return super().plugin()

    def reference(self, total_steps: int) -> optax.Schedule | None:
        """The schedule that it must equal."""
        return None

    @check
    def test_every_rate_is_finite_and_not_negative(self) -> None:
        """From step 0 to a few steps after the last, the rate is a finite number of at least 0."""
        rates = np.asarray(jax.vmap(self._schedule())(jnp.arange(self._total + BEYOND)), np.float64)
        wrong = [f"step {i}: {rates[i]}" for i in np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))]
        assert not wrong, "; ".join(wrong[:5])
        assert rates.max() > 0, "the rate is 0 at every step"

    @check
    def test_a_run_of_one_step_has_a_rate(self) -> None:
        """With `total_steps` = 1 the rate is finite and not negative, or `build` raises a ConfigError that says what does not fit."""
        try:
            schedule = self.plugin().build(1)
        except ConfigError as error:
            skip(f"it is not for a run of one step: {error}")
        for step in range(1 + BEYOND):
            rate = float(schedule(step))
            assert np.isfinite(rate), f"in a run of one step the rate of step {step} is {rate}"
            assert rate >= 0, f"in a run of one step the rate of step {step} is {rate}"

    @check
    def test_a_step_is_any_integer(self) -> None:
        """Python's, NumPy's and jax's integers, and a whole array of them, give the same rates."""
        schedule, steps = self._schedule(), self._steps
        expected = self._rates(schedule)
        found = {
            "Python integers": [schedule(i) for i in steps],
            "NumPy integers": [schedule(np.int32(i)) for i in steps],
            "jax integers": [schedule(jnp.int32(i)) for i in steps],
            "jax.vmap": jax.vmap(schedule)(jnp.asarray(steps)),
        }
        for name, rates in found.items():
            self._close([float(r) for r in rates], expected, f"with {name}")

    @check
    def test_compiled_equals_eager(self) -> None:
        """Under jit, with the step traced, the rates are the same."""
        schedule = self._schedule()
        compiled = jax.jit(schedule)
        self._close([float(compiled(jnp.int32(i))) for i in self._steps], self._rates(schedule), "compiled")

    @check
    def test_a_rate_is_one_number(self) -> None:
        """A step gives a scalar of a floating point type."""
        found = jax.eval_shape(self._schedule(), jax.ShapeDtypeStruct((), jnp.int32))
        leaves: list[Any] = jax.tree.leaves(found)
        assert len(leaves) == 1, f"a step gives {len(leaves)} arrays"
        assert leaves[0].shape == (), f"a step gives an array of shape {leaves[0].shape}"
        assert jnp.issubdtype(leaves[0].dtype, jnp.floating), f"a step gives {leaves[0].dtype}"

    @check
    def test_building_is_repeatable(self) -> None:
        """Building twice gives the same schedule, and calls leave no trace."""
        plugin = self.plugin()
        first = plugin.build(self._total)
        forth = [float(first(i)) for i in self._steps]
        back = [float(first(i)) for i in self._steps[::-1]][::-1]
        assert forth == back, "the rate of a step depends on which steps were asked for before"
        assert forth == self._rates(plugin.build(self._total)).tolist(), "two schedules of one plugin differ"

    @check
    def test_it_equals_its_reference(self) -> None:
        """Every rate is that of `reference(total_steps)`, where the kit has one."""
        reference = self.reference(self._total)
        if reference is None:
            skip("there is nothing to compare with: define reference(total_steps)")
        self._close(self._rates(self._schedule()), self._rates(reference), "against the reference")

    @property
    def _total(self) -> int:
        return STEPS if self.experiment is None else self.experiment.steps

    @property
    def _steps(self) -> list[int]:
        """Steps from 0 to beyond the last, so many that one by one they take no time."""
        last = self._total + BEYOND - 1
        spread = np.linspace(0, last, min(EAGER, last + 1)).round().astype(int).tolist()
        return sorted({*spread, 1, self._total - 1, self._total})

    def _schedule(self) -> optax.Schedule:
        return self.plugin().build(self._total)

    def _rates(self, schedule: optax.Schedule) -> np.ndarray:
        """The rates of `_steps`, each asked for with a Python integer."""
        return np.asarray([float(schedule(i)) for i in self._steps])

    def _close(self, found: Any, expected: Any, what: str) -> None:
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        off = np.abs(found - expected) / max(np.abs(expected).max(), 1e-30)
        worst = int(off.argmax())
        assert off.max() <= 1e-5, (
            f"{what}: {found[worst]} at step {self._steps[worst]}, where {expected[worst]} was expected"
        )
