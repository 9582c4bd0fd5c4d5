"""What happens between steps: evaluation, samples, checkpoints and the profiler. One class each, all with the same two methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import jax

from assay.errors import ConfigError
from assay.evaluate.sample import ImageSampler, Sampler
from assay.plan.plan import Plan
from assay_kernels import using

if TYPE_CHECKING:
    from assay.train.loop import Trainer

SAMPLE_LENGTH = 200


class Callback(Protocol):
    """Acts at the end of certain steps."""

    def due(self, step: int) -> bool:
        """Whether it acts when `step` updates are done; the loop ends a dispatch there."""

    def act(self, trainer: "Trainer", step: int) -> None:
        """Do it."""


class Evaluate:
    """Evaluates every split of the experiment."""

    def __init__(self, every: int, total: int) -> None:
        self._every, self._total = every, total

    def due(self, step: int) -> bool:
        """Every so many steps, and at the end."""
        return step == self._total or _multiple(step, self._every)

    def act(self, trainer: "Trainer", step: int) -> None:
        """Evaluate, log, print."""
        trainer.evaluate(step)


class Sample:
    """Writes samples, for objectives that can."""

    def __init__(self, every: int, prompts: Sequence[str]) -> None:
        self._every, self._prompts = every, prompts

    def due(self, step: int) -> bool:
        """Every so many steps."""
        return _multiple(step, self._every)

    def act(self, trainer: "Trainer", step: int) -> None:
        """Draw images, or continue each prompt, and log them."""
        plan, tracking = trainer.plan, trainer.tracking
        sampler, module, seed = plan.experiment.objective, plan.module(trainer.state), plan.experiment.seed
        if isinstance(sampler, ImageSampler):
            with using(*plan.experiment.kernels):
                images = sampler.sample_images(module, plan.spec, seed=seed)
            for name, image in images.items():
                tracking.image(step, name, image)
            return
        assert isinstance(sampler, Sampler), "checked when the experiment was prepared"
        with using(*plan.experiment.kernels):
            texts = sampler.sample(
                module, plan.spec, self._prompts, length=SAMPLE_LENGTH, temperature=0.8, top_k=None, seed=seed
            )
        for i, (prompt, text) in enumerate(zip(self._prompts, texts, strict=True)):
            tracking.text(step, f"sample_{i}", prompt + text)


class Checkpoint:
    """Saves everything needed to go on; evaluates first where the best checkpoint is kept."""

    def __init__(self, every: int, total: int) -> None:
        self._every, self._total = every, total

    def due(self, step: int) -> bool:
        """Every so many steps, and at the end."""
        return step == self._total or _multiple(step, self._every)

    def act(self, trainer: "Trainer", step: int) -> None:
        """Begin to save."""
        if trainer.plan.experiment.keep_best:
            trainer.evaluate(step)
        trainer.save(step)


class Profile:
    """Writes a profiler trace of a range of steps."""

    def __init__(self, first: int, last: int, directory: Path) -> None:
        self._first, self._last, self._directory = first, last, directory

    def due(self, step: int) -> bool:
        """Before the first of the steps and after the last."""
        return step in (self._first - 1, self._last)

    def act(self, trainer: "Trainer", step: int) -> None:
        """Start or stop the trace."""
        jax.block_until_ready(trainer.state)
        if step == self._first - 1:
            jax.profiler.start_trace(self._directory)
        else:
            jax.profiler.stop_trace()
            trainer.progress.line(f"profile: {self._directory}")


def _multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def callbacks_of(plan: Plan, directory: Path) -> list[Callback]:
    """The experiment's callbacks, in the order in which they act. Raises ConfigError for samples that cannot be had."""
    e = plan.experiment
    callbacks: list[Callback] = [Evaluate(e.evaluate_every, e.steps)]
    if e.sample_every:
        if not isinstance(e.objective, Sampler | ImageSampler):
            raise ConfigError(
                f"experiment.sample_every = {e.sample_every}: objective {type(e.objective).__name__} cannot sample; set it to 0"
            )
        callbacks.append(Sample(e.sample_every, e.sample_prompts or ("",)))
    callbacks.append(Checkpoint(e.checkpoint_every, e.steps))
    if e.profile_steps:
        callbacks.append(Profile(*e.profile_steps, directory / "profile"))
    return callbacks
