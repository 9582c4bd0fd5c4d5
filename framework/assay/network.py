"""A model plugin's NNX module as a pure function: plain nested dicts of arrays in, a live module out, and back."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from assay.data.spec import DataSpec
from assay.errors import PluginError
from assay.kinds import Model

Tree = dict[str, Any]
"""Nested dict of arrays; keys are strings, so that a path reads "blocks/0/attention/query/kernel"."""
NOTHING: Tree = {}


class Frozen(nnx.Variable[Any]):
    """A parameter that is not trained, with `axes` like an nnx.Param's: the base of an adapter, a reference model.

    It is placed and cast as a parameter is. It has no gradient, and checkpoints leave it out: it is made again from the seed and
    the model's initial values.
    """


@dataclasses.dataclass(frozen=True)
class Network:
    """The static part of a module: its structure, the shapes of its arrays, and the logical axes of its parameters.

    params: tree of ShapeDtypeStruct; frozen: the same for Frozen variables; stats: for all others (such as BatchNorm's averages).
    axes, frozen_axes: trees like params and frozen; a leaf is a tuple with a logical name or None for each dimension.
    """

    model: Model
    spec: DataSpec
    graph: Any
    param_variables: Any
    frozen_variables: Any
    stat_variables: Any
    params: Tree
    frozen: Tree
    stats: Tree
    axes: Tree
    frozen_axes: Tree

    def merge(self, params: Tree, stats: Tree, dtype: str = "float32", frozen: Tree = NOTHING) -> nnx.Module:
        """The live module; floating point parameters are cast to `dtype` on the way (and gradients back)."""
        params, frozen = jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, (params, frozen)
        )
        return nnx.merge(
            self.graph,
            _fill(self.param_variables, params),
            _fill(self.frozen_variables, frozen),
            _fill(self.stat_variables, stats),
        )

    def stats_of(self, module: nnx.Module) -> Tree:
        """The non-parameter variables of `module`, after a call may have changed them."""
        return _tree(_split(module)[3])

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """(params, stats), drawn from `key`. Traceable: under jit with shardings no device ever holds more than its part."""
        _, params, _, rest = _split(self.model.build(self.spec, nnx.Rngs(params=key)))
        return _tree(params), _tree(rest)

    def init_frozen(self, key: jax.Array) -> Tree:
        """The Frozen variables of the same draw. Traceable."""
        return _tree(_split(self.model.build(self.spec, nnx.Rngs(params=key)))[2]) if self.frozen else {}

    @property
    def parameter_count(self) -> int:
        """Number of trained scalars."""
        return sum(x.size for x in jax.tree.leaves(self.params))


def freeze(module: nnx.Module) -> nnx.Module:
    """`module`, every parameter of which becomes a Frozen variable with the same value and axes; in place, also under a trace."""
    for path, node in list(nnx.iter_graph(module)):
        if isinstance(node, nnx.Param):
            parent: Any = functools.reduce(_child, path[:-1], module)
            frozen = Frozen(node.get_raw_value(), axes=node.get_metadata().get("axes"))
            if isinstance(parent, dict) or isinstance(path[-1], int):
                parent[path[-1]] = frozen
            else:
                setattr(parent, str(path[-1]), frozen)
    return module


def make_network(model: Model, spec: DataSpec) -> Network:
    """Build `model` abstractly: nothing is allocated. Raises PluginError when the module breaks the contract."""
    module = nnx.eval_shape(lambda: model.build(spec, nnx.Rngs(params=jax.random.key(0))))
    graph, params, frozen, rest = _split(module)
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if any(isinstance(v, nnx.RngState) for _, v in nnx.to_flat_state(rest)):
        raise PluginError(f"model {name} stores random state; draw from the `rngs` of the call, not of the constructor")
    return Network(
        model=model,
        spec=spec,
        graph=graph,
        param_variables=params,
        frozen_variables=frozen,
        stat_variables=rest,
        params=_tree(params),
        frozen=_tree(frozen),
        stats=_tree(rest),
        axes=_axes(params, name),
        frozen_axes=_axes(frozen, name),
    )


def _split(module: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """(structure, parameters, Frozen variables, all others)."""
    parts: Any = nnx.split(module, nnx.Param, Frozen, ...)
    return parts


def _child(node: Any, key: Any) -> Any:
    return node[key] if isinstance(node, dict) or isinstance(key, int) else getattr(node, key)


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
            "Create them as nnx.Param(value, axes=(...)) (or Frozen), one logical name or None for each dimension"
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
