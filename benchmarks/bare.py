"""For machines that carry little: what lets the project's models and training step run with jax, flax and optax alone."""

import importlib.util
import sys
import types
from typing import Any


class Annotation:
    """Stands for all of jaxtyping's names: `Float[Array, "batch seq"]` is an annotation, and nothing here checks it."""

    def __class_getitem__(cls, item: Any) -> Any:
        """Any."""
        return Any


def without_jaxtyping() -> None:
    """Put a stand-in in jaxtyping's place where it is not installed. Call it before importing assay."""
    if importlib.util.find_spec("jaxtyping") is None:
        stand_in: Any = types.ModuleType("jaxtyping")
        stand_in.__getattr__ = lambda name: Annotation
        sys.modules["jaxtyping"] = stand_in
