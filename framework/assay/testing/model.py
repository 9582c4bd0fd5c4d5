"""The conformance kit of models."""

import dataclasses
import functools
import itertools
import tempfile
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from assay import registry
from assay.checkpoint.checkpoints import Checkpoints
from assay.data.spec import DataSpec
from assay.errors import AssayError, LayoutError
from assay.kinds import Model
from assay.network import Network, Tree, make_network
from assay.parallel.axes import PARAMETER_AXES
from assay.parallel.constrain import layout as active_layout
from assay.parallel.layout import Layout, make_layout, parameter_shardings
from assay.plan.plan import spec_of
from assay.testing.examples import SPECS, batch_of, rows_of
from assay.testing.kit import Kit, check, once, skip
from assay_kernels import force, ops

BATCH = 8
SPREAD = 0.2  # of the noise on parameters, so that none is at an initial zero that hides its gradient


class ModelKit(Kit):
    """Checks of a model plugin.

    spec(): the data that the model reads; by default the first of assay.testing.examples.SPECS that it takes.
    batch(size): rows of it; by default drawn at random. axes: logical axis names beyond those of assay.parallel.axes.
    tolerance: largest relative difference of fp32 outputs between compilations and meshes.
    """

    kind = "model"
    axes: ClassVar[frozenset[str]] = frozenset()
    tolerance: ClassVar[float] = 2e-5

    def plugin(self) -> Model:
        """The model to check; small, for its checks to be quick."""
        return super().plugin()

    @once
    def spec(self) -> DataSpec:
        """The data that the model reads."""
        if self.experiment is not None:
            return spec_of(self.experiment.dataset)
        refusals = []
        for name, spec in SPECS.items():
            try:
                network = make_network(self.plugin(), spec)
                variables = network.params, network.frozen, network.stats
                jax.eval_shape(functools.partial(self._call, network), variables, batch_of(spec, 2))
            except (AssayError, ValueError, LookupError, TypeError) as error:
                refusals.append(f"{name}: {error}")
            else:
                return spec
        raise AssertionError("the model takes none of the kit's examples: give its own data. " + "; ".join(refusals))

    def batch(self, size: int) -> Mapping[str, np.ndarray]:
        """`size` rows of data, with `mask`."""
        return batch_of(self.spec(), size) if self.experiment is None else rows_of(self.experiment.dataset, size)

    @check
    def test_it_is_described_without_memory(self) -> None:
        """Building it abstractly makes no array, and its shapes are those of real initialisation."""
        spec = self.spec()
        before = jax.live_arrays()  # kept: what is made could come to lie where one of them was
        network = make_network(self.plugin(), spec)
        known = {id(x) for x in before}
        made = [x for x in jax.live_arrays() if id(x) not in known]
        assert not made, f"{len(made)} arrays were made, such as one of shape {made[0].shape}; build must only trace"
        drawn, shapes = jax.jit(network.init)(jax.random.key(0)), (network.params, network.stats)
        assert jax.tree.map(_shape, drawn) == jax.tree.map(_shape, shapes), "real shapes differ from the abstract ones"

    @check
    def test_parameters_are_fp32_with_logical_axes(self) -> None:
        """Every parameter is fp32 and names a known logical axis, or None, for each dimension."""
        network = self._network()
        known, wrong = {*PARAMETER_AXES, *self.axes}, []
        flat, _ = jax.tree_util.tree_flatten_with_path(network.params)
        names = jax.tree.leaves(network.axes, is_leaf=lambda x: isinstance(x, tuple))
        for (path, leaf), axes in zip(flat, names, strict=True):
            label = jax.tree_util.keystr(path, simple=True, separator="/")
            if leaf.dtype != jnp.float32:
                wrong.append(f"{label} is {leaf.dtype}")
            if len(axes) != leaf.ndim:
                wrong.append(f"{label} has shape {leaf.shape} and {len(axes)} names {axes}")
            wrong += [
                f"{label} names '{a}', which is no logical axis" for a in axes if a is not None and a not in known
            ]
        assert not wrong, "; ".join(wrong)

    @check
    def test_initialisation_is_a_function_of_the_key(self) -> None:
        """One key gives the same bits twice, another key other parameters."""
        network = self._network()
        traced = [jax.jit(lambda key: network.init(key)[0]) for _ in range(3)]  # each for itself
        first, again, other = (draw(jax.random.key(seed)) for draw, seed in zip(traced, (0, 0, 1), strict=True))
        assert _same_bits(first, again), "the same key gave different parameters"
        assert not _same_bits(first, other), "two keys gave the same parameters; draw them from `rngs`"

    @check
    def test_there_is_an_output_for_each_example(self) -> None:
        """1, 2 and 3 examples give outputs that differ in the first dimension alone."""
        network, state = self._state()
        call = functools.partial(self._call, network)
        shapes = [jax.eval_shape(call, state, self.batch(size)).shape for size in (1, 2, 3)]
        assert [s[0] for s in shapes] == [1, 2, 3], (
            f"first dimensions for 1, 2 and 3 examples: {[s[0] for s in shapes]}"
        )
        assert len({s[1:] for s in shapes}) == 1, f"shapes {shapes}"

    @check
    def test_compiled_equals_eager(self) -> None:
        """jit changes the output no more than rounding does."""
        network, state = self._state()
        batch = self.batch(BATCH)
        call = functools.partial(self._call, network)
        self._close(jax.jit(call)(state, batch), call(state, batch), "compiled and eager outputs")

    @check
    def test_a_call_can_be_repeated(self) -> None:
        """The same call gives the same bits, in evaluation and, with the same rngs, in training."""
        network, state = self._state()
        batch = self.batch(BATCH)
        for train in (False, True):
            call = jax.jit(functools.partial(self._call, network, train=train))
            one, two = call(state, batch), call(state, batch)
            assert np.array_equal(one, two), f"two calls differ with train={train}; take randomness from `rngs` alone"

    @check
    def test_gradients_are_finite_and_reach_every_parameter(self) -> None:
        """In training every gradient is finite, and no parameter has a gradient of zeros."""
        network, state = self._state()
        gradients = jax.jit(jax.grad(functools.partial(self._loss, network)))(*state, self.batch(BATCH))
        flat, _ = jax.tree_util.tree_flatten_with_path(gradients)
        label = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
        wrong = [label(path) for path, g in flat if not np.isfinite(g).all()]
        assert not wrong, f"gradients that are not finite: {', '.join(wrong)}"
        unused = [label(path) for path, g in flat if not np.any(g)]
        assert not unused, f"parameters that do not matter: {', '.join(unused)}"

    @check
    def test_bfloat16_stays_near(self) -> None:
        """With bf16 parameters the output is finite and within a tenth of fp32's spread."""
        network, state = self._state()
        batch = self.batch(BATCH)
        call = functools.partial(self._call, network)
        exact = np.asarray(jax.jit(call)(state, batch), np.float32)
        coarse = np.asarray(jax.jit(functools.partial(call, dtype="bfloat16"))(state, batch), np.float32)
        assert np.isfinite(coarse).all(), "the output in bf16 is not finite"
        off = float(np.sqrt(np.mean((coarse - exact) ** 2)) / (np.std(exact) + 1e-12))
        assert off < 0.1, f"the output in bf16 is off by {off:.3f} of the fp32 output's standard deviation"

    @check
    def test_rematerialisation_changes_nothing(self) -> None:
        """Every choice of its parameter `remat` gives the same gradients."""
        plugin = self.plugin()
        declared = registry.parameters(type(plugin)).get("remat")
        if declared is None:
            skip("the plugin has no parameter `remat`")
        batch, found = self.batch(BATCH), {}
        for choice in typing.get_args(declared.annotation):
            network = make_network(dataclasses.replace(plugin, remat=choice), self.spec())  # type: ignore[type-var]
            found[choice] = jax.jit(jax.grad(functools.partial(self._loss, network)))(*_drawn(network), batch)
        first, *others = found
        for other in others:
            flat = [np.concatenate([np.ravel(g) for g in jax.tree.leaves(found[name])]) for name in (other, first)]
            self._close(flat[0], flat[1], f"gradients with remat={first!r} and {other!r}")

    @check
    def test_a_mesh_of_devices_changes_nothing(self) -> None:
        """With batch and parameters divided over all devices the output is that of one device."""
        if jax.device_count() < 2:
            skip("there is one device; set XLA_FLAGS=--xla_force_host_platform_device_count=8")
        network, state = self._state()
        batch = self.batch(BATCH)
        expected = jax.jit(functools.partial(self._call, network))(state, batch)
        for layout in _layouts(network):
            shardings = parameter_shardings(layout, network.params, network.axes)
            frozen = parameter_shardings(layout, network.frozen, network.frozen_axes)
            placed = jax.device_put(state, (shardings, frozen, layout.replicated))
            rows = {k: jax.device_put(v, layout.batch(v.ndim)) for k, v in batch.items()}

            def call(state: Any, rows: Any, layout: Layout = layout) -> Any:
                with active_layout(layout.sharding):
                    return self._call(network, state, rows)

            mesh = ", ".join(f"{k}={v}" for k, v in layout.mesh.shape.items())
            self._close(jax.jit(call)(placed, rows), expected, f"outputs on one device and on ({mesh})")

    @check
    def test_a_checkpoint_restores_every_bit(self) -> None:
        """Parameters and other variables come back from a checkpoint as they went in."""
        _, state = self._state()
        tree = dict(zip(("params", "frozen", "stats"), state, strict=True))
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder))
            checkpoints.save(1, tree, {}, {})
            checkpoints.wait()
            back = checkpoints.restore(1, jax.tree.map(_with_sharding, tree))
            checkpoints.close()
        assert _same_bits(tree, back), "the restored arrays differ"

    @check
    def test_the_parameter_count_is_as_declared(self) -> None:
        """`parameter_count(spec)`, where the plugin has one, is the number of parameters."""
        plugin, spec = self.plugin(), self.spec()
        formula = getattr(plugin, "parameter_count", None)
        if formula is None:
            skip("the plugin declares no formula: a method parameter_count(spec) -> int")
        declared, counted = formula(spec), make_network(plugin, spec).parameter_count
        assert declared == counted, f"declared are {declared:,} parameters, there are {counted:,}"

    @once
    def _network(self) -> Network:
        return make_network(self.plugin(), self.spec())

    @once
    def _state(self) -> tuple[Network, tuple[Tree, Tree, Tree]]:
        """The network, and (params, frozen, stats) with noise on every parameter."""
        return self._network(), _drawn(self._network())

    @check
    def test_exports(self) -> None:
        """jax.export takes its evaluation, for the CPU and for CUDA, and the exported program gives the same output."""
        network, state = self._state()
        batch = self.batch(BATCH)
        function = jax.jit(functools.partial(self._call, network))
        try:
            with force(**dict.fromkeys(ops(), "reference")):
                exported = jax.export.export(function, platforms=("cpu", "cuda"))(state, batch)
        except Exception as error:
            raise AssertionError(f"it cannot be exported: {type(error).__name__}: {error}") from error
        if jax.default_backend() not in ("cpu", "gpu"):
            skip(f"it exports; nothing is exported for {jax.default_backend()}")
        self._close(exported.call(state, batch), function(state, batch), "the exported and the compiled output")

    def _call(
        self,
        network: Network,
        state: tuple[Tree, Tree, Tree],
        batch: Any,
        *,
        train: bool = False,
        dtype: str = "float32",
    ) -> jax.Array:
        params, frozen, stats = state
        module: Any = network.merge(params, stats, dtype, frozen)
        rngs = nnx.Rngs(jax.random.key(2)) if train else None
        return module({k: jnp.asarray(v) for k, v in batch.items()}, train=train, rngs=rngs)

    def _loss(self, network: Network, params: Tree, frozen: Tree, stats: Tree, batch: Any) -> jax.Array:
        """A sum of the outputs with random weights, in training."""
        output = self._call(network, (params, frozen, stats), batch, train=True).astype(jnp.float32)
        return jnp.mean(output * jax.random.normal(jax.random.key(3), output.shape))

    def _close(self, one: Any, two: Any, what: str) -> None:
        one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
        off = float(np.max(np.abs(one - two), initial=0.0) / (np.max(np.abs(two), initial=0.0) + 1e-12))
        assert off <= self.tolerance, f"{what} differ by {off:.1e} of the largest value; at most {self.tolerance:.0e}"


