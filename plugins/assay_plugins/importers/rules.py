"""How arrays of ours and tensors of theirs are made from each other: one table of rules, read in both directions.

A rule only rearranges: each number of ours is one number of theirs. So importing is exact, and exporting is its inverse by construction.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from assay.errors import DataError
from assay_plugins.importers.tensors import Tensors

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """`path` in our model, of shape `ours`, is made of the tensors called `sources`, each of shape `shape`.

    view: a transpose, a slice or both: a view of a tensor. The views of all sources, one after the other, are our array, row by row.
    """

    path: str
    sources: tuple[str, ...]
    shape: Shape
    ours: Shape
    view: Callable[[np.ndarray], np.ndarray] = lambda x: x

    def convert(self, *tensors: np.ndarray) -> np.ndarray:
        """Our array, contiguous."""
        views = [self.view(tensor) for tensor in tensors]
        whole = views[0] if len(views) == 1 else np.stack(views)
        return np.ascontiguousarray(whole.reshape(self.ours))

    def part(self, source: str, array: np.ndarray, tensor: np.ndarray) -> None:
        """Write into `tensor`, which is `source`, what `array`, ours, says of it."""
        index, view = self.sources.index(source), self.view(tensor)
        view[...] = array.reshape(len(self.sources), *view.shape)[index]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to import one model: the plugin and its settings, the rules, and tensors that may be left out, with the reason.

    spare: name -> why it changes nothing; a name may end in "*". repeats: name -> the tensor that it must equal.
    notes: further things to say.
    """

    model: str
    options: Mapping[str, object]
    rules: Sequence[Rule]
    vocab_size: int | None = None
    spare: Mapping[str, str] = dataclasses.field(default_factory=dict)
    repeats: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


class Converted(Mapping[str, np.ndarray]):
    """Our parameters by path, each read and converted when it is asked for."""

    def __init__(self, rules: Sequence[Rule], tensors: Tensors) -> None:
        self._rules, self._tensors = {rule.path: rule for rule in rules}, tensors

    def __getitem__(self, path: str) -> np.ndarray:
        rule = self._rules[path]
        return rule.convert(*(self._tensors.read(name) for name in rule.sources))

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)


def check(plan: Plan, tensors: Tensors, where: str) -> list[str]:
    """Notes on the tensors that no rule uses. Raises DataError listing all that are missing, unknown or of another shape."""
    used = {name: rule.shape for rule in plan.rules for name in rule.sources}
    wrong = [f"  {name}: missing" for name in used if name not in tensors.shapes]
    wrong += [
        f"  {name}: has shape {tensors.shapes[name]}, config.json says {shape}"
        for name, shape in used.items()
        if name in tensors.shapes and tensors.shapes[name] != shape
    ]
    notes = list(plan.notes)
    for name in sorted(tensors.shapes.keys() - used.keys()):
        reason = _reason(name, plan, tensors)
        if reason is None:
            wrong.append(f"  {name}: not a part of this architecture")
        else:
            notes.append(f"{name} is left out: {reason}")
    if wrong:
        raise DataError(
            f"the tensors of {where} are not those of model.{plan.model} as configured:\n" + "\n".join(wrong)
        )
    return notes


def _reason(name: str, plan: Plan, tensors: Tensors) -> str | None:
    """Why a tensor may be left out, or None."""
    original = plan.repeats.get(name)
    if original is not None and original in tensors.shapes:
        same = np.array_equal(tensors.read(name), tensors.read(original))
        return f"it repeats {original}, to which config.json ties it" if same else None
    for pattern, reason in plan.spare.items():
        if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
            return reason
    return None


def same(path: str, source: str, shape: Shape, ours: Shape | None = None) -> Rule:
    """The array as it is, but for dimensions that are split or joined."""
    return Rule(path, (source,), shape, shape if ours is None else ours)


def transposed(path: str, sources: tuple[str, ...], shape: Shape, ours: Shape | None = None) -> Rule:
    """torch's (outputs, inputs) as our (inputs, outputs)."""
    return Rule(path, sources, shape, shape[::-1] if ours is None else ours, np.transpose)


def linear(path: str, source: str, outputs: int, inputs: int, *, bias: bool) -> list[Rule]:
    """torch's Linear, (outputs, inputs), as our kernel (inputs, outputs), and its bias."""
    rules = [transposed(f"{path}/kernel", (f"{source}.weight",), (outputs, inputs))]
    return [*rules, same(f"{path}/bias", f"{source}.bias", (outputs,))] if bias else rules


def to_heads(path: str, source: str, heads: int, head_dim: int, width: int, *, bias: bool) -> list[Rule]:
    """A Linear whose outputs are heads: kernel (width, heads, head_dim), bias (heads, head_dim)."""
    fused = heads * head_dim
    split = transposed(f"{path}/kernel", (f"{source}.weight",), (fused, width), (width, heads, head_dim))
    return [split, same(f"{path}/bias", f"{source}.bias", (fused,), (heads, head_dim))] if bias else [split]


def from_heads(path: str, source: str, heads: int, head_dim: int, width: int, *, bias: bool) -> list[Rule]:
    """A Linear whose inputs are heads: kernel (heads, head_dim, width), and its bias."""
    join = transposed(f"{path}/kernel", (f"{source}.weight",), (width, heads * head_dim), (heads, head_dim, width))
    return [join, same(f"{path}/bias", f"{source}.bias", (width,))] if bias else [join]


def norm(path: str, source: str, width: int, *, bias: bool, names: tuple[str, str] = ("weight", "bias")) -> list[Rule]:
    """RMSNorm or LayerNorm; `names` are what the files call scale and bias."""
    rules = [same(f"{path}/scale", f"{source}.{names[0]}", (width,))]
    return [*rules, same(f"{path}/bias", f"{source}.{names[1]}", (width,))] if bias else rules
