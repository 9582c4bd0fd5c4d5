"""The cross entropy of logits against true classes, in fp32, and the two terms that training may add to it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from assay.outcome import Batch, Outcome
from assay.parallel.constrain import parts
from assay_kernels.linear_cross_entropy import linear_cross_entropy

PADDING = -1e29  # logits below it are those of a padded vocabulary, no classes at all


def cross_entropy(
    logits: Float[Array, "*items classes"], targets: Int[Array, "*items"]
) -> tuple[Float[Array, "*items"], Float[Array, "*items"]]:
    """(negative log likelihood of `targets` in nats, log of the sum of exp(logits)), both fp32 of shape (*items,).

    Targets outside [0, classes) give the latter for both; weight 0 is theirs to have.
    """
    scores = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(scores, axis=-1)
    # A compare and a select fuse with the softmax of the backward pass; a gather's transpose is a scatter, slower on CPU.
    chosen = jnp.sum(jnp.where(_is_target(scores, targets), scores, 0.0), axis=-1)
    return log_normalizer - chosen, log_normalizer


def smoothed(
    logits: Float[Array, "*items classes"],
    nll: Float[Array, "*items"],
    log_normalizer: Float[Array, "*items"],
    label_smoothing: float,
) -> Float[Array, "*items"]:
    """Cross entropy against (1 - s) one-hot + s uniform (Szegedy et al. 2016, arXiv:1512.00567, section 7), nats, fp32.

    The uniform part is over the true classes alone: a class whose logit is below PADDING is none.
    """
    if label_smoothing == 0.0:
        return nll
    scores = logits.astype(jnp.float32)
    uniform = log_normalizer - jnp.mean(scores, axis=-1, where=scores > PADDING)
    return (1.0 - label_smoothing) * nll + label_smoothing * uniform


def outcome_of(
    logits: Float[Array, "*items classes"],
    targets: Int[Array, "*items"],
    *,
    train: bool,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Outcome:
    """Cross entropy as an Outcome. Negative targets have weight 0. The two further terms are part of the training loss only.

    With either of them the plain value goes along as scalar "nll", so that curves of different settings can be compared.
    """
    weights = (targets >= 0).astype(jnp.float32)
    nll, log_normalizer = cross_entropy(logits, targets)
    if not train or (label_smoothing == 0.0 and z_loss == 0.0):
        return Outcome(nll, weights, logits, targets)
    losses = smoothed(logits, nll, log_normalizer, label_smoothing) + z_loss * jnp.square(log_normalizer)
    return Outcome(losses, weights, logits, targets, {"nll": _mean(nll, weights)})


def fused_outcome_of(
    hidden: Float[Array, "batch seq width"],
    kernel: Float[Array, "width columns"],
    classes: int,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    impl: str = "auto",
) -> Outcome:
    """What `outcome_of` gives in training for the logits hidden @ kernel and the batch's `targets`, without them.

    impl: of assay_kernels.linear_cross_entropy.
    """
    targets = batch["targets"]
    weights = (targets >= 0).astype(jnp.float32)
    counting = weights * batch["mask"].astype(jnp.float32)[:, None] if "mask" in batch else weights
    found = linear_cross_entropy(
        hidden,
        kernel,
        targets,
        weights=counting,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        classes=classes,
        shards=parts("batch"),
        impl=impl,
    )
    plain = label_smoothing == 0.0 and z_loss == 0.0
    scalars = {} if plain else {"nll": _mean(jax.lax.stop_gradient(found.nll), weights)}
    return Outcome(found.loss, weights, targets=targets, scalars=scalars)


def checked_fraction(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} = {value}: must be at least 0 and less than 1")


def _mean(losses: Array, weights: Array) -> Array:
    total, weight = Outcome(losses, weights).total()
    return total / jnp.maximum(weight, 1.0)


def _is_target(scores: Array, targets: Array) -> Array:
    """bool (*items, classes): True at each item's target."""
    classes = jax.lax.broadcasted_iota(targets.dtype, scores.shape, scores.ndim - 1)
    return classes == targets[..., None]
