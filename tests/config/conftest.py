"""Stand-ins under the names of shipped plugins, so that these tests need no jax and do not change with the real ones."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from assay import registry
from assay.kinds import KINDS, Dataset, Schedule, Tokenizer

plugin = dataclasses.dataclass(frozen=True, kw_only=True)
PROTOCOLS = {kind.name: kind.protocol for kind in KINDS}


def offering(kind: str) -> type:
    """A base class with the methods that a kind's Protocol asks for."""
    methods = {n: m for n, m in vars(PROTOCOLS[kind]).items() if callable(m) and (n == "__call__" or n[0] != "_")}
    return type(f"Any{kind.title()}", (), methods)


@plugin
class Transformer(offering("model")):
    layers: int
    width: int = 64
    heads: int = 4
    activation: Literal["gelu", "relu", "swiglu"] = "gelu"
    dropout: float = 0.0
    qk_norm: bool = False
    ratio: Annotated[float, Field(gt=0)] = 4.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width}: must be a multiple of heads = {self.heads}")


@plugin
class MLP(offering("model")):
    widths: Sequence[int] = (16, 16)
    names: Mapping[str, float] = dataclasses.field(default_factory=dict)
    inner: Transformer | None = None
    anything: Any = None


@plugin
class TextFiles(offering("dataset")):
    files: str | Sequence[str]
    tokenizer: Tokenizer
    context: int = 64
    name: str | None = None


@plugin
class Digits(offering("dataset")):
    seed: int = 0


@plugin
class Mixture(offering("dataset")):
    parts: Sequence[Dataset]
    weights: Sequence[float] = ()


@plugin
class BPE(offering("tokenizer")):
    vocab_size: int = 512

    def __post_init__(self) -> None:
        if self.vocab_size < 256:
            raise ValueError("tokenizer.bpe.vocab_size must be at least 256")


@plugin
class Char(offering("tokenizer")):
    pass


@plugin
class NextToken(offering("objective")):
    z_loss: float = 0.0


@plugin
class Accuracy(offering("metric")):
    pass


@plugin
class TopK(offering("metric")):
    k: int = 5


@plugin
class AdamW(offering("optimizer")):
    learning_rate: Schedule | float
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0


@plugin
class Cosine(offering("schedule")):
    peak: float
    warmup_steps: int = 0


def linear(peak: float, warmup_steps: int = 0, *, end: float = 0.0) -> Cosine:
    """A schedule given by a function."""
    return Cosine(peak=peak + end, warmup_steps=warmup_steps)


@plugin
class DataParallel(offering("parallelism")):
    pass


@plugin
class Tensor(offering("parallelism")):
    tensor: int = -1


@plugin
class Aim(offering("tracker")):
    repository: str | None = None


def greedy(**kwargs: Any) -> Transformer:
    """Breaks the plugin contract."""
    return Transformer(layers=1, **kwargs)


def not_a_model() -> Any:
    """Gives an object that is no model."""
    return object()


def crash(size: int = 1) -> Any:
    """Fails in a way that is no complaint about its values."""
    return {}[size]


STAND_INS = {
    "model": {"transformer": Transformer, "mlp": MLP, "greedy": greedy, "hollow": not_a_model, "crash": crash},
    "dataset": {"text_files": TextFiles, "digits": Digits, "mixture": Mixture},
    "tokenizer": {"bpe": BPE, "char": Char},
    "objective": {"next_token": NextToken},
    "metric": {"accuracy": Accuracy, "top_k": TopK},
    "optimizer": {"adamw": AdamW},
    "schedule": {"cosine": Cosine, "linear": linear},
    "parallelism": {"data_parallel": DataParallel, "tensor": Tensor},
    "tracker": {"aim": Aim},
}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only the stand-ins are installed."""
    monkeypatch.setenv("ASSAY_PLUGINS", "")
    with contextlib.ExitStack() as stack:
        for kind, plugins in STAND_INS.items():
            for name, obj in plugins.items():
                stack.enter_context(registry.temporary(kind, name, obj))
        yield
