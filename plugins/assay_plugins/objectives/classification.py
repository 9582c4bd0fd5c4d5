"""Classification: the cross entropy of one label for each example."""

import dataclasses

from flax import nnx

from assay.outcome import Batch, Outcome
from assay_plugins.objectives.cross_entropy import checked_fraction, outcome_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross entropy of `label` given the rest of the example. Examples with a negative label do not count.

    label_smoothing: share of the target's probability that training spreads over all classes (Szegedy et al. 2016,
        arXiv:1512.00567). Evaluation reports the plain cross entropy.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for a share out of range."""
        checked_fraction("label_smoothing", self.label_smoothing)

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """batch: `label`, integers (batch,), and what `module` reads. module(batch, ...) -> logits (batch, classes)."""
        logits = module(batch, train=train, rngs=rngs)
        return outcome_of(logits, batch["label"], train=train, label_smoothing=self.label_smoothing)
