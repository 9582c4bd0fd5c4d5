"""FLOPs by hand-counted examples."""

import jax
import jax.numpy as jnp

from assay.plan.flops import forward_cost, model_flops_utilization


def forward_flops(function, *args):
    return forward_cost(function, *args).flops


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_matrix_product():
    assert forward_flops(jnp.dot, spec(3, 5), spec(5, 7)) == 2 * 3 * 5 * 7


def test_batched_dots_count_every_batch():
    assert (
        forward_flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), spec(4, 3, 5), spec(4, 5, 7)) == 4 * 2 * 3 * 5 * 7
    )


def test_a_convolution():
    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert forward_flops(convolve, spec(2, 8, 8, 3), spec(3, 3, 3, 16)) == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)
    assert forward_cost(jax.jit(convolve), spec(2, 8, 8, 3), spec(3, 3, 3, 16)).convolves
    assert not forward_cost(jnp.dot, spec(3, 5), spec(5, 7)).convolves


def test_scans_multiply_and_calls_nest():
    @jax.jit
    def square(x):
        return x @ x

    def scan(x):
        return jax.lax.scan(lambda c, _: (jax.checkpoint(square)(c), None), x, length=6)[0]

    assert forward_flops(scan, spec(4, 4)) == 6 * 2 * 4**3


def test_custom_derivatives_count_the_forward_pass_once():
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    assert forward_flops(product, spec(3, 5), spec(5, 7)) == 2 * 3 * 5 * 7


def test_the_dearer_branch_counts():
    def either(flag, x):
        return jax.lax.cond(flag, lambda y: y @ y, lambda y: y @ y @ y, x)

    assert forward_flops(either, jax.ShapeDtypeStruct((), bool), spec(4, 4)) == 2 * 2 * 4**3


def test_utilization():
    assert model_flops_utilization(1e12, 0.01, 2, 1e14) == 0.5
