"""The conformance kit of parallelism plugins."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from assay.checkpoint.checkpoints import Checkpoints, dotted
from assay.checkpoint.digests import digests
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import LayoutError, did_you_mean
from assay.experiment import Experiment
from assay.kinds import Parallelism
from assay.outcome import Batch, Outcome
from assay.parallel.axes import AXES
from assay.parallel.constrain import constrain
from assay.parallel.layout import make_layout
from assay.plan.plan import Plan, jitted, make_plan
from assay.testing.examples import batch_of, rows_of
from assay.testing.kit import Kit, check, skip
from assay.train.begin import drawn, restored
from assay.train.feed import to_devices
from assay.train.state import TrainState

STEPS = 2
HEAD_DIM = 2


class ParallelismKit(Kit):
    """Checks of a parallelism plugin, on all devices of the process: on a machine with one, set
    XLA_FLAGS=--xla_force_host_platform_device_count=8.

    training(parallelism): what is trained under it; by default a transformer whose sizes all divide over the devices.
    axes: logical axis names of its rules beyond those of assay.parallel.axes.
    tolerance: largest relative difference of losses and of gradients between one device and all.
    """

    kind = "parallelism"
    axes: ClassVar[frozenset[str]] = frozenset()
    tolerance: ClassVar[float] = 1e-5

    def plugin(self) -> Parallelism:
        """The layout to check."""
        return super().plugin()

    def training(self, parallelism: Parallelism) -> Experiment:
        """An experiment under `parallelism`: the one that was given, or a small one. Its optimizer keeps the gradients."""
        if self.experiment is None:
            return _small(parallelism)
        return dataclasses.replace(
            self.experiment, parallelism=parallelism, optimizer=_Momentum(), compute_dtype="float32", trackers=()
        )

    @check
    def test_the_mesh_fits_the_devices(self) -> None:
        """The sizes divide the devices, and -1 takes all that remain."""
        sizes = dict(self.plugin().mesh_axes())
        wrong = {k: v for k, v in sizes.items() if isinstance(v, bool) or not isinstance(v, int)}
        assert not wrong, f"sizes are ints: {wrong}"
        layout, count = make_layout(self.plugin(), _devices()), len(_devices())
        shape = dict(layout.mesh.shape)
        assert -1 not in sizes.values() or layout.mesh.size == count, (
            f"the mesh {shape} leaves some of {count} devices out"
        )
        assert sizes == dict(self.plugin().mesh_axes()), "mesh_axes() gives another answer when it is asked again"

    @check
    def test_rules_are_about_axes_that_there_are(self) -> None:
        """Rules go from known logical axes to axes of the mesh, every one of which divides something."""
        layout, rules = make_layout(self.plugin(), _devices()), self.plugin().rules()
        strings = [name for name, mesh_axes in rules.items() if isinstance(mesh_axes, str)]
        assert not strings, f"rules for {strings} are strings; write a tuple of mesh axes"
        known = {*AXES, *self.axes}
        unknown = [f"'{name}'.{did_you_mean(name, known)}" for name in rules if name not in known]
        assert not unknown, f"rules for unknown logical axes: {' '.join(unknown)}"
        used = {m for mesh_axes in rules.values() for m in mesh_axes}
        idle = [f"{m} = {size}" for m, size in layout.mesh.shape.items() if size > 1 and m not in used]
        assert not idle, f"no rule names the mesh axis {', '.join(idle)}: its devices would all do the same work"
        assert dict(rules) == dict(self.plugin().rules()), "rules() gives another answer when it is asked again"

    @check
    def test_every_logical_axis_can_be_placed(self) -> None:
        """A dimension of any known name divides over the mesh axes of its rule, or stays whole."""
        layout = make_layout(self.plugin(), _devices())
        size, wrong = _unit(), []
        for name in [*AXES, *self.axes]:
            parts = math.prod(layout.mesh.shape[m] for m in layout.rules.get(name, ()))
            try:
                held = layout.sharding((name,)).shard_shape((size,))[0]
            except Exception as error:
                wrong.append(f"'{name}' over {layout.rules[name]}: {error}")
            else:
                assert held == size // parts, f"'{name}': a device holds {held} of {size}, with {parts} parts"
        assert not wrong, "; ".join(wrong)

    @check
    def test_training_is_that_of_one_device(self) -> None:
        """Losses, gradients and parameters of a few steps are those of one device, up to rounding."""
        self._compare(self.plugin(), _devices())

    @check
    def test_bytes_per_device_are_as_promised(self) -> None:
        """Each device holds the bytes that the plan says, and a parameter's share of the rules that name its axes."""
        plan = make_plan(self.training(self.plugin()), devices=_devices())
        state, promised = drawn(plan), plan.bytes_per_device()
        parts = {"parameters": state.params, "frozen": state.frozen, "optimizer": state.optimizer, "state": state}
        for name, tree in parts.items():
            held = {d.id: _held(tree, d) for d in plan.layout.mesh.devices.flat}
            wrong = {i: n for i, n in held.items() if n != promised[name]}
            assert not wrong, f"{name}: the plan says {promised[name]:,} bytes, devices hold {wrong}"
        self._compare_shares(plan, state)

    @check
    def test_checkpoints_go_to_other_layouts_and_back(self) -> None:
        """A checkpoint of one device, and one of plain data parallelism, restore under it bit for bit, and its own under those."""
        mine = make_plan(self.training(self.plugin()), devices=_devices())
        for count, other in ((1, _Replicated()), (len(_devices()), _Replicated())):
            theirs = make_plan(self.training(other), devices=_devices()[:count])
            state = _noisy(drawn(theirs))
            moved = _through_a_checkpoint(state, mine)
            name = "one device" if count == 1 else "data parallelism"
            assert _same_bits(state, moved), f"the arrays of a checkpoint of {name} differ when they are restored"
            misplaced = [path for path, x in dotted(moved).items() if not _is_placed(x, dotted(mine.shardings)[path])]
            assert not misplaced, f"restored, but not where the layout wants it: {', '.join(misplaced[:3])}"
            assert _same_bits(moved, _through_a_checkpoint(moved, theirs)), f"its own checkpoint differs under {name}"

    @check
    def test_one_device_is_enough_or_the_refusal_says_why(self) -> None:
        """With a single device it trains the same, or raises LayoutError with a message."""
        device = list(jax.devices()[:1])
        with _alone():
            refusal = self._refusal(device)
            if refusal is None:
                self._compare(self.plugin(), device)
            else:
                assert isinstance(refusal, LayoutError), (
                    f"with one device it raises {type(refusal).__name__}: {refusal}; give the sizes, or raise LayoutError"
                )
                assert str(refusal).strip(), "it refuses a single device without a word"

    def _refusal(self, devices: Sequence[jax.Device]) -> Exception | None:
        """What making its mesh on `devices` raises."""
        try:
            make_layout(self.plugin(), devices)
        except Exception as error:
            return error
        return None

    def _compare(self, parallelism: Parallelism, devices: Sequence[jax.Device]) -> None:
        """Raise AssertionError where training under `parallelism` differs from training on one device without any rule."""
        found = _trained(make_plan(self.training(parallelism), devices=devices))
        one = _trained(make_plan(self.training(_Replicated()), devices=devices[:1]))
        for path, expected in one.items():
            off = float(
                np.max(np.abs(found[path] - expected), initial=0.0) / (np.max(np.abs(expected), initial=0.0) + 1e-12)
            )
            assert off <= self.tolerance, (
                f"{path} differs from one device's by {off:.1e} of its largest value; at most {self.tolerance:.0e}"
            )

    def _compare_shares(self, plan: Plan, state: TrainState) -> None:
        """Raise AssertionError for a parameter of which a device does not hold 1 / (the sizes of the mesh axes of its rules)."""
        rules, sizes, axes = self.plugin().rules(), plan.layout.mesh.shape, dotted_axes(plan)
        for path, x in dotted(state.params).items():
            parts = math.prod(sizes[m] for name in axes[path] if name for m in rules.get(name, ()))
            share = x.nbytes // parts
            held = x.addressable_shards[0].data.nbytes
            assert held == share, f"{path} of axes {axes[path]}: a device holds {held} of {x.nbytes} bytes, not {share}"


