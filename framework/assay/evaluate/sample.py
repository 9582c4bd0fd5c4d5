"""Sampling as an optional capability of an objective: text that goes on from a prompt, or images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from assay.data.spec import DataSpec

if TYPE_CHECKING:  # asking whether an objective can sample must not import flax
    from flax import nnx


@runtime_checkable
class Sampler(Protocol):
    """An objective that can continue a prompt."""

    def sample(
        self,
        module: "nnx.Module",
        spec: DataSpec,
        prompts: Sequence[str],
        *,
        length: int,
        temperature: float,
        top_k: int | None,
        seed: int,
    ) -> list[str]:
        """The continuation of each prompt, without the prompt; a pure function of its arguments.

        length: most tokens to add. temperature: divides the logits; 0 takes the likeliest token every time. top_k: draw from this
        many likeliest tokens only; None for all. Raises ConfigError for values out of range or a dataset that is no text.
        """


@runtime_checkable
class ImageSampler(Protocol):
    """An objective that can draw images."""

    def sample_images(self, module: "nnx.Module", spec: DataSpec, *, seed: int) -> Mapping[str, np.ndarray]:
        """Name -> image, uint8 (height, width, 1 or 3); a pure function of its arguments."""
