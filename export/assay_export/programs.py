"""The programs of a checkpoint: `forward` of any model, `prefill` and `decode` of those that have init_cache and decode.

Each is a pure function of weights by path and inputs by name. The inputs of `forward` are what the objective gives the network and the
network reads. Ops of assay_kernels run as their references, so that a program holds for every platform.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from assay.errors import AssayError, ExportError
from assay.exported import OUTPUT, TOKENS, Dim, Exported, Program, Signature, Tensor
from assay.kinds import Model
from assay.network import Network, make_network
from assay.plan.plan import Plan, batch_shapes
from assay_export.observed import asked_shapes
from assay_export.symbolic import shapes_of, symbols
from assay_kernels import force, ops

PROBE = 2  # rows of the first trace
Arrays = Mapping[str, Any]


def exported(
    plan: Plan,
    variables: tuple[Any, Any, Any],
    examples: Mapping[str, np.ndarray],
    lineage: Mapping[str, Any],
    *,
    max_batch: int = 32,
    max_length: int | None = None,
) -> Exported:
    """What is exported of a checkpoint.

    variables: (params, frozen, stats) that evaluation uses. examples: rows of the evaluation split, as the objective shows them to the
    network.
    max_batch: bound of "batch". max_length: bound of "seq" and "cache", None for the dataset's row length.
    Raises ExportError for a network that cannot be traced, naming the operation.
    """
    weights = weights_of(plan, variables)
    module = functools.partial(module_of, plan.network, plan.experiment.compute_dtype)
    shapes = {path: jax.ShapeDtypeStruct(w.shape, w.dtype) for path, w in weights.items()}
    shown = _shown(plan, module, shapes)
    forward = functools.partial(_forward, module, {})
    inputs, used = _read(forward, shapes, shown)
    inputs = inputs or shown  # a program with no inputs at all would not know its batch
    forward = functools.partial(_forward, module, {n: s for n, s in shown.items() if n not in inputs})
    length = _length(plan, inputs)
    dims = {"batch": Dim(1, max_batch)} | ({"seq": Dim(1, max_length or length)} if length else {})
    programs, notes = _fitted(forward, shapes, _tensors(plan, inputs, length), dims)
    if length:
        decoding, further = _decoding(plan, module, shapes, dims, max_length or length)
        if decoding and "seq" not in programs[0].signature.dims:
            decoding, further = (
                [],
                ["prefill and decode are left out: forward is of one length, and they are checked at many"],
            )
        programs, notes = [*programs, *decoding], [*notes, *further]
        if max_length and max_length < length:
            notes.append(
                f"rows of the dataset have {length} tokens, more than {max_length}: its metrics are not compared"
            )
    for program in programs[1:]:
        used |= _read(program.function, shapes, shapes_of(program.signature, dims, PROBE))[1]
    return Exported(
        model=plan.experiment.model,
        spec=plan.spec,
        programs=programs,
        dims={name: dims[name] for p in programs for name in p.signature.dims},
        weights={path: w for path, w in weights.items() if path in used},
        examples={name: examples[name] for name in inputs},
        lineage=lineage,
        notes=notes,
        dtype=plan.experiment.compute_dtype,
    )


def remade(source: Exported, model: Model, weights: Mapping[str, np.ndarray]) -> Exported:
    """The programs of `source`, by name and signature, of another model that takes and gives the same: its parameters are `weights`."""
    module = functools.partial(module_of, make_network(model, source.spec), source.dtype)
    functions: dict[str, Any] = {"forward": functools.partial(_forward, module, {})}
    if len(source.programs) > 1:
        shapes = {path: jax.ShapeDtypeStruct(w.shape, w.dtype) for path, w in weights.items()}
        functions["decode"] = functools.partial(_decode, module, _cache(module, shapes, jnp.dtype(source.dtype))[0])
        functions["prefill"] = functools.partial(_prefill, functions["decode"])
    programs = [dataclasses.replace(program, function=functions[program.name]) for program in source.programs]
    return dataclasses.replace(source, model=model, programs=programs, weights=weights)


def weights_of(plan: Plan, variables: tuple[Any, Any, Any]) -> dict[str, np.ndarray]:
    """Path -> array of all variables, parameters in the dtype that they have in evaluation."""
    params, frozen, stats = variables
    dtype = jnp.dtype(plan.experiment.compute_dtype)
    found = {}
    for tree, cast in ((params, True), (frozen, True), (stats, False)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            array = np.asarray(jax.device_get(leaf))
            found[_name(path)] = (
                array.astype(dtype, copy=False) if cast and jnp.issubdtype(array.dtype, jnp.floating) else array
            )
    return found


def module_of(network: Network, dtype: str, weights: Arrays) -> Any:
    """The live network of weights by path. Those that are not there are zeros: what is exported does not read them."""

    def filled(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: weights[_name(path)] if _name(path) in weights else jnp.zeros(leaf.shape, leaf.dtype),
            tree,
        )

    params, frozen, stats = (filled(tree) for tree in (network.params, network.frozen, network.stats))
    return network.merge(params, stats, dtype, frozen)


def _forward(module: Any, unread: Mapping[str, Any], weights: Arrays, inputs: Arrays) -> dict[str, Any]:
    with force(**dict.fromkeys(ops(), "reference")):
        return {OUTPUT: module(weights)(with_unread(unread, inputs), train=False, rngs=None)}


def with_unread(unread: Mapping[str, Any], inputs: Arrays) -> dict[str, Any]:
    """The inputs, and zeros for those of which the network wants nothing but the shape. unread: theirs, with any number of rows."""
    rows = next(iter(inputs.values())).shape[0]
    return {**{name: jnp.zeros((rows, *s.shape[1:]), s.dtype) for name, s in unread.items()}, **inputs}


def _shown(plan: Plan, module: Any, shapes: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What the objective gives the network for a batch of PROBE rows."""
    with force(**dict.fromkeys(ops(), "reference")):
        found = asked_shapes(plan.experiment.objective, module, shapes, batch_shapes(plan.spec, PROBE))
    return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in found.items()}


