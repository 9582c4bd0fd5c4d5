"""Small models of every family, with weights in which no part is at an initial zero, and what the gate needs of them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from assay import config
from assay.exported import Exported
from assay.plan.plan import make_plan
from assay.train.state import initial_variables
from assay_export import artifact
from assay_export.live import Live
from assay_export.onnx.converter import Converter
from assay_export.onnx.exporter import ONNX
from assay_export.parity import Checked, gate
from assay_export.programs import exported
from assay_export.stablehlo.exporter import StableHLO

COMMON = """
experiment.parallelism = @parallelism.data_parallel()
parallelism.data_parallel.data = 1
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-2
experiment.trackers = []
experiment.steps = 2
experiment.batch_size = 8
"""
TEXT = """
experiment.dataset = @dataset.python_stdlib()
dataset.python_stdlib.context = 32
dataset.python_stdlib.max_bytes = 300_000
dataset.python_stdlib.tokenizer = @tokenizer.bytes()
experiment.objective = @objective.next_token()
experiment.metrics = [@metric.accuracy()]
"""
DIGITS = "experiment.dataset = @dataset.digits()\n"
CLASSES = f"{DIGITS}experiment.objective = @objective.classification()\nexperiment.metrics = [@metric.accuracy()]\n"
DENOISE = f"{DIGITS}experiment.objective = @objective.edm()\n"
CHAINS = "experiment.objective = @objective.mcmc()\nmodel.nuts.warmup = 4\nmodel.nuts.draws = 8\n"
SUMMARY = "experiment.metrics = [@metric.posterior()]\nexperiment.evaluate_splits = ['train']\n"
SCHOOLS = "experiment.dataset = @dataset.eight_schools()\n" + SUMMARY + "metric.posterior.sites = ['mu']\n"
IRIS = "experiment.dataset = @dataset.iris_sepals()\n" + SUMMARY + "metric.posterior.sites = ['noise']\n"
ELBO = "experiment.objective = @objective.elbo()\n"
GRAPH = "experiment.dataset = @dataset.karate()\nexperiment.objective = @objective.classification()\n"
DECODER = "model.transformer.layers = 2\nmodel.transformer.width = 16\nmodel.transformer.heads = 4\n"
PAIRS = "experiment.dataset = @dataset.arithmetic()\nexperiment.objective = @objective.dpo()\n"


def model(name: str, *lines: str) -> str:
    return "\n".join([f"experiment.model = @model.{name}()", *(f"model.{name}.{line}" for line in lines), ""])


FAMILIES: Mapping[str, str] = {
    "transformer": TEXT + "experiment.model = @model.transformer()\nmodel.transformer.kv_heads = 2\n" + DECODER,
    "gpt2": TEXT
    + model(
        "transformer",
        "position = 'learned'",
        "norm = 'layernorm'",
        "activation = 'gelu_tanh'",
        "biases = True",
        "tied_head = True",
    )
    + DECODER,
    "moe": TEXT + model("transformer", "experts = 4") + DECODER,
    "mamba2": TEXT + model("mamba2", "layers = 2", "width = 16", "heads = 2", "state = 8", "chunk = 8"),
    "lora": TEXT + model("lora", "model = @model.transformer()", "rank = 2") + DECODER,
    "with_reference": PAIRS + model("with_reference", "model = @model.transformer()") + DECODER,
    "bert": TEXT + model("bert", "layers = 2", "width = 16", "heads = 2"),
    "vit": CLASSES + model("vit", "layers = 2", "width = 16", "heads = 2", "patch = 2"),
    "resnet": CLASSES + model("resnet", "widths = (8, 16)", "blocks = (1, 1)"),
    "mlp": CLASSES + model("mlp", "hidden = (16,)"),
    "unet": DENOISE + model("unet", "widths = (8, 16)", "attention_levels = (1,)"),
    "dit": DENOISE + model("dit", "layers = 1", "width = 16", "heads = 2", "patch = 2"),
    "gcn": GRAPH + model("gcn", "hidden = (8,)"),
    "gat": GRAPH + model("gat"),
    "graphsage": GRAPH + model("graphsage", "hidden = (8,)"),
    "bayesian_mlp": DIGITS + ELBO + model("svi", "of = @model.bayesian_mlp()", "draws = 4"),
    "eight_schools": SCHOOLS + ELBO + model("svi", "of = @model.eight_schools()", "draws = 4"),
    "nuts": IRIS + CHAINS + model("nuts", "of = @model.hierarchical_regression()"),
}
UNTRIED: Mapping[str, str] = {
    "pretrained": "the network is that of the model it names; what differs is where weights begin"
}
"""Registered models that no family has -> why not."""

QUICK = StableHLO(platforms=("cpu",), buckets=[])
"""For tests that call the programs, and ask nothing of modules for other platforms and of fixed shapes."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A live model and what is exported of it."""

    live: Live
    source: Exported

    def artifact(self, directory: Path, source: Exported | None = None, exporter: StableHLO | ONNX = QUICK) -> Path:
        """Everything but the gate's results, in a new directory."""
        directory.mkdir()
        name = "onnx" if isinstance(exporter, ONNX) else "stablehlo"
        artifact.fill(directory, source or self.source, {name: exporter}, {"tokenizer": None})
        return directory

    def checked(self, directory: Path, source: Exported | None = None) -> Checked:
        """What the gate says of an artifact of `source`, compared with this model."""
        place = self.artifact(directory, source)
        return gate(place, "stablehlo", StableHLO(), source or self.source, self.live, examples=24)


