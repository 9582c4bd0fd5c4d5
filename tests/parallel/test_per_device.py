"""A function that each device calls on its own part: where it is, where not and why, and its gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from assay.parallel.constrain import layout
from assay.parallel.layout import make_layout
from assay.parallel.per_device import per_device
from assay_kernels import H200, Op, for_target, recording
from assay_plugins.parallelism.fsdp_tensor import FSDPTensor

OP = Op("scaled", lambda x, w: x * w)
seen: list[tuple[int, ...]] = []


@OP.register(
    "opaque",
    supports=lambda target, x, w: None if target.is_hopper else f"needs a Hopper GPU, this is {target}",
    priority=9,
)
def opaque(x: jax.Array, w: jax.Array) -> jax.Array:
    """What the reference does, and notes the shape that a device has."""
    seen.append(x.shape)
    return x * w


def scaled(x: jax.Array, w: jax.Array) -> jax.Array:
    return per_device(OP, [("batch", None, "act_heads"), None], ("batch", None, "act_heads"), whole=["sequence"])(x, w)


def run(x: jax.Array, sequence: bool = False) -> tuple[list[str], list[tuple[int, ...]]]:
    """The choice as a line, and the shapes that the opaque implementation saw; checks values and gradients."""
    seen.clear()
    placed = make_layout(FSDPTensor(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    if sequence:
        placed = dataclasses.replace(placed, rules={**placed.rules, "sequence": ("tensor",)})
    w = jnp.arange(1.0, 3.0)[None, :, None]
    with for_target(H200), layout(placed.sharding), recording() as choices:
        total, gradients = jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(scaled(x, w) ** 2), (0, 1)))(x, w)
    np.testing.assert_allclose(total, np.sum((x * w) ** 2), rtol=1e-6)
    np.testing.assert_allclose(gradients[0], 2 * x * w * w, rtol=1e-6)
    np.testing.assert_allclose(gradients[1], np.sum(2 * x * x * w, axis=(0, 2), keepdims=True), rtol=1e-6)
    return [str(choice) for choice in choices], list(seen)


def test_each_device_has_its_part_of_the_batch_and_the_heads() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 6)), jnp.float32)
    choices, shapes = run(x)
    assert set(shapes) == {(2, 2, 3)}
    assert "scaled: opaque" in choices[0]


@pytest.mark.parametrize(
    ("shape", "sequence", "reason"),
    [
        ((6, 2, 6), False, "'batch' of size 6 cannot be divided over 4 devices"),
        ((8, 2, 5), False, "'act_heads' of size 5 cannot be divided over 2 devices"),
        ((8, 2, 6), True, "'sequence' is divided over 2 devices"),
    ],
)
def test_what_cannot_be_divided_stays_with_the_compiler_and_the_choice_says_why(
    shape: tuple[int, ...], sequence: bool, reason: str
) -> None:
    choices, shapes = run(jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32), sequence=sequence)
    assert not shapes
    assert "scaled: reference" in choices[0]
    assert reason in choices[0]


def test_without_a_layout_on_one_device_and_off_cuda_it_is_the_function_itself() -> None:
    x = jnp.ones((8, 2, 6))
    seen.clear()
    with for_target(H200):
        scaled(x, jnp.ones((1, 1, 1)))
        with layout(make_layout(FSDPTensor(data=1, fsdp=1, tensor=1), jax.devices()[:1]).sharding):
            scaled(x, jnp.ones((1, 1, 1)))
    assert seen == [(8, 2, 6)] * 2
    with layout(make_layout(FSDPTensor(data=2, fsdp=2, tensor=2), jax.devices()[:8]).sharding), recording() as choices:
        assert "shard_map" not in str(jax.make_jaxpr(scaled)(x, jnp.ones((1, 1, 1))))
    assert choices[0].implementation == "reference"


def test_on_several_devices_a_call_that_is_not_divided_says_how_it_would_be() -> None:
    seen.clear()
    placed = make_layout(FSDPTensor(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    with for_target(H200), layout(placed.sharding), recording() as choices:
        OP(jnp.ones((8, 2, 6)), jnp.ones((1, 1, 1)))
    assert not seen
    assert "not called through assay.parallel.per_device" in str(choices[0])