def _read(function: Any, weights: Any, inputs: Any) -> tuple[dict[str, Any], set[str]]:
    """(the inputs that the function reads, the paths of the weights that it reads)."""
    try:
        found = export.export(jax.jit(function))(weights, inputs)
    except (AssayError, MemoryError):
        raise
    except Exception as error:
        raise ExportError(f"the model cannot be exported: {reason_of(error)}") from error
    names = [("w", name) for name in sorted(weights)] + [("i", name) for name in sorted(inputs)]
    kept = {names[index] for index in found.module_kept_var_idx}
    return {n: s for n, s in inputs.items() if ("i", n) in kept}, {n for kind, n in kept if kind == "w"}


def _length(plan: Plan, inputs: Mapping[str, Any]) -> int | None:
    """Tokens in a row, for a network that reads rows of them."""
    tokens = inputs.get(TOKENS)
    textual = tokens is not None and tokens.ndim == 2 and jnp.issubdtype(tokens.dtype, jnp.integer)
    return int(tokens.shape[1]) if textual and tokens is not None and plan.spec.vocab_size else None


def _tensors(plan: Plan, inputs: Mapping[str, Any], length: int | None) -> dict[str, Tensor]:
    """The inputs of forward, with a symbolic batch and, for tokens and what goes with each of them, a symbolic sequence."""
    found = {}
    for name, s in inputs.items():
        rest = tuple("seq" if axis == 0 and n == length else n for axis, n in enumerate(s.shape[1:]))
        below = plan.spec.vocab_size if name == TOKENS and length else None
        found[name] = Tensor(("batch", *rest), s.dtype.name, below)
    return found


def _fitted(
    function: Any, weights: Any, inputs: Mapping[str, Tensor], dims: Mapping[str, Dim]
) -> tuple[list[Program], list[str]]:
    """forward, with as many dynamic dimensions as it can be traced with, and what had to be done for them."""
    by_row = functools.partial(_by_row, function)
    attempts = (
        (function, (), ""),
        (function, ("seq",), "seq is fixed"),
        (by_row, (), "it is computed row by row"),
        (function, ("seq", "batch"), "seq and batch are fixed"),
    )
    reason = ""
    for attempt, fixed, note in attempts:
        sizes = {name: dims[name].high if name == "seq" else 1 for name in fixed if name in dims}
        try:
            signature = _signature(attempt, weights, {n: _fixed(t, sizes) for n, t in inputs.items()}, dims)
        except (AssayError, MemoryError):
            raise
        except Exception as error:
            reason = reason or reason_of(error)
        else:
            return [Program("forward", attempt, signature)], [f"forward: {note}: {reason}"] if note else []
    raise ExportError(f"the model cannot be exported: {reason}")


def _by_row(function: Any, weights: Arrays, inputs: Arrays) -> dict[str, Any]:
    """The function of one row after another, for one that wants to know how many rows there are."""

    def one(row: Arrays) -> dict[str, Any]:
        return {name: x[0] for name, x in function(weights, {name: x[None] for name, x in row.items()}).items()}

    return jax.vmap(one)(dict(inputs))


