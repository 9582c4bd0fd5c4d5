"""The packaged gin fragments."""

from typing import Any

import pytest

from assay import config
from assay.data.spec import ArraySpec, DataSpec
from assay.network import make_network
from assay_plugins.models.transformer import Transformer

EXPERIMENT = """
include 'assay_plugins/configs/{fragment}.gin'
experiment.model = @model.transformer()
{sizes}
experiment.dataset = @dataset.python_stdlib()
dataset.python_stdlib.tokenizer = @tokenizer.bytes()
dataset.python_stdlib.context = 1024
experiment.objective = @objective.next_token()
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 1e-3
experiment.parallelism = @parallelism.data_parallel()
experiment.steps = 1
experiment.batch_size = 1
"""


@pytest.mark.parametrize(
    ("fragment", "vocab", "options", "count"),
    [
        ("gpt2", 50257, {"layers": 12, "width": 768, "heads": 12}, 124_439_808),
        ("llama", 32000, {"layers": 32, "width": 4096, "heads": 32, "mlp_width": 11008}, 6_738_415_616),  # Llama 2 7B
        (
            "llama",
            128256,
            {"layers": 16, "width": 2048, "heads": 32, "kv_heads": 8, "mlp_width": 8192, "tied_head": True},
            1_235_814_400,  # Llama 3.2 1B
        ),
    ],
)
def test_fragments_make_the_published_models(fragment: str, vocab: int, options: dict[str, Any], count: int) -> None:
    sizes = "\n".join(f"model.transformer.{name} = {value!r}" for name, value in options.items())
    model = config.load_text(EXPERIMENT.format(fragment=fragment, sizes=sizes)).experiment.model
    assert isinstance(model, Transformer)
    row = ArraySpec((1024,), "int32")
    assert make_network(model, DataSpec({"inputs": row}, vocab_size=vocab)).parameter_count == count
