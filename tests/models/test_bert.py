"""BERT: the kit's checks with either head, and the properties that set it apart from the decoder."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError
from assay.network import make_network
from assay.testing.model import ModelKit
from assay_plugins.models.bert import BERT

LENGTH, VOCAB = 12, 16
ROW = ArraySpec((LENGTH,), "int32")
TEXT = DataSpec({"inputs": ROW, "token_types": ROW}, vocab_size=VOCAB, num_classes=3)
MODEL = BERT(layers=1, width=16, heads=4)


class TestBERT(ModelKit):
    head = "tokens"

    def plugin(self) -> BERT:
        return dataclasses.replace(MODEL, head=self.head)

    def spec(self) -> DataSpec:
        return TEXT

    def batch(self, size: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        rows = {"inputs": rng.integers(0, VOCAB, (size, LENGTH)), "token_types": rng.integers(0, 2, (size, LENGTH))}
        return {**{k: v.astype(np.int32) for k, v in rows.items()}, "mask": np.ones(size, bool)}


class TestBERTForClasses(TestBERT):
    head = "classes"


def called(model: BERT, **changed: Any) -> np.ndarray:
    network = make_network(model, TEXT)
    params, _ = network.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    batch = {**{k: jnp.asarray(v) for k, v in TestBERT().batch(2).items()}, **changed}
    return np.asarray(network.merge(params, {})(batch, train=False, rngs=None))


def test_bert_base_has_its_published_size() -> None:
    # bert-base-uncased: 109,482,240 parameters with the pooler, which the head for tokens has not (768 * 769), without any head.
    spec = DataSpec({"inputs": ArraySpec((512,), "int32")}, vocab_size=30522)
    count = make_network(BERT(layers=12, width=768, heads=12), spec).parameter_count
    head = 768 * 768 + 768 + 2 * 768 + 30522
    assert count - head == 109_482_240 - 768 * 769


def test_every_position_sees_the_whole_row() -> None:
    inputs = jnp.asarray(TestBERT().batch(2)["inputs"])
    before, after = (called(MODEL, inputs=x) for x in (inputs, inputs.at[:, -1].add(1) % VOCAB))
    assert np.all(np.abs(before - after).max(axis=-1) > 1e-4)


def test_padding_changes_nothing() -> None:
    inputs = jnp.asarray(TestBERT().batch(2)["inputs"])
    segments = jnp.asarray([[1] * 7 + [0] * 5] * 2)
    one, two = (called(MODEL, inputs=x, segment_ids=segments) for x in (inputs, inputs.at[:, 8].add(1) % VOCAB))
    np.testing.assert_array_equal(one[:, :7], two[:, :7])


def test_kinds_of_token_matter_and_begin_at_0() -> None:
    zeros = jnp.zeros((2, LENGTH), jnp.int32)
    assert np.abs(called(MODEL, token_types=zeros) - called(MODEL, token_types=zeros + 1)).max() > 1e-2
    batch = {k: v for k, v in TestBERT().batch(2).items() if k == "inputs"}
    network = make_network(MODEL, TEXT)
    module = network.merge(network.init(jax.random.key(0))[0], {})
    plain, zero = (
        module({"inputs": jnp.asarray(batch["inputs"]), **x}, train=False) for x in ({}, {"token_types": zeros})
    )
    np.testing.assert_array_equal(plain, zero)


def test_dropout_happens_in_training_only() -> None:
    network = make_network(dataclasses.replace(MODEL, dropout=0.5), TEXT)
    module = network.merge(network.init(jax.random.key(0))[0], {})
    batch = {k: jnp.asarray(v) for k, v in TestBERT().batch(2).items()}
    first, again = (module(batch, train=True, rngs=nnx.Rngs(0)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - module(batch, train=False)).max() > 1e-2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"head = 'classes' needs a dataset with labels"):
        dataclasses.replace(MODEL, head="classes").build(dataclasses.replace(TEXT, num_classes=None), nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"context = 4: must be at least 12"):
        dataclasses.replace(MODEL, context=4).build(TEXT, nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"heads = 3: must divide width = 16"):
        BERT(layers=1, width=16, heads=3)