def reason_of(error: Exception) -> str:
    """Its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _fixed(tensor: Tensor, sizes: Mapping[str, int]) -> Tensor:
    shape = tuple(sizes.get(n, n) if isinstance(n, str) else n for n in tensor.shape)
    return Tensor(shape, tensor.dtype, tensor.below)


def _signature(
    function: Any,
    weights: Any,
    inputs: Mapping[str, Tensor],
    dims: Mapping[str, Dim],
    donated: Sequence[str] = (),
    at_most: Sequence[tuple[str, str]] = (),
) -> Signature:
    """The signature with the outputs that tracing finds. Raises what tracing raises."""
    bare = Signature(inputs, {}, tuple(donated), tuple(at_most))
    outputs = jax.eval_shape(function, weights, symbols(bare, dims))
    found = {n: Tensor(tuple(_size(d) for d in s.shape), s.dtype.name) for n, s in outputs.items()}
    return Signature(inputs, found, bare.donated, bare.at_most)


def _size(dim: Any) -> int | str:
    return int(dim) if isinstance(dim, int) else str(dim)


def _decoding(
    plan: Plan, module: Any, weights: Any, dims: dict[str, Dim], length: int
) -> tuple[list[Program], list[str]]:
    """prefill and decode of a network that has a cache; why not, where they cannot be."""
    live = jax.eval_shape(module, weights)
    if not (hasattr(live, "init_cache") and hasattr(live, "decode")):
        return [], []
    dtype = next(w.dtype for w in weights.values() if jnp.issubdtype(w.dtype, jnp.floating))
    tree, cache = _cache(module, weights, dtype)
    dims |= {"cache": Dim(1, length)}
    tokens = Tensor(("batch", "seq"), "int32", plan.spec.vocab_size)
    place = Tensor((), "int32", "cache" if any("cache" in t.shape for t in cache.values()) else None)
    decode = functools.partial(_decode, module, tree)
    cached = any("cache" in tensor.shape for tensor in cache.values())
    wanted = {
        "prefill": (functools.partial(_prefill, decode), {TOKENS: tokens}, (("seq", "cache"),) if cached else ()),
        "decode": (decode, {TOKENS: Tensor(("batch", 1), "int32", plan.spec.vocab_size), "position": place}, ()),
    }
    programs = []
    for name, (function, inputs, at_most) in wanted.items():
        try:
            signature = _signature(function, weights, {**inputs, **cache}, dims, tuple(cache), at_most)
        except (AssayError, MemoryError):
            raise
        except Exception as error:  # one without the other decodes nothing
            return [], [f"prefill and decode are left out: {name}: {reason_of(error)}"]
        programs.append(Program(name, function, signature))
    return programs, []


def _cache(module: Any, weights: Any, dtype: Any) -> tuple[Any, dict[str, Tensor]]:
    """(its tree, the signature of each array): which sizes follow batch and length is seen from two of each."""

    def made(batch: int, length: int) -> Any:
        return jax.eval_shape(lambda w: module(w).init_cache(batch, length, dtype), weights)

    (paths, tree), other = jax.tree_util.tree_flatten_with_path(made(3, 5)), jax.tree.leaves(made(7, 11))
    known = {(3, 7): "batch", (5, 11): "cache"}
    found = {}
    for (path, one), two in zip(paths, other, strict=True):
        sizes: list[int | str] = [a if a == b else known[a, b] for a, b in zip(one.shape, two.shape, strict=True)]
        found[f"cache/{_name(path)}"] = Tensor(tuple(sizes), one.dtype.name)
    return tree, found


def _decode(module: Any, tree: Any, weights: Arrays, inputs: Arrays) -> dict[str, Any]:
    with force(**dict.fromkeys(ops(), "reference")):
        names = [name for name in inputs if name.startswith("cache/")]
        names = _in_order(tree, names)
        cache = jax.tree.unflatten(tree, [inputs[name] for name in names])
        output, cache = module(weights).decode(inputs[TOKENS], cache, inputs["position"])
        return {OUTPUT: output, **dict(zip(names, jax.tree.leaves(cache), strict=True))}


def _prefill(decode: Any, weights: Arrays, inputs: Arrays) -> dict[str, Any]:
    """decode of a whole prompt at position 0."""
    return decode(weights, {**inputs, "position": 0})


def _in_order(tree: Any, names: Sequence[str]) -> list[str]:
    """The caches' names in the order of the tree: jax sorts the names of a dict."""
    numbered = jax.tree.unflatten(tree, range(tree.num_leaves))
    paths, _ = jax.tree_util.tree_flatten_with_path(numbered)
    found = [f"cache/{_name(path)}" for path, _ in paths]
    assert set(found) == set(names)
    return found


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