def made(family: str, **limits: Any) -> Model:
    """The family's model with noisy weights."""
    loaded = config.load_text(FAMILIES[family] + COMMON, f"{family}.gin")
    plan = make_plan(loaded.experiment, loaded.where, jax.devices()[:1])
    rng = np.random.default_rng(0)

    def noisy(x: Any) -> Any:
        return (
            (np.asarray(x) + 0.1 * rng.normal(size=x.shape)).astype(x.dtype) if x.dtype == np.float32 else np.asarray(x)
        )

    def trained(path: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if name.startswith("['kept']"):  # draws of a sampler
            return noisy(x)
        return np.full_like(x, 12) if name == "['state'].i" else np.asarray(x)  # its steps: all draws are there

    params, frozen, stats = initial_variables(plan.experiment, plan.network)
    variables = (
        jax.tree.map(noisy, params),
        jax.tree.map(noisy, frozen),
        jax.tree_util.tree_map_with_path(trained, stats),
    )
    live = Live(plan, variables)
    return Model(
        live, exported(plan, variables, live.examples(3), {"run": "none", "step": 0}, **{"max_batch": 3, **limits})
    )


@pytest.fixture(scope="session")
def converting() -> Iterator[Callable[[], Converter]]:
    """One converter for all tests, from when the first asks for it: it takes seconds to start."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda: stack.enter_context(Converter()))


@pytest.fixture(scope="session")
def converter(converting: Callable[[], Converter]) -> Converter:
    """The converter of all tests."""
    return converting()


@pytest.fixture(scope="module", autouse=True)
def one_converter(converting: Callable[[], Converter]) -> Iterator[None]:
    """Exporting to ONNX takes the converter of all tests; modules whose exports start their own have a fixture of this name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("assay_export.onnx.converter.Converter", lambda: contextlib.nullcontext(converting()))
        yield


@pytest.fixture(scope="session")
def decoder() -> Model:
    """The transformer, with few corners."""
    return made("transformer", max_batch=1, max_length=5)


@pytest.fixture(scope="session")
def decoder_artifact(decoder: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the exporter writes of it by default; to be read only."""
    return decoder.artifact(tmp_path_factory.mktemp("decoder") / "artifact", exporter=StableHLO())
