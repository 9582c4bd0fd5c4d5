"""The conformance kit of schedules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from assay.kinds import Schedule
from assay.testing.kit import Kit, check, skip

STEPS = 60
BEYOND = 3  # further steps, since a run that was lengthened asks for them


class ScheduleKit(Kit):
    """Checks of a schedule plugin.

    reference(total_steps): what it must equal, such as a schedule of optax; None where there is nothing to compare with.
    """

    kind = "schedule"

    def plugin(self) -> Schedule:
        """The schedule to check, with a warm-up well below 60 steps."""
        return super().plugin()

    def reference(self, total_steps: int) -> optax.Schedule | None:
        """The schedule that it must equal."""
        return None

    @check
    def test_every_rate_is_finite_and_not_negative(self) -> None:
        """From step 0 to a few steps after the last, the rate is a finite number of at least 0."""
        rates = self._rates(STEPS)
        wrong = [f"step {i}: {rate}" for i, rate in enumerate(rates) if not (np.isfinite(rate) and rate >= 0)]
        assert not wrong, "; ".join(wrong[:5])
        assert rates.max() > 0, "the rate is 0 at every step"

    @check
    def test_a_step_is_any_integer(self) -> None:
        """Python's, NumPy's and jax's integers, and a whole array of them, give the same rates."""
        schedule = self.plugin().build(STEPS)
        steps = range(STEPS)
        expected = self._rates(STEPS)[:STEPS]
        found = {
            "Python integers": [schedule(i) for i in steps],
            "NumPy integers": [schedule(np.int32(i)) for i in steps],
            "jax integers": [schedule(jnp.int32(i)) for i in steps],
            "jax.vmap": jax.vmap(schedule)(jnp.arange(STEPS)),
        }
        for name, rates in found.items():
            self._close([float(r) for r in rates], expected, f"with {name}")

    @check
    def test_compiled_equals_eager(self) -> None:
        """Under jit, with the step traced, the rates are the same."""
        schedule = jax.jit(self.plugin().build(STEPS))
        self._close([float(schedule(jnp.int32(i))) for i in range(STEPS)], self._rates(STEPS)[:STEPS], "compiled")

    @check
    def test_a_rate_is_one_number(self) -> None:
        """A step gives a scalar of a floating point type."""
        found = jax.eval_shape(self.plugin().build(STEPS), jax.ShapeDtypeStruct((), jnp.int32))
        leaves: list[Any] = jax.tree.leaves(found)
        assert len(leaves) == 1, f"a step gives {len(leaves)} arrays"
        assert leaves[0].shape == (), f"a step gives an array of shape {leaves[0].shape}"
        assert jnp.issubdtype(leaves[0].dtype, jnp.floating), f"a step gives {leaves[0].dtype}"

    @check
    def test_building_is_repeatable(self) -> None:
        """Building twice gives the same schedule, and calls leave no trace."""
        plugin = self.plugin()
        first = plugin.build(STEPS)
        forth = [float(first(i)) for i in range(STEPS)]
        back = [float(first(i)) for i in reversed(range(STEPS))][::-1]
        assert forth == back, "the rate of a step depends on which steps were asked for before"
        assert forth == [float(plugin.build(STEPS)(i)) for i in range(STEPS)], "two schedules of one plugin differ"

    @check
    def test_it_equals_its_reference(self) -> None:
        """Every rate is that of `reference(total_steps)`, where the kit has one."""
        reference = self.reference(STEPS)
        if reference is None:
            skip("there is nothing to compare with: define reference(total_steps)")
        self._close(self._rates(STEPS)[:STEPS], [float(reference(i)) for i in range(STEPS)], "against the reference")

    def _rates(self, total: int) -> np.ndarray:
        schedule = self.plugin().build(total)
        return np.asarray([float(schedule(i)) for i in range(total + BEYOND)])

    def _close(self, found: Any, expected: Any, what: str) -> None:
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        off = np.abs(found - expected) / max(np.abs(expected).max(), 1e-30)
        worst = int(off.argmax())
        assert off.max() <= 1e-5, f"{what}: {found[worst]} at step {worst}, where {expected[worst]} was expected"
