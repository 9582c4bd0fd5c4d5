"""The conformance kit of objectives."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from assay.data.spec import DataSpec
from assay.errors import AssayError
from assay.kinds import Model, Objective
from assay.network import Network, Tree, make_network
from assay.outcome import Batch, Outcome
from assay.parallel.constrain import layout as active_layout
from assay.parallel.layout import make_layout
from assay.plan.plan import spec_of
from assay.testing.examples import SPECS, batch_of, rows_of
from assay.testing.kit import Kit, check, once, skip

BATCH = 8
NEGLIGIBLE = 1e-3  # of the largest gradient: one below is compared as if it were this large
Variables = tuple[Tree, Tree, Tree]


class ObjectiveKit(Kit):
    """Checks of an objective plugin.

    model(): the network that it trains; by default one that gives logits for rows of tokens or for labelled images.
    spec(): its data; by default the first of assay.testing.examples.SPECS that the objective takes with that model.
    batch(size): rows of them; by default drawn at random.
    by_example: False for an objective whose losses depend on the other examples of a batch (contrastive ones) or on where in a batch
        an example is (drawn noise); the losses of a batch and of its parts are then not compared.
    tolerance: largest relative difference of losses and gradients between divisions and devices.
    """

    kind = "objective"
    by_example: ClassVar[bool] = True
    tolerance: ClassVar[float] = 2e-5

    def plugin(self) -> Objective:
        """The objective to check."""
        return super().plugin()

    def model(self) -> Model:
        """The model that it trains."""
        return _Logits() if self.experiment is None else self.experiment.model

    @once
    def spec(self) -> DataSpec:
        """The data."""
        if self.experiment is not None:
            return spec_of(self.experiment.dataset)
        refusals = []
        for name, spec in SPECS.items():
            network = make_network(self.model(), spec)
            try:
                variables = network.params, network.frozen, network.stats
                jax.eval_shape(functools.partial(self._outcome, network), variables, batch_of(spec, 2))
            except (AssayError, LookupError, TypeError, ValueError) as error:
                refusals.append(f"{name}: {type(error).__name__}: {error}")
            else:
                return spec
        raise AssertionError(
            f"the objective takes none of the kit's examples: give spec() and batch(). {'; '.join(refusals)}"
        )

    def batch(self, size: int) -> Mapping[str, np.ndarray]:
        """`size` rows of data, with `mask`."""
        return batch_of(self.spec(), size) if self.experiment is None else rows_of(self.experiment.dataset, size)

    @check
    def test_losses_and_weights_are_one_for_each_item(self) -> None:
        """Losses and weights have the same shape, examples first; weights are finite and not negative; scalars have shape ()."""
        for size in (1, BATCH):
            for train in (False, True):
                outcome = self._found(self.batch(size), train)
                shapes = outcome.losses.shape, outcome.weights.shape
                assert shapes[0] == shapes[1], f"losses have shape {shapes[0]}, weights {shapes[1]}"
                assert shapes[0][:1] == (size,), (
                    f"losses have shape {shapes[0]} for {size} examples; do not reduce them"
                )
                weights = np.asarray(outcome.weights)
                assert np.isfinite(weights).all(), "weights that are not finite"
                assert (weights >= 0).all(), "negative weights"
                wrong = [k for k, v in outcome.scalars.items() if jnp.shape(v) != ()]
                assert not wrong, f"scalars that are none: {', '.join(wrong)}"

    @check
    def test_gradients_are_finite_and_there(self) -> None:
        """In training, also of a single example, the loss and all gradients are finite, and not all of them are zero."""
        for size in (1, BATCH):
            loss, gradients = self._mean(self.batch(size))
            assert np.isfinite(loss), f"the loss of {size} examples is {loss}"
            assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients)), (
                f"gradients of {size} examples are not finite"
            )
            assert any(np.any(g) for g in jax.tree.leaves(gradients)), f"{size} examples give no gradient"

    @check
    def test_scalars_have_the_same_names_always(self) -> None:
        """Every batch of training gives scalars of the same names, finite ones, so that they make curves; so does evaluation."""
        for train, mode in ((True, "training"), (False, "evaluation")):
            one, many = (self._found(self.batch(n), train).scalars for n in (1, BATCH))
            assert one.keys() == many.keys(), f"in {mode}: {sorted(one)} for one example, {sorted(many)} for {BATCH}"
            wrong = [k for scalars in (one, many) for k, v in scalars.items() if not np.isfinite(v)]
            assert not wrong, f"in {mode}: scalars that are not finite: {', '.join(wrong)}"

    @check
    def test_rows_that_only_pad_change_nothing(self) -> None:
        """Rows masked out, zeros or others, change neither the evaluated loss nor, for losses by example, training's, nor gradients."""
        batch, other = dict(self.batch(BATCH)), self.batch(2 * BATCH)
        rows = {k: np.asarray(other[k])[BATCH:] for k in batch}
        for fill, name in ((rows, "other rows"), ({k: np.zeros_like(v) for k, v in rows.items()}, "rows of zeros")):
            padded = {k: np.concatenate([v, fill[k]]) for k, v in batch.items()}
            padded["mask"] = np.arange(2 * BATCH) < BATCH
            for train in self._comparable():
                what = f"with and without {name} as padding, in {'training' if train else 'evaluation'}"
                self._close(self._total(padded, train), self._total(batch, train), f"losses {what}")
                if self.by_example:
                    found, expected = self._mean(padded, train)[1], self._mean(batch, train)[1]
                    self._close(found, expected, f"gradients {what}")

    @check
    def test_nothing_but_padding_is_no_loss(self) -> None:
        """A batch of masked rows alone has weight 0, loss 0 and gradients of 0, none of them NaN."""
        batch = {k: np.zeros_like(v) for k, v in self.batch(BATCH).items()}  # as the pipeline pads
        total, weight = self._total(batch)
        assert total == 0, f"masked rows have a loss of {total}"
        assert weight == 0, f"masked rows have a weight of {weight}"
        gradients = self._mean(batch)[1]
        assert all(not np.any(np.asarray(g) != 0) for g in jax.tree.leaves(gradients)), "masked rows have a gradient"

    @check
    def test_a_batch_is_the_sum_of_its_parts(self) -> None:
        """Totals of two halves add up to the whole's, so that accumulation and devices change nothing."""
        if not self.by_example:
            skip("its losses are not by example")
        batch = self.batch(BATCH)
        halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 3), slice(3, None))]
        for train in self._comparable():
            parts = [self._total(half, train) for half in halves]
            summed = tuple(a + b for a, b in zip(*parts, strict=True))
            what = f"totals of the parts and of the whole, in {'training' if train else 'evaluation'},"
            self._close(summed, self._total(batch, train), what)

    @check
    def test_evaluation_is_a_function_of_the_batch(self) -> None:
        """With train=False and rngs=None the same batch gives the same bits, called again and compiled again."""
        network, variables = self._state()
        calls = [jax.jit(functools.partial(self._outcome, network)) for _ in range(2)]  # each is traced
        found = [jax.device_get(call(variables, self.batch(BATCH)).losses) for call in (calls[0], *calls)]
        for other, how in zip(found[1:], ("called", "compiled"), strict=True):
            same = np.array_equal(found[0], other, equal_nan=True)
            assert same, f"two evaluations of one batch, {how} again, differ; what is random in them takes a fixed key"

    @check
    def test_a_mesh_of_devices_changes_nothing(self) -> None:
        """With the batch divided over eight devices, loss and gradients in training are those of one."""
        if jax.device_count() < BATCH:
            skip("there are not eight devices; set XLA_FLAGS=--xla_force_host_platform_device_count=8")
        network, variables = self._state()
        layout = make_layout(_Rows(), jax.devices()[:BATCH])
        batch = self.batch(BATCH)
        rows = {k: jax.device_put(v, layout.batch(v.ndim)) for k, v in batch.items()}

        def divided(variables: Variables, batch: Batch) -> Any:
            with active_layout(layout.sharding):
                return self._mean_of(network, variables, batch)

        found = jax.jit(divided)(jax.device_put(variables, layout.replicated), rows)
        self._close(
            found, jax.jit(functools.partial(self._mean_of, network))(variables, batch), "on eight devices and on one"
        )

    @once
    def _state(self) -> tuple[Network, Variables]:
        """The network and its drawn (params, frozen, stats), with noise on the parameters, so that none is at a special point."""
        network = make_network(self.model(), self.spec())

        @jax.jit
        def drawn() -> Variables:
            params, stats = network.init(jax.random.key(0))
            leaves, structure = jax.tree.flatten(params)
            keys = jax.random.split(jax.random.key(1), max(len(leaves), 1))
            noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=False)]
            return jax.tree.unflatten(structure, noisy), network.init_frozen(jax.random.key(0)), stats

        return network, drawn()

    @once
    def _compiled(self) -> dict[tuple[str, bool, int], Any]:
        """The programs so far, by what they compute, train and seed."""
        return {}

    def _comparable(self) -> tuple[bool, ...]:
        """Values of `train` in which the losses of some examples do not depend on others beside them.

        Training is left out where it draws, and where the network takes statistics of the batch, as batch norm does.
        """
        network, _ = self._state()
        if not self.by_example or network.stats:
            return (False,)
        drawn = [self._total(self.batch(BATCH), True, seed) for seed in (2, 3)]
        return (False, True) if drawn[0] == drawn[1] else (False,)

    def _outcome(
        self, network: Network, variables: Variables, batch: Any, *, train: bool = False, seed: int = 2
    ) -> Outcome:
        params, frozen, stats = variables
        module = network.merge(params, stats, frozen=frozen)
        rngs = nnx.Rngs(jax.random.key(seed)) if train else None
        arrays = {k: jnp.asarray(v) for k, v in batch.items()}
        return self.plugin()(module, arrays, train=train, rngs=rngs).masked(arrays["mask"])

    def _found(self, batch: Any, train: bool) -> Outcome:
        network, variables = self._state()
        program = jax.jit(functools.partial(self._outcome, network, train=train))
        return self._compiled().setdefault(("outcome", train, 2), program)(variables, batch)

    def _total(self, batch: Any, train: bool = False, seed: int = 2) -> tuple[float, float]:
        """(sum of losses, sum of weights), in evaluation unless said otherwise."""
        network, variables = self._state()
        call = functools.partial(self._outcome, network, train=train, seed=seed)
        programs = self._compiled()
        total = programs.setdefault(("total", train, seed), jax.jit(lambda v, b: call(v, b).total()))
        found, weight = total(variables, batch)
        return float(found), float(weight)

    def _mean(self, batch: Any, train: bool = True) -> tuple[Any, Any]:
        """(mean loss, gradient of it), in training unless said otherwise."""
        network, variables = self._state()
        mean = jax.jit(functools.partial(self._mean_of, network, train=train))
        return jax.device_get(self._compiled().setdefault(("mean", train, 0), mean)(variables, batch))

    def _mean_of(self, network: Network, variables: Variables, batch: Any, train: bool = True) -> tuple[Any, Any]:
        params, frozen, stats = variables

        def mean(params: Tree) -> jax.Array:
            total, weight = self._outcome(network, (params, frozen, stats), batch, train=train).total()
            return total / jnp.maximum(weight, 1e-30)

        return jax.value_and_grad(mean)(params)

    def _close(self, found: Any, expected: Any, what: str) -> None:
        pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
        largest = max((float(np.max(np.abs(b), initial=0.0)) for _, b in pairs), default=0.0)
        for a, b in pairs:
            one, two = np.asarray(a, np.float64), np.asarray(b, np.float64)
            # Some gradients are 0 but for rounding, such as that of attention's key bias: those are held against the others.
            scale = max(np.max(np.abs(two), initial=0.0), NEGLIGIBLE * largest, 1e-12)
            off = np.max(np.abs(one - two), initial=0.0) / scale
            assert off <= self.tolerance, f"{what} differ by {off:.1e} of the largest; at most {self.tolerance:.0e}"


class _Logits:
    """Logits for each token, or for each image or vector of features; a linear map after an embedding."""

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> nnx.Module:
        return _Net(spec, rngs)


class _Net(nnx.Module):
    def __init__(self, spec: DataSpec, rngs: nnx.Rngs) -> None:
        draw = nnx.initializers.lecun_normal()
        self.element = next(iter(spec.elements))
        self.tokens = spec.vocab_size is not None
        inputs = spec.vocab_size or int(np.prod(spec.elements[self.element].shape))
        outputs = spec.vocab_size or spec.num_classes or 1
        self.kernel = nnx.Param(draw(rngs.params(), (inputs, outputs)), axes=("features", "classes"))

    def __call__(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        kernel, x = self.kernel[...], batch[self.element]
        return kernel[x] if self.tokens else x.reshape(x.shape[0], -1).astype(kernel.dtype) @ kernel


class _Rows:
    """A parallelism plugin: the batch over all devices."""

    def mesh_axes(self) -> Mapping[str, int]:
        return {"data": -1}

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        return {"batch": ("data",)}
