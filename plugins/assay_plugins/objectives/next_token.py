"""Next-token prediction, the objective of language models; it can also sample."""

import dataclasses
from collections.abc import Sequence

from flax import nnx

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.outcome import Batch, Outcome
from assay_kernels.linear_cross_entropy import OP
from assay_plugins.models.heads import LinearHead
from assay_plugins.objectives.cross_entropy import checked_fraction, fused_outcome_of, outcome_of
from assay_plugins.objectives.sampling import continuations


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken:
    """Cross entropy of each position's `targets`, the token that follows; targets of -1 do not count.

    z_loss: factor of log(Z)^2, Z the softmax's normaliser, which keeps logits near 0 (Chowdhery et al. 2022, PaLM,
        arXiv:2204.02311, section 5: 1e-4). label_smoothing: share of the target's probability spread over all tokens.
        Both shape the training loss only; evaluation reports the plain cross entropy.
    fused_head: training computes head and loss together, the same values within rounding, without the logits of all tokens in memory. It
        names an implementation of assay_kernels.linear_cross_entropy: 'auto', 'chunked' (no more products than without) or 'blocked'
        (least memory). The network must be a LinearHead, as the transformer and Mamba-2 are. None: by way of the logits.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    fused_head: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        checked_fraction("label_smoothing", self.label_smoothing)
        if not self.z_loss >= 0:
            raise ValueError(f"z_loss = {self.z_loss}: must be at least 0")
        if self.fused_head is not None and self.fused_head not in ("auto", *OP.names):
            raise ValueError(f"fused_head = {self.fused_head!r}: must be None, 'auto' or one of {', '.join(OP.names)}")

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """batch: `targets`, integers (batch, seq), and what `module` reads. module(batch, ...) -> logits (batch, seq, vocab).

        With fused_head an outcome of training has no logits. Raises ConfigError for a network that then cannot do without.
        """
        if train and self.fused_head is not None:
            return self._fused(module, batch, rngs, self.fused_head)
        logits = module(batch, train=train, rngs=rngs)
        return outcome_of(
            logits, batch["targets"], train=train, label_smoothing=self.label_smoothing, z_loss=self.z_loss
        )

    def _fused(self, module: nnx.Module, batch: Batch, rngs: nnx.Rngs | None, impl: str) -> Outcome:
        """The outcome of training without logits."""
        if not isinstance(module, LinearHead):
            raise ConfigError(
                f"objective.next_token.fused_head = {impl!r}: the network, {type(module).__name__}, does not offer `hidden` and "
                "`head_kernel` (see assay_plugins.models.heads); leave it None"
            )
        hidden = module.hidden(batch, train=True, rngs=rngs)
        return fused_outcome_of(
            hidden, *module.head_kernel(), batch, label_smoothing=self.label_smoothing, z_loss=self.z_loss, impl=impl
        )

    def sample(
        self,
        module: nnx.Module,
        spec: DataSpec,
        prompts: Sequence[str],
        *,
        length: int,
        temperature: float,
        top_k: int | None,
        seed: int,
    ) -> list[str]:
        """Each prompt's continuation, token by token; see assay.evaluate.sample.Sampler. Ends early at a document's end."""
        return continuations(module, spec, prompts, length=length, temperature=temperature, top_k=top_k, seed=seed)
