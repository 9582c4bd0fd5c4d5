"""Group relative policy optimisation: reinforcement learning from a reward that a program computes."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from assay.outcome import Batch, Outcome
from assay_plugins.objectives.cross_entropy import outcome_of
from assay_plugins.objectives.likelihood import reference_of, token_log_probabilities
from assay_plugins.objectives.rollouts import rollouts

EPSILON = 1e-4  # keeps the advantages of a group with equal rewards at 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO:
    """-A_i log p(token) over G completions of each prompt, A_i = (r_i - mean r) / std r (Shao et al. 2024, arXiv:2402.03300, section 4.1).

    Completions are drawn from the model as it is, in the same program, and used for one update: the ratio of eq. 3 is 1, its gradient is
    the policy gradient, and clipping (PPO, Schulman et al. 2017) never binds. The reward is 1 for a completion equal to the example's
    `answer` and 0 otherwise; a subclass may define another `reward`. Evaluation is the cross entropy of the answers, on which
    metric.exact_match is the share that greedy decoding gets right.

    group: completions of each prompt. temperature: of drawing. kl: factor of the divergence from the reference, estimated without bias for
        each token as p_ref/p - log p_ref/p - 1 (eq. 4); above 0 it needs model.with_reference.
    """

    group: int = 8
    temperature: float = 1.0
    kl: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for settings out of range."""
        if self.group < 2:
            raise ValueError(
                f"group = {self.group}: must be at least 2; the advantage compares completions of one prompt"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature}: must be positive")
        if not self.kl >= 0:
            raise ValueError(f"kl = {self.kl}: must be at least 0")

    def reward(self, completions: Int[Array, "rows length"], batch: Batch) -> Float[Array, " rows"]:
        """1 where a completion is the answer, else 0. batch: the example of each row."""
        return jnp.all(completions == batch["answer"], axis=-1).astype(jnp.float32)

    def __call__(self, module: nnx.Module, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outcome:
        """batch: `prompt`, int32 (batch, before), `answer`, int32 (batch, length); for evaluation `inputs`, `targets`, int32 (batch, seq).

        In training losses are (batch, group, length), and scalars are the mean reward and, with kl, the divergence in nats a token.
        """
        assert callable(module)
        if not train or rngs is None:
            return outcome_of(module(batch, train=train, rngs=rngs), batch["targets"], train=train)
        rows = {name: jnp.repeat(value, self.group, axis=0) for name, value in batch.items()}
        prompt, length = rows["prompt"], batch["answer"].shape[1]
        drawn = rollouts(module, prompt, length, self.temperature, rngs.rollouts())
        rewards = self.reward(drawn, rows).reshape(-1, self.group)
        shape = (*rewards.shape, length)
        inputs = {"inputs": jnp.concatenate([prompt, drawn[:, :-1]], axis=1)}
        log_p = self._log_p(module(inputs, train=True, rngs=rngs), drawn).reshape(shape)
        losses = -advantages(rewards)[..., None] * log_p
        scalars = {"reward": jnp.mean(rewards)}
        if self.kl:
            frozen = self._log_p(reference_of(module, "grpo")(inputs, train=False, rngs=None), drawn).reshape(shape)
            divergence = jnp.exp(frozen - log_p) - (frozen - log_p) - 1
            losses, scalars = losses + self.kl * divergence, scalars | {"kl": jnp.mean(divergence)}
        return Outcome(losses, jnp.ones(shape, jnp.float32), scalars=jax.lax.stop_gradient(scalars))

    def _log_p(
        self, logits: Float[Array, "rows seq vocab"], drawn: Int[Array, "rows length"]
    ) -> Float[Array, "rows length"]:
        """log p of the completions' tokens, at the temperature at which they were drawn."""
        return token_log_probabilities(logits[:, -drawn.shape[1] :] / self.temperature, drawn)


def advantages(rewards: Float[Array, "batch group"]) -> Float[Array, "batch group"]:
    """(r - mean) / (std + epsilon) within each group; 0 where all rewards are equal."""
    mean, std = jnp.mean(rewards, axis=1, keepdims=True), jnp.std(rewards, axis=1, keepdims=True)
    return (rewards - mean) / (std + EPSILON)
