"""The conformance kit of optimizers."""

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from assay.checkpoint.checkpoints import Checkpoints
from assay.kinds import Optimizer
from assay.parallel.layout import make_layout, parameter_shardings, state_shardings
from assay.testing.kit import Kit, check, skip

STEPS = 20
SMALL = 64  # elements below which it does not matter that every device holds an array whole
AXES: Mapping[str, Any] = {
    "embedding": {"table": ("vocab", "embed")},
    "dense": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "norm": {"scale": ("embed",)},
}
SHAPES = {"table": (24, 16), "kernel": (16, 32), "bias": (32,), "scale": (16,)}


class OptimizerKit(Kit):
    """Checks of an optimizer plugin, on a regression with an embedding, a matrix, a bias and a scale.

    It is built for a run of 20 steps or, with an experiment, of that experiment's, whose first 20 are then taken.
    reference(total_steps): the transformation whose updates it must give, such as optax's; None where there is nothing to compare with.
    tolerance: largest relative difference of updates between compilations, devices and the reference.
    """

    kind = "optimizer"
    tolerance: ClassVar[float] = 2e-5

    def plugin(self) -> Optimizer:
        """The optimizer to check, with a learning rate that makes the loss of a small regression fall within 20 steps."""
        return super().plugin()

    def reference(self, total_steps: int) -> optax.GradientTransformation | None:
        """The transformation that it must equal."""
        return None

    @check
    def test_updates_are_like_the_parameters(self) -> None:
        """Updates have the parameters' names and shapes, in fp32; the state keeps its shapes and dtypes."""
        params, optimizer = _params(), self._optimizer()
        before = optimizer.init(params)
        updates, after = optimizer.update(jax.grad(_loss)(params), before, params)
        names = [str(jax.tree.structure(tree)) for tree in (updates, params)]
        assert names[0] == names[1], "updates have other names than the parameters"
        wrong = [f"{u.shape} {u.dtype}" for u, p in _pairs(updates, params) if (u.shape, u.dtype) != (p.shape, p.dtype)]
        assert not wrong, f"updates of {', '.join(wrong)}; they must have the parameters' shape and dtype"
        kinds = [[(x.shape, x.dtype) for x in map(jnp.asarray, jax.tree.leaves(state))] for state in (before, after)]
        assert kinds[0] == kinds[1], "the first step changes the state's shapes or dtypes"

    @check
    def test_the_loss_falls_and_stays_finite(self) -> None:
        """20 steps on a regression lower its loss, and every number stays finite."""
        losses, params, state = self._train(STEPS)
        assert all(map(math.isfinite, losses)), f"losses {losses}"
        bad = [x for x in jax.tree.leaves((params, state)) if not np.isfinite(np.asarray(x, np.float64)).all()]
        assert not bad, f"{len(bad)} arrays of the parameters and the state are not finite"
        assert losses[-1] < losses[0], f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"

    @check
    def test_gradients_of_zero_do_no_harm(self) -> None:
        """All-zero gradients, from the first step on, give finite updates."""
        params, optimizer = _params(), self._optimizer()
        zeros, state = jax.tree.map(jnp.zeros_like, params), optimizer.init(params)
        for step in range(3):
            updates, state = optimizer.update(zeros, state, params)
            finite = all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
            assert finite, f"gradients of zero give updates that are not finite in step {step}"

    @check
    def test_the_learning_rate_is_finite_and_not_negative(self) -> None:
        """`learning_rate_at`, under jit, gives a finite number of at least 0 for every step, 0 and the last included."""
        schedule = self.plugin().learning_rate_at(self._total)
        rates = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(self._total)), np.float64)
        wrong = [f"step {i}: {rates[i]}" for i in np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))]
        assert not wrong, f"learning rates of {'; '.join(wrong[:5])}"
        assert rates.max() > 0, "the learning rate is 0 at every step"

    @check
    def test_compiled_equals_eager(self) -> None:
        """jit changes the updates no more than rounding does."""
        params, optimizer = _params(), self._optimizer()
        arguments = jax.grad(_loss)(params), optimizer.init(params), params
        self._close(
            jax.jit(optimizer.update)(*arguments)[0], optimizer.update(*arguments)[0], "compiled and eager updates"
        )

    @check
    def test_its_state_is_divided_as_the_parameters_are(self) -> None:
        """On eight devices no large array of its state is held whole, and the updates are those of one device."""
        if jax.device_count() < 8:
            skip("there are not eight devices; set XLA_FLAGS=--xla_force_host_platform_device_count=8")
        params, optimizer = _params(), self._optimizer()
        layout = make_layout(_Divided(), jax.devices()[:8])
        shardings = parameter_shardings(layout, params, AXES)
        abstract = jax.eval_shape(optimizer.init, params)
        places = state_shardings(layout, abstract, params, shardings)
        flat, _ = jax.tree_util.tree_flatten_with_path(abstract)
        whole = [
            f"{jax.tree_util.keystr(path)} of shape {x.shape}"
            for (path, x), place in zip(flat, jax.tree.leaves(places), strict=True)
            if x.size >= SMALL and math.prod(place.shard_shape(x.shape)) == x.size
        ]
        assert not whole, (
            f"every device holds all of {'; '.join(whole)}: give the state the parameters' names and shapes"
        )
        state = jax.jit(optimizer.init, out_shardings=places)(jax.device_put(params, shardings))
        gradients = jax.grad(_loss)(params)
        step = jax.jit(optimizer.update, out_shardings=(shardings, places))
        divided, _ = step(jax.device_put(gradients, shardings), state, jax.device_put(params, shardings))
        self._close(
            divided,
            optimizer.update(gradients, optimizer.init(params), params)[0],
            "updates on eight devices and on one",
        )

    @check
    def test_a_resumed_run_equals_an_uninterrupted_one(self) -> None:
        """Parameters and state, saved after half the steps and restored, end bit for bit where they end without a stop."""
        _, params, state = self._train(STEPS // 2)
        tree = {"params": params, "state": state}
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder))
            checkpoints.save(1, tree, {}, {})
            checkpoints.wait()
            wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
            back = checkpoints.restore(1, wanted)
            checkpoints.close()
        _, resumed, _ = self._train(STEPS - STEPS // 2, (back["params"], back["state"]))
        _, straight, _ = self._train(STEPS)
        same = all(np.array_equal(a, b) for a, b in _pairs(resumed, straight))
        assert same, "the parameters differ: something that the updates depend on is not in the state"

    @check
    def test_it_equals_its_reference(self) -> None:
        """The updates of 20 steps are those of `reference(total_steps)`, where the kit has one."""
        reference = self.reference(self._total)
        if reference is None:
            skip("there is nothing to compare with: define reference(total_steps)")
        _, mine, _ = self._train(STEPS)
        _, theirs, _ = self._train(STEPS, optimizer=reference)
        moved = [jax.tree.map(jnp.subtract, tree, _params()) for tree in (mine, theirs)]
        self._close(moved[0], moved[1], "the way of the parameters, here and with the reference,")

    @property
    def _total(self) -> int:
        return STEPS if self.experiment is None else self.experiment.steps

    def _optimizer(self) -> optax.GradientTransformation:
        return self.plugin().build(self._total, AXES)

    def _train(
        self, steps: int, start: tuple[Any, Any] | None = None, optimizer: optax.GradientTransformation | None = None
    ) -> tuple[list[float], Any, Any]:
        """(losses, params, state) of so many steps."""
        optimizer = optimizer or self._optimizer()
        params, state = start or (_params(), optimizer.init(_params()))
        state = jax.tree.map(jnp.asarray, state)

        @jax.jit
        def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
            loss, gradients = jax.value_and_grad(_loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        losses = []
        for _ in range(steps):
            params, state, loss = step(params, state)
            losses.append(float(loss))
        return [*losses, float(_loss(params))], params, state

    def _close(self, found: Any, expected: Any, what: str) -> None:
        for a, b in _pairs(found, expected):
            off = float(
                np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))) / (np.max(np.abs(b)) + 1e-30)
            )
            assert off <= self.tolerance, f"{what} differ by {off:.1e} of the largest; at most {self.tolerance:.0e}"


@dataclasses.dataclass(frozen=True)
class _Divided:
    """A parallelism plugin: the width over all devices, and the feed-forward width where the width is not."""

    def mesh_axes(self) -> Mapping[str, int]:
        return {"model": -1}

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        return {"embed": ("model",)}


def _params() -> Any:
    """The parameters, the same each time."""
    draw = np.random.default_rng(0)
    return {
        group: {name: jnp.asarray(draw.normal(size=SHAPES[name]) / 4, jnp.float32) for name in names}
        for group, names in AXES.items()
    }


def _loss(params: Any) -> jax.Array:
    """Mean squared error of a small network against fixed targets."""
    draw = np.random.default_rng(1)
    ids, targets = draw.integers(0, 24, 40), draw.normal(size=(40, 32)).astype(np.float32)
    x = params["embedding"]["table"][ids] * (1 + params["norm"]["scale"][None])
    y = x @ params["dense"]["kernel"] + params["dense"]["bias"][None]
    return jnp.mean((y - targets) ** 2)


def _pairs(one: Any, two: Any) -> list[tuple[Any, Any]]:
    return list(zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
