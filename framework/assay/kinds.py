"""Every kind of plugin on one screen: its name, its entry-point group and the Protocol that it fulfils.

A plugin is a frozen, fully annotated dataclass (or a function that returns such an object) whose constructor takes only
configuration: plain values and other plugins. It never imports gin, carries no decorator and takes no `**kwargs`.
A distribution offers it with one line in its pyproject.toml:

    [project.entry-points."assay.model"]
    mine = "my_package.models:Mine"

and experiments name it `@model.mine()`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from assay.data.spec import DataSpec, Encoder
from assay.exported import Exported, Written
from assay.imported import Imported

if TYPE_CHECKING:  # listing plugins must not import jax
    import optax
    from flax import nnx
    from jaxtyping import Array, PyTree

    from assay.outcome import Batch, Outcome
    from assay_kernels import Target


@runtime_checkable
class Model(Protocol):
    """Builds a network for a dataset's examples."""

    def build(self, spec: DataSpec, rngs: "nnx.Rngs") -> "nnx.Module":
        """A module whose call is `module(batch, *, train: bool, rngs: nnx.Rngs | None) -> Array`.

        Parameters are `nnx.Param`s with metadata `axes`: a tuple with the logical name (see assay.parallel.axes) or None of each dimension.
        Those that are not trained are `assay.network.Frozen`. A model may also have `initial_values` (see InitialValues)
        and `merged` (see Adapted).
        """


@runtime_checkable
class InitialValues(Protocol):
    """A model that takes parameters from elsewhere, such as a file."""

    def initial_values(self, spec: DataSpec) -> Mapping[str, np.ndarray]:
        """Path of a parameter ("blocks/0/norm/scale") -> float32 array, memory-mapped or not, in place of what `build` drew.

        Called when training begins, and again when a run with Frozen parameters is resumed or restored.
        """


