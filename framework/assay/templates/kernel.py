"""Cross entropy of a linear head as one writes it: all logits at once, for vocabularies that are small."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from assay_kernels import Target
from assay_kernels.linear_cross_entropy import CrossEntropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class MyPlugin:
    """Of the op linear_cross_entropy, without its options: the fewest products, and the most memory.

    largest: the most classes that it is for.
    """

    op: ClassVar[str] = "linear_cross_entropy"
    name: ClassVar[str] = "my_plugin"
    priority: ClassVar[int] = 40

    largest: int = 4096

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if self.largest < 1:
            raise ValueError(f"largest = {self.largest}: must be at least 1")

    def supports(self, target: Target, x: Any, w: Any, labels: Any, weights: Any, options: Any) -> str | None:
        """None, or why not; x is (tokens, width), w (width, classes), labels (tokens,)."""
        classes = w.shape[1]
        if classes > self.largest:
            return f"{classes} classes are more than {self.largest}"
        plain = type(options)(classes, shards=options.shards)  # over how many devices: it changes no value
        return None if options == plain else f"has none of the options in {options}"

    def __call__(self, x: Any, w: Any, labels: Any, weights: Any, options: Any) -> CrossEntropy:
        """Loss, negative log likelihood and log-sum-exp of each token, 0 where its label is negative, NaN where it is no class."""
        ignored, known = labels < 0, labels < w.shape[1]
        x = jnp.where((~ignored & known)[:, None], x, jnp.zeros((), x.dtype))
        scores = jnp.dot(x, w, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
        lse = jax.nn.logsumexp(scores, axis=-1)
        label = jnp.clip(labels, 0, w.shape[1] - 1)
        nll = lse - jnp.take_along_axis(scores, label[:, None], axis=-1)[:, 0]
        nothing = jnp.where(ignored, 0.0, jnp.nan)
        counted = ~ignored & known
        loss, nll, lse = (jnp.where(counted, value, nothing.astype(value.dtype)) for value in (nll, nll, lse))
        return CrossEntropy(loss, nll, lse)
