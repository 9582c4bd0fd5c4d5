"""Perplexity and bits per byte: how well the true classes were predicted, as plain likelihood without any training term."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Outcome
from assay_plugins.metrics.common import State, added, ratio, scores_of, weighted_sum
from assay_plugins.objectives.cross_entropy import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity:
    """exp(sum(w * nll) / sum(w)), nll in nats: the number of equally likely classes that would be as hard to predict."""

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, Array]:
        """Sums of nats and of weights."""
        return {"nats": _nats(outcome, "perplexity"), "weight": jnp.sum(outcome.weights.astype(jnp.float32))}

    def merge(self, a: State, b: State) -> State:
        """Sums."""
        return added(a, b)

    def compute(self, state: State) -> dict[str, float]:
        """`perplexity`; infinite beyond floating point, NaN for an empty split."""
        with np.errstate(over="ignore"):
            return {"perplexity": float(np.exp(ratio(state["nats"], state["weight"])))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitsPerByte:
    """sum(w * nll) / ln 2 / sum(w * bytes): bits that an arithmetic coder driven by the model would spend on a byte of text.

    Comparable between tokenizers. bytes: UTF-8 length of each target token; the bits of separators, which have none, count.
    """

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, Array]:
        """Sums of nats and of bytes. Raises ConfigError for data without a tokenizer."""
        nats = _nats(outcome, "bits_per_byte")
        if spec.encoder is None:
            raise ConfigError(
                "experiment.metrics: metric bits_per_byte needs a dataset of text with a tokenizer, and this dataset has none; "
                "remove @metric.bits_per_byte()"
            )
        assert outcome.targets is not None
        lengths = jnp.asarray(spec.encoder.token_bytes(), jnp.float32)
        return {"nats": nats, "bytes": weighted_sum(lengths[jnp.maximum(outcome.targets, 0)], outcome.weights)}

    def merge(self, a: State, b: State) -> State:
        """Sums."""
        return added(a, b)

    def compute(self, state: State) -> dict[str, float]:
        """`bits_per_byte`; NaN for an empty split."""
        return {"bits_per_byte": ratio(state["nats"], state["bytes"]) / math.log(2)}


def _nats(outcome: Outcome, metric: str) -> Float[Array, ""]:
    """Sum of the weighted negative log likelihood. The losses may hold other terms and are not used."""
    logits, targets = scores_of(outcome, metric)
    return weighted_sum(cross_entropy(logits, targets)[0], outcome.weights)
