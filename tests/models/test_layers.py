"""The layers' own derivative and dropout's rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from assay_plugins.models.layers import dropout, gelu, standardised


@pytest.mark.parametrize("centred", [False, True])
def test_the_closed_derivative_is_the_derivative(centred: bool) -> None:
    x = 0.5 + jax.random.normal(jax.random.key(0), (3, 7))
    check_grads(lambda x: standardised(x, 0.1, centred), (x,), order=2, modes=("fwd", "rev"), rtol=2e-2, atol=2e-2)


def test_standardised_values() -> None:
    x = np.random.default_rng(0).normal(2.0, 3.0, (4, 50)).astype(np.float32)
    centred, plain = (np.asarray(standardised(jnp.asarray(x), 1e-6, c)) for c in (True, False))
    np.testing.assert_allclose(centred.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(centred.std(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(plain, x / np.sqrt((x**2).mean(-1, keepdims=True)), rtol=1e-5)


def test_gelu_is_exact() -> None:
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), rtol=1e-6, atol=1e-6)


def test_dropout_keeps_the_mean() -> None:
    kept = np.asarray(dropout(jnp.ones((200, 200)), 0.25, jax.random.key(0)))
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.75)}
    assert kept.mean() == pytest.approx(1, abs=0.01)
