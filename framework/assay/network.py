"""A model plugin's NNX module as a pure function: plain nested dicts of arrays in, a live module out, and back."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from assay.data.spec import DataSpec
from assay.errors import PluginError
from assay.kinds import Model

Tree = dict[str, Any]
"""Nested dict of arrays; keys are strings, so that a path reads "blocks/0/attention/query/kernel"."""


@dataclasses.dataclass(frozen=True)
class Network:
    """The static part of a module: its structure, the shapes of its arrays, and the logical axes of its parameters.

    params: tree of ShapeDtypeStruct; stats: the same for all other variables (such as BatchNorm's averages).
    axes: tree like params; a leaf is a tuple with a logical name or None for each dimension.
    """

    model: Model
    spec: DataSpec
    graph: Any
    param_variables: Any
    stat_variables: Any
    params: Tree
    stats: Tree
    axes: Tree

    def merge(self, params: Tree, stats: Tree, dtype: str = "float32") -> nnx.Module:
        """The live module; floating point parameters are cast to `dtype` on the way (and gradients back)."""
        cast = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
        return nnx.merge(self.graph, _fill(self.param_variables, cast), _fill(self.stat_variables, stats))

    def stats_of(self, module: nnx.Module) -> Tree:
        """The non-parameter variables of `module`, after a call may have changed them."""
        return _tree(_split(module)[2])

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """(params, stats), drawn from `key`. Traceable: under jit with shardings no device ever holds more than its part."""
        _, params, rest = _split(self.model.build(self.spec, nnx.Rngs(params=key)))
        return _tree(params), _tree(rest)

    @property
    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(x.size for x in jax.tree.leaves(self.params))


def make_network(model: Model, spec: DataSpec) -> Network:
    """Build `model` abstractly: nothing is allocated. Raises PluginError when the module breaks the contract."""
    module = nnx.eval_shape(lambda: model.build(spec, nnx.Rngs(params=jax.random.key(0))))
    graph, params, rest = _split(module)
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if any(isinstance(v, nnx.RngState) for _, v in nnx.to_flat_state(rest)):
        raise PluginError(f"model {name} stores random state; draw from the `rngs` of the call, not of the constructor")
    return Network(model, spec, graph, params, rest, _tree(params), _tree(rest), _axes(params, name))


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """(structure, parameters, all other variables)."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    return parts


def _tree(state: Any) -> Tree:
    """Nested dict of the raw arrays in an nnx.State."""
    return _nest({path: variable.get_raw_value() for path, variable in nnx.to_flat_state(state)})


def _fill(variables: Any, tree: Tree) -> Any:
    """The nnx.State like `variables` with the arrays of `tree`."""
    flat = nnx.to_flat_state(variables)
    return nnx.from_flat_state([(path, variable.replace(_lookup(tree, path))) for path, variable in flat])


def _axes(params: Any, name: str) -> Tree:
    """The logical axes that each parameter was declared with. Raises PluginError naming those that have none."""
    flat = {path: variable.get_metadata().get("axes") for path, variable in nnx.to_flat_state(params)}
    missing = ["/".join(map(str, path)) for path, axes in flat.items() if axes is None]
    if missing:
        raise PluginError(
            f"model {name}: parameters without logical axes: {', '.join(missing)}. "
            "Create them as nnx.Param(value, axes=(...)), one logical name or None for each dimension"
        )
    return _nest({path: tuple(axes) for path, axes in flat.items()})


def _nest(flat: dict[tuple[Any, ...], Any]) -> Tree:
    tree: Tree = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(str(key), {})
        node[str(path[-1])] = value
    return tree


def _lookup(tree: Tree, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[str(key)]
    return tree
