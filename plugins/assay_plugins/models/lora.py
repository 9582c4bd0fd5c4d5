"""Low-rank adapters: a model whose own parameters stay as they are, beside small trained ones that change some of its kernels."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from assay.data.spec import DataSpec
from assay.errors import ConfigError
from assay.kinds import InitialValues, Model
from assay.network import Frozen, freeze
from assay.outcome import Batch
from assay_plugins.models.checks import at_least
from assay_plugins.models.layers import Linear

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Hu et al. 2022 (arXiv:2106.09685): each target kernel W is used as W + alpha / rank A B (section 4.1, for rows as inputs).

    A, (inputs, rank), begins as N(0, 1 / inputs) and B, (rank, outputs), as 0, so that training begins with the model itself.
    A and B alone are trained, have optimizer state and are in checkpoints; the model's parameters are Frozen.

    model: the model; most often model.pretrained. rank: of the change. alpha: its scale, over rank.
    targets: maps whose kernels are adapted, by the end of their path: 'query', 'mlp/up' or 'blocks/0/attention/out'.
    """

    model: Model
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        """Raise ValueError for values out of range."""
        at_least(1, rank=self.rank)
        if self.alpha <= 0:
            raise ValueError(f"alpha = {self.alpha}: must be greater than 0")
        if not self.targets:
            raise ValueError("targets = (): name at least one map, such as 'query'")

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / self.rank

    def build(self, spec: DataSpec, rngs: nnx.Rngs) -> "Adapted":
        """The model's network, frozen, with adapters.

        Raises what the model raises for data that do not fit, and ConfigError for a target that names no kernel.
        """
        base = self.model.build(spec, rngs)
        decodes = hasattr(base, "init_cache") and hasattr(base, "decode")
        return (AdaptedDecoder if decodes else Adapted)(self, base, rngs)

    def initial_values(self, spec: DataSpec) -> Mapping[str, np.ndarray]:
        """The model's own."""
        values = self.model.initial_values(spec) if isinstance(self.model, InitialValues) else {}
        return {f"base/{path}": value for path, value in values.items()}

    def merged(self, variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters of `model` with the adapters in them, from all variables of this one, by path ("base/…", "adapters/…")."""
        return merged(variables, self.scale)


class Adapted(nnx.Module):
    """The network of `LoRA`."""

    def __init__(self, options: LoRA, base: nnx.Module, rngs: nnx.Rngs) -> None:
        self.scale = options.scale
        kernels = _kernels(base, options.targets)
        self.paths = tuple(kernels)
        self.adapters: Any = nnx.Dict()
        for path, (kernel, inputs) in kernels.items():
            node = functools.reduce(
                lambda parent, key: parent.setdefault(str(key), nnx.Dict()), path[:-1], self.adapters
            )
            node[str(path[-1])] = Adapter(kernel, inputs, options.rank, rngs)
        self.base = freeze(base)

    def __call__(self, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Array:
        """The model's output, with the adapted kernels."""
        module: Any = self.whole()
        output = module(batch, train=train, rngs=rngs)
        nnx.update(self.base, nnx.state(module, nnx.Not(Frozen)))  # such as BatchNorm's averages
        return output

    def whole(self) -> nnx.Module:
        """The model with the adapters in its kernels; a pure function of the variables."""
        module = nnx.clone(self.base)
        for path in self.paths:
            adapter: Any = functools.reduce(lambda node, key: node[str(key)], path, self.adapters)
            kernel: Any = _at(module, path).kernel
            kernel[...] = changed(kernel[...], adapter.a[...], adapter.b[...], self.scale)
        return module


class AdaptedDecoder(Adapted):
    """The same for a model that decodes token by token."""

    def init_cache(self, *args: Any) -> Any:
        """The model's cache (see model.transformer)."""
        base: Any = self.base
        return base.init_cache(*args)

    def decode(self, *args: Any) -> Any:
        """The model's next logits and cache, with the adapted kernels."""
        module: Any = self.whole()
        return module.decode(*args)


class Adapter(nnx.Module):
    """a: (*inputs, rank). b: (rank, *outputs). The rank has no logical axis, so that it is never divided."""

    def __init__(self, kernel: nnx.Param[Array], inputs: int, rank: int, rngs: nnx.Rngs) -> None:
        shape, axes = kernel.shape, kernel.get_metadata()["axes"]
        spread = 1 / math.sqrt(math.prod(shape[:inputs]))
        a = spread * jax.random.normal(rngs.params(), (*shape[:inputs], rank), jnp.float32)
        self.a = nnx.Param(a, axes=(*axes[:inputs], None))
        self.b = nnx.Param(jnp.zeros((rank, *shape[inputs:]), jnp.float32), axes=(None, *axes[inputs:]))


def changed(kernel: Any, a: Any, b: Any, scale: float) -> Any:
    """kernel + scale a b, for numpy's arrays and jax's."""
    rank = b.shape[0]
    return kernel + scale * (a.reshape(-1, rank) @ b.reshape(rank, -1)).reshape(kernel.shape)


def merged(variables: Mapping[str, Any], scale: float) -> dict[str, np.ndarray]:
    """See LoRA.merged."""
    found = {}
    for path, value in variables.items():
        if path.startswith("base/"):
            plain = path.removeprefix("base/")
            adapter = f"adapters/{plain.removesuffix('/kernel')}"
            there = plain.endswith("/kernel") and f"{adapter}/a" in variables
            found[plain] = np.asarray(value)
            if there:
                a, b = (np.asarray(variables[f"{adapter}/{name}"]) for name in "ab")
                found[plain] = changed(found[plain], a, b, scale)
    return found


def _kernels(base: nnx.Module, targets: tuple[str, ...]) -> dict[Path, tuple[nnx.Param[Array], int]]:
    """Path of each target map -> its kernel, and how many of the kernel's dimensions are inputs."""
    maps = {
        path[:-1]: node
        for path, node in nnx.iter_graph(base)
        if path[-1:] == ("kernel",) and isinstance(node, nnx.Param)
    }
    names = {path: "/".join(map(str, path)) for path in maps}
    for target in targets:
        if not any(_ends(name, target) for name in names.values()):
            there = sorted({name.split("/")[-1] for name in names.values()})
            raise ConfigError(
                f"model.lora.targets: no kernel of the model is called {target!r}; there are {', '.join(there)}"
            )
    found = {}
    for path, kernel in maps.items():
        if any(_ends(names[path], target) for target in targets):
            parent = _at(base, path)
            if not isinstance(parent, Linear) and kernel.ndim != 2:
                raise ConfigError(
                    f"model.lora.targets: {names[path]} has a kernel of shape {kernel.shape}, which is no linear map"
                )
            found[path] = (kernel, parent.inputs if isinstance(parent, Linear) else 1)
    return found


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f"/{target}")


def _at(module: Any, path: Path) -> Any:
    """What lies at `path` in a module."""

    def child(node: Any, key: str | int) -> Any:
        return node[key] if isinstance(node, dict | nnx.Dict) or isinstance(key, int) else getattr(node, key)

    return functools.reduce(child, path, module)
