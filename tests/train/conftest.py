"""A small language model on real-looking text, as gin would build it."""

import dataclasses

import pytest

from assay.experiment import Experiment
from assay_plugins.datasets.text_files import TextFiles
from assay_plugins.models.transformer import Transformer
from assay_plugins.objectives.next_token import NextToken
from assay_plugins.optimizers.adamw import AdamW
from assay_plugins.parallelism.data_parallel import DataParallel
from assay_plugins.schedules.cosine import Cosine
from assay_plugins.tokenizers.byte import Bytes


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """A few thousand bytes of structured text."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("".join(f"def f{i}(x):\n    return x + {i * 7 % 13}\n\n" for i in range(400)))
    return path


@pytest.fixture
def tiny(text_file):
    """(fields) -> Experiment: a two-layer transformer whose sizes divide over eight devices."""
    base = Experiment(
        model=Transformer(layers=2, width=32, heads=8, mlp_width=64, norm="layernorm", activation="gelu"),
        dataset=TextFiles(files=str(text_file), tokenizer=Bytes(), context=16),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-2, warmup_steps=5), clip_norm=1.0, weight_decay=0.1),
        parallelism=DataParallel(),
        trackers=(),
        steps=50,
        batch_size=16,
        steps_per_dispatch=10,
        log_every=1,
    )
    return lambda **fields: dataclasses.replace(base, **fields)