def dotted_axes(plan: Plan) -> dict[str, tuple[str | None, ...]]:
    """Dotted path of each parameter -> its logical axes."""
    names = jax.tree.leaves(plan.network.axes, is_leaf=lambda x: isinstance(x, tuple))
    return dict(zip(dotted(plan.network.params), names, strict=True))


def _devices() -> list[jax.Device]:
    devices = list(jax.devices())
    if len(devices) < 2:
        skip("there is one device; set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    return devices


def _unit() -> int:
    """A size that divides over any part of the devices."""
    return math.lcm(8, jax.device_count())


def _trained(plan: Plan) -> dict[str, np.ndarray]:
    """Losses, gradient norms, parameters and optimizer state after some steps of the core's own training program."""
    e = plan.experiment
    rows = rows_of(e.dataset, STEPS * e.batch_size)
    batches = {k: v.reshape(STEPS, e.batch_size, *v.shape[1:]) for k, v in rows.items()}
    state, metrics = jitted(plan, STEPS)(drawn(plan), to_devices(plan.layout, batches, stacked=True))
    found = {"loss": metrics["loss"], "gradient_norm": metrics["gradient_norm"]}
    found |= {f"params.{k}": v for k, v in dotted(state.params).items()}
    found |= {f"gradients.{k}": v for k, v in dotted(state.optimizer).items()}
    return {k: np.asarray(v, np.float64) for k, v in found.items()}


def _held(tree: Any, device: jax.Device) -> int:
    """Bytes of `tree` in the memory of `device`."""
    shards = [shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == device]
    return sum(int(shard.data.nbytes) for shard in shards)


def _noisy(state: TrainState) -> TrainState:
    """The state with random numbers in place of each array of floats, so that no two are alike."""
    generator = np.random.default_rng(0)

    def draw(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jax.device_put(generator.normal(size=x.shape).astype(x.dtype), x.sharding)

    frozen, state = state.frozen, dataclasses.replace(state, frozen={})
    return dataclasses.replace(jax.tree.map(draw, state), frozen=frozen)


def _through_a_checkpoint(state: TrainState, plan: Plan) -> TrainState:
    """`state`, saved by the core and restored as `plan` wants it."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        try:
            checkpoints.save(1, dataclasses.replace(state, frozen={}), {"frozen": digests(state.frozen)}, {})
            checkpoints.wait()
            return restored(plan, checkpoints, 1)
        finally:
            checkpoints.close()


def _same_bits(one: TrainState, two: TrainState) -> bool:
    there = dotted(two)
    return all(np.asarray(x).tobytes() == np.asarray(there[path]).tobytes() for path, x in dotted(one).items())


def _is_placed(x: jax.Array, wanted: jax.sharding.Sharding) -> bool:
    return x.sharding.is_equivalent_to(wanted, x.ndim)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A process with one device, for plugins that count the devices themselves."""
    device = jax.devices()[0]
    answers: Mapping[str, Any] = {
        "device_count": 1,
        "local_device_count": 1,
        "devices": [device],
        "local_devices": [device],
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(jax, name, return_value=answer))
        yield


@dataclasses.dataclass(frozen=True)
class _Replicated:
    """Plain data parallelism: each device holds all parameters."""

    def mesh_axes(self) -> Mapping[str, int]:
        return {"data": -1}

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        return {"batch": ("data",)}


def _small(parallelism: Parallelism) -> Experiment:
    """A transformer of one head a device, and as many of everything else that has a name."""
    return Experiment(
        model=_Model(unit=_unit()),
        dataset=_Rows(unit=_unit()),
        objective=_NextToken(),
        optimizer=_Momentum(),
        parallelism=parallelism,
        trackers=(),
        steps=100,
        batch_size=_unit(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
    """Random tokens: 6 `unit` of them in the vocabulary, 2 `unit` in a row."""

    unit: int

    def spec(self) -> DataSpec:
        row = ArraySpec((2 * self.unit,), "int32")
        return DataSpec({"inputs": row, "targets": row}, vocab_size=6 * self.unit, units_per_example=2 * self.unit)

    def source(self, split: str) -> Sequence[dict[str, np.ndarray]]:
        rows = batch_of(self.spec(), 2 * self.unit)
        return [{name: rows[name][i] for name in self.spec().elements} for i in range(2 * self.unit)]

    def fingerprint(self) -> str:
        return str(self.unit)


@dataclasses.dataclass(frozen=True)
class _NextToken:
    """Cross-entropy of each token."""

    def __call__(self, module: Any, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        logits = module(batch, train=train, rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return Outcome(losses, jnp.ones_like(losses), logits, batch["targets"])


@dataclasses.dataclass(frozen=True)
class _Momentum:
    """Gradient descent with momentum: the state is a sum of gradients, which rounding changes no more than them."""

    def build(self, total_steps: int, axes: Any) -> optax.GradientTransformation:
        return optax.sgd(self.learning_rate_at(total_steps), momentum=0.9)

    def learning_rate_at(self, total_steps: int) -> optax.Schedule:
        return optax.constant_schedule(0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Model:
    """A transformer of one block."""

    unit: int

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> nnx.Module:
        assert spec.vocab_size is not None
        return _Transformer(self.unit, spec.vocab_size, spec.elements["inputs"].shape[0], rngs)


class _Transformer(nnx.Module):
    """One block of causal attention and a feed-forward layer, with the logical axes of the parameters of language models."""

    def __init__(self, unit: int, vocab: int, length: int, rngs: nnx.Rngs) -> None:
        width, hidden = HEAD_DIM * unit, 2 * unit

        def parameter(spread: float, **axes: int) -> nnx.Param[Any]:
            value = spread * jax.random.normal(rngs.params(), tuple(axes.values()))
            return nnx.Param(value, axes=tuple(axes))

        inner = width**-0.5
        self.tokens = parameter(0.5, vocab=vocab, embed=width)
        self.positions = parameter(0.5, position=length, embed=width)
        self.query = parameter(inner, embed=width, heads=unit, head_dim=HEAD_DIM)
        self.key = parameter(inner, embed=width, kv_heads=unit, head_dim=HEAD_DIM)
        self.value = parameter(inner, embed=width, kv_heads=unit, head_dim=HEAD_DIM)
        self.out = parameter(inner, heads=unit, head_dim=HEAD_DIM, embed=width)
        self.up = parameter(inner, embed=width, mlp=hidden)
        self.bias = parameter(0.1, mlp=hidden)
        self.down = parameter(hidden**-0.5, mlp=hidden, embed=width)
        self.head = parameter(inner, embed=width, vocab=vocab)

    def __call__(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        x = self.tokens[...][batch["inputs"]] + self.positions[...][None]
        x = constrain(x, "batch", "sequence", "act_embed")
        q, k, v = (jnp.einsum("bte,ehd->bthd", _norm(x), w[...]) for w in (self.query, self.key, self.value))
        mixed = jax.nn.dot_product_attention(constrain(q, "batch", "sequence", "act_heads", None), k, v, is_causal=True)
        x = x + jnp.einsum("bthd,hde->bte", mixed, self.out[...])
        hidden = constrain(_norm(x) @ self.up[...] + self.bias[...][None, None], "batch", "sequence", "act_mlp")
        x = constrain(x + jax.nn.gelu(hidden) @ self.down[...], "batch", "sequence", "act_embed")
        return constrain(_norm(x) @ self.head[...], "batch", "sequence", "act_vocab")


def _norm(x: jax.Array) -> jax.Array:
    """Root mean square 1 over the width."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