def _drawn(network: Network) -> tuple[Tree, Tree, Tree]:
    """(params, frozen, stats) with noise on every parameter."""

    @jax.jit
    def drawn() -> tuple[Tree, Tree, Tree]:
        params, stats = network.init(jax.random.key(0))
        leaves, structure = jax.tree.flatten((params, network.init_frozen(jax.random.key(0))))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noisy = [x + SPREAD * _scale(x) * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        return (*jax.tree.unflatten(structure, noisy), stats)

    return drawn()


@dataclasses.dataclass(frozen=True)
class _Spread:
    """A parallelism plugin: the batch over one mesh axis, the parameter axes `names` over the other."""

    data: int
    names: tuple[str, ...]

    def mesh_axes(self) -> Mapping[str, int]:
        return {"data": self.data, "model": -1}

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        pairs = {"mlp": "act_mlp", "heads": "act_heads", "vocab": "act_vocab"}
        activations = {pairs[n]: ("model",) for n in self.names if n in pairs}
        return {"batch": ("data",), **activations, **dict.fromkeys(self.names, ("model",))}


def _layouts(network: Network) -> list[Layout]:
    """All devices on the batch; and half of them on as many of the network's parameter axes as can be divided, by turns from either end."""
    devices = list(jax.devices()[:BATCH])
    used = {a for axes in jax.tree.leaves(network.axes, is_leaf=lambda x: isinstance(x, tuple)) for a in axes if a}
    names = [a for a in PARAMETER_AXES if a in used]
    layouts = [make_layout(_Spread(len(devices), ()), devices)]
    for order in (names, names[::-1]):
        chosen: tuple[str, ...] = ()
        for name in order:
            if _fits(network, _Spread(2, (*chosen, name)), devices):
                chosen = (*chosen, name)
        if chosen:
            layouts.append(make_layout(_Spread(2, chosen), devices))
    return layouts


def _fits(network: Network, parallelism: _Spread, devices: list[jax.Device]) -> bool:
    try:
        layout = make_layout(parallelism, devices)
        parameter_shardings(layout, network.params, network.axes)
        parameter_shardings(layout, network.frozen, network.frozen_axes)
    except LayoutError:
        return False
    return True


def _scale(x: jax.Array) -> jax.Array:
    """The spread of a parameter, or 1 where it is constant."""
    spread = jnp.std(x)
    return jnp.where(spread > 0, spread, 1.0)


def _shape(x: Any) -> tuple[Any, ...]:
    return tuple(x.shape), jnp.dtype(x.dtype)


def _with_sharding(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _same_bits(one: Any, two: Any) -> bool:
    pairs = itertools.zip_longest(jax.tree.leaves(one), jax.tree.leaves(two))
    return all(np.array_equal(a, b) for a, b in pairs)