@runtime_checkable
class Adapted(Protocol):
    """A model around another, whose parameters can become a part of the other's."""

    @property
    def model(self) -> Model:
        """The other."""

    def merged(self, variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters of `model` with which it computes the same, by path, from all variables of this one."""


class Source(Protocol):
    """Random access to the examples of one split. Picklable, so that worker processes can hold a copy.

    An index from `len` on raises IndexError.

    A source may also have `gather(indices: np.ndarray) -> dict[str, np.ndarray]` (stacked rows); it is then used in
    place of single reads.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


@runtime_checkable
class Dataset(Protocol):
    """Examples by split. Expensive work (reading, tokenising) happens on first use and is cached."""

    def spec(self) -> DataSpec:
        """Static description of the examples, the same for all splits."""

    def source(self, split: str) -> Source:
        """The examples of "train", "validation" or another split. Raises DataError naming the splits there are."""

    def fingerprint(self) -> str:
        """Hex digest of the content and of everything that shapes the examples; changes when either does."""


@runtime_checkable
class Tokenizer(Protocol):
    """A recipe for an Encoder."""

    def fit(self, texts: Iterable[str]) -> Encoder:
        """The encoder for (trained on, where it learns) `texts`."""

    def identity(self) -> str:
        """A string that names the recipe and all its settings; part of cache keys."""

    def restore(self, directory: Path) -> Encoder:
        """The encoder that `save` put there."""

    def save(self, encoder: Encoder, directory: Path) -> None:
        """Write what `restore` needs into an existing, empty directory."""


@runtime_checkable
class Objective(Protocol):
    """What is optimised. May also have `sample` or `sample_images` (see assay.evaluate.sample)."""

    def __call__(self, module: "nnx.Module", batch: "Batch", *, train: bool, rngs: "nnx.Rngs | None") -> "Outcome":
        """Unreduced losses and what metrics need, for one batch. Traced under jit."""


@runtime_checkable
class Metric(Protocol):
    """A number over a split, from mergeable states: update each batch, merge all, compute once.

    A state is a flat dict of arrays that are *sums*; `merge` is elementwise addition unless the metric says otherwise, so
    that any split into batches, devices or processes gives the same value. The core merges on the host in float64.
    """

    def update(self, outcome: "Outcome", spec: DataSpec) -> "dict[str, Array]":
        """The state of one batch. Traced under jit; items of weight 0 must add nothing."""

    def merge(self, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The state of two sets of batches together; associative and commutative."""

    def compute(self, state: dict[str, np.ndarray]) -> dict[str, float]:
        """Named values from the state of the whole split."""


@runtime_checkable
class Schedule(Protocol):
    """A learning rate as a function of the step."""

    def build(self, total_steps: int) -> "optax.Schedule":
        """step (0-based int or array) -> learning rate; `total_steps` is the experiment's."""


@runtime_checkable
class Optimizer(Protocol):
    """Turns gradients into updates."""

    def build(self, total_steps: int, axes: "PyTree") -> "optax.GradientTransformation":
        """The optax transformation, clipping and weight decay included.

        axes: tree like the parameters, with each parameter's tuple of logical axis names.
        """

    def learning_rate_at(self, total_steps: int) -> "optax.Schedule":
        """The learning rate by step, for logging."""


@runtime_checkable
class Parallelism(Protocol):
    """Maps logical axis names to a device mesh. Knows no model."""

    def mesh_axes(self) -> Mapping[str, int]:
        """Mesh axis names, outermost first, with their sizes; one may be -1, for all remaining devices."""

    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Logical axis name -> the mesh axes it is divided over. Names left out are replicated."""


@runtime_checkable
class Tracker(Protocol):
    """Receives what a run logs. Called from one background thread, never from the training step; it may fail."""

    def available(self) -> bool:
        """Whether its backend can be used here."""

    def start(self, run_directory: Path, record: Mapping[str, Any], *, resumed: bool) -> None:
        """Begin (or go on with) a run; `record` is run.json's content, with the flattened configuration under "config"."""

    def scalars(self, step: int, values: Mapping[str, float], context: str) -> None:
        """Numbers of one step; context is "train", "validation", "system", …"""

    def text(self, step: int, name: str, value: str) -> None:
        """A text sample."""

    def image(self, step: int, name: str, value: np.ndarray) -> None:
        """An image, uint8 (height, width, 1 or 3)."""

    def figure(self, step: int, name: str, value: Any) -> None:
        """A matplotlib or plotly figure."""

    def flush(self) -> None:
        """Return once everything handed over so far is on disk."""

    def finish(self, status: str) -> None:
        """End the run: "completed", "interrupted" or "failed"."""


@runtime_checkable
class Importer(Protocol):
    """Reads a model that another library trained, in that library's files."""

    def read(self, path: Path) -> Imported:
        """The model at `path`. Raises DataError for files that are missing or damaged, ConfigError for what Assay cannot represent."""


@runtime_checkable
class Kernel(Protocol):
    """An implementation of one of assay_kernels' ops. Hashable, as a frozen dataclass of plain values is: it is part of jit's cache key."""

    @property
    def op(self) -> str:
        """The op that it implements, such as "attention"; `assay_kernels.ops()` names them all."""

    @property
    def name(self) -> str:
        """What it is called in records and in an op's `impl`; none of the op's own implementations' names."""

    @property
    def priority(self) -> int:
        """Of the implementations that support a call the highest runs; the reference has 0, Assay's others 5 to 30."""

    def supports(self, target: "Target", *arguments: Any) -> str | None:
        """None, or in words why it cannot do a call of the op with these arguments on this target."""

    def __call__(self, *arguments: Any) -> Any:
        """What the op's reference returns for these arguments. Traced under jit; differentiable where the op is."""


@runtime_checkable
class Exporter(Protocol):
    """Writes one format of an artifact, and says how it is run."""

    def write(self, source: Exported, directory: Path) -> Written:
        """Write programs and whatever runs them into `directory`, which exists and is empty.

        The artifact's weights, as `source` has them, lie in safetensors in `directory.parent / "weights"`, and need not be written again.
        Raises ExportError naming the operation, or the option of the model, that the format cannot express.
        """

    def loader(self) -> Path:
        """A Python file that needs nothing but the format's requirements; it becomes `loader.py` in the artifact's directory of the format.

        It has `load(artifact: Path, manifest: dict, facts: dict) -> (program: str, inputs: dict) -> outputs: dict`, arrays by name.
        The inputs have been checked against the signature; `facts` are those that `write` returned.
        """


@runtime_checkable
class Transform(Protocol):
    """Changes the weights of what is exported, such as to fewer bits, and what its programs do with them."""

    def apply(self, source: Exported) -> Exported:
        """Programs of the same names and signatures that read other weights. `source` stays as it is.

        What it left alone that one would expect to be changed is a note. Raises ExportError for weights that it is not for.
        """

    def bounds(self, source: Exported) -> "Iterable[tuple[str, np.ndarray]] | None":
        """(path, how far each element may come to be from what it is), broadcastable, of every weight of `source` that `apply` changes.

        The result's weights, put through its `restore`, are held to it, and its outputs are reported beside the model's. None for a
        transform after which programs compute the same: their outputs are held to the model's, within the bound of the dtype.
        """


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of plugin."""

    name: str
    protocol: type
    about: str

    @property
    def group(self) -> str:
        """The entry-point group in which distributions offer plugins of this kind."""
        return f"assay.{self.name}"


KINDS: Sequence[Kind] = (
    Kind("model", Model, "networks"),
    Kind("dataset", Dataset, "examples by split"),
    Kind("tokenizer", Tokenizer, "text to ids and back"),
    Kind("objective", Objective, "losses"),
    Kind("metric", Metric, "numbers over a split"),
    Kind("optimizer", Optimizer, "gradients to updates"),
    Kind("schedule", Schedule, "learning rate by step"),
    Kind("parallelism", Parallelism, "logical axes to a device mesh"),
    Kind("tracker", Tracker, "where logged values go"),
    Kind("importer", Importer, "other libraries' models to Assay's"),
    Kind("kernel", Kernel, "implementations of ops"),
    Kind("exporter", Exporter, "formats of artifacts"),
    Kind("transform", Transform, "weights to other weights, when a model is exported"),
)
