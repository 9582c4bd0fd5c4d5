"""A linear classifier, the iris flowers that come with scikit-learn, and the mean rank of the true class."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_iris

from assay.data import cache
from assay.data.arrays import Arrays
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import DataError
from assay.outcome import Batch, Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """logits = x W."""

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> nnx.Module:
        return Net(spec.elements["features"].shape[0], spec.num_classes or 0, rngs)


class Net(nnx.Module):
    """The network of `Linear`."""

    def __init__(self, inputs: int, classes: int, rngs: nnx.Rngs) -> None:
        kernel = nnx.initializers.lecun_normal()(rngs.params(), (inputs, classes))
        self.kernel = nnx.Param(kernel, axes=("features", "classes"))

    def __call__(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        return batch["features"] @ self.kernel[...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iris:
    """Examples: `features`, float32 (5,), the last of them 1, and `label`, int32 (), of three species; every fifth flower is held out."""

    def spec(self) -> DataSpec:
        return DataSpec({"features": ArraySpec((5,), "float32"), "label": ArraySpec((), "int32")}, num_classes=3)

    def source(self, split: str) -> Arrays:
        if split not in ("train", "validation"):
            raise DataError(f"no split '{split}'; there are train and validation")
        features, label = load_iris(return_X_y=True)
        rows = (np.arange(150) % 5 == 0) == (split == "validation")
        features = np.c_[features / features.mean(axis=0) - 1, np.ones(150)]
        return Arrays({"features": features[rows].astype(np.float32), "label": label[rows].astype(np.int32)})

    def fingerprint(self) -> str:
        return cache.digest(*(part.tobytes() for part in load_iris(return_X_y=True)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanRank:
    """The mean place of the true class among all classes by score; 1 is best."""

    def update(self, outcome: Outcome, spec: DataSpec) -> dict[str, jax.Array]:
        assert outcome.logits is not None
        assert outcome.targets is not None
        rank = jnp.sum(outcome.logits >= jnp.take_along_axis(outcome.logits, outcome.targets[..., None], -1), -1)
        return {"rank": jnp.sum(rank * outcome.weights), "weight": jnp.sum(outcome.weights)}

    def merge(self, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: a[name] + b[name] for name in a}

    def compute(self, state: dict[str, np.ndarray]) -> dict[str, float]:
        return {"mean_rank": float(state["rank"] / max(state["weight"], 1))}
