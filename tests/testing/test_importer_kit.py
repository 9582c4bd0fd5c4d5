"""The conformance kit of importers: Hugging Face's passes, and each check catches the importer that it is for."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from assay.errors import DataError
from assay.imported import Imported
from assay.testing import ImporterKit
from assay_plugins.importers.hf import HF

WIDTH, VOCAB, CONTEXT = 8, 48, 16


def gpt2(self, directory: Path) -> Path:
    """A GPT-2 of one layer in the library's files."""
    settings = {
        "model_type": "gpt2",
        "n_embd": WIDTH,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": CONTEXT,
        "n_ctx": CONTEXT,
    }
    settings |= {"vocab_size": VOCAB, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_inner": None}
    (directory / "config.json").write_text(json.dumps(settings | {"architectures": ["GPT2LMHeadModel"]}))
    shapes = {
        "wte.weight": (VOCAB, WIDTH),
        "wpe.weight": (CONTEXT, WIDTH),
        "ln_f.weight": (WIDTH,),
        "ln_f.bias": (WIDTH,),
    }
    for name, inputs, outputs in (
        ("attn.c_attn", 1, 3),
        ("attn.c_proj", 1, 1),
        ("mlp.c_fc", 1, 4),
        ("mlp.c_proj", 4, 1),
    ):
        shapes |= {f"h.0.{name}.weight": (inputs * WIDTH, outputs * WIDTH), f"h.0.{name}.bias": (outputs * WIDTH,)}
    for norm in ("ln_1", "ln_2"):
        shapes |= {f"h.0.{norm}.weight": (WIDTH,), f"h.0.{norm}.bias": (WIDTH,)}
    draw = np.random.default_rng(0).normal
    arrays = {f"transformer.{name}": draw(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, directory / "model.safetensors")
    return directory


def test_hugging_face_s_passes(kit_around, failures) -> None:
    assert failures(kit_around(ImporterKit, HF(), example=gpt2)) == {}


@dataclasses.dataclass(frozen=True)
class Archive:
    """A linear classifier of digits in an .npz file, and a place for one mistake."""

    flaw: str = ""

    def read(self, path: Path) -> Imported:
        flaw = self.flaw
        try:
            with np.load(path) as found:
                arrays = {name.replace(".", "/"): found[name] for name in found.files}
        except (OSError, ValueError) as error:
            if flaw == "silent":
                return Imported("experiment.model = @model.mlp()", {})
            raise DataError("the file" if flaw == "nameless" else f"{path}: {error}") from error
        if flaw == "double":
            arrays = {name: x.astype(np.float64) for name, x in arrays.items()}
        if flaw == "infinite":
            arrays["head/bias"] = arrays["head/bias"] / np.float32(0)
        if flaw == "incomplete":
            del arrays["head/bias"]
        if flaw == "too much":
            arrays["head/scale"] = arrays["head/bias"]
        if flaw == "transposed":
            arrays["head/kernel"] = arrays["head/kernel"].T
        if flaw == "drawn":
            arrays["head/bias"] = np.random.default_rng().normal(size=10).astype(np.float32)
        if flaw == "shared name":
            arrays = Renamed(arrays)
        return Imported("experiment.model = @model.mlp()\nmodel.mlp.hidden = ()", arrays)


class Renamed(dict):
    """Gives other values when they are asked for one by one than all together."""

    def items(self):
        return [(name, x + 1) for name, x in super().items()]


def digits(self, directory: Path) -> Path:
    draw = np.random.default_rng(0).normal
    arrays = {"head.kernel": draw(size=(64, 10)), "head.bias": draw(size=10)}
    np.savez(directory / "net.npz", **{name: x.astype(np.float32) for name, x in arrays.items()})
    return directory / "net.npz"


MUTATIONS = {
    "double": "test_its_arrays_are_finite_fp32",
    "infinite": "test_its_arrays_are_finite_fp32",
    "incomplete": "test_its_lines_make_a_model_with_these_parameters",
    "too much": "test_its_lines_make_a_model_with_these_parameters",
    "transposed": "test_its_lines_make_a_model_with_these_parameters",
    "drawn": "test_reading_is_repeatable",
    "shared name": "test_it_can_be_written_and_read_again",
    "silent": "test_files_that_are_not_there_or_damaged_are_named",
    "nameless": "test_files_that_are_not_there_or_damaged_are_named",
}


@pytest.mark.parametrize("flaw", MUTATIONS)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_flaw_is_caught_by_its_check(flaw, kit_around, failures) -> None:
    assert MUTATIONS[flaw] in failures(kit_around(ImporterKit, Archive(flaw), example=digits))


def test_the_sound_one_passes(kit_around, failures) -> None:
    assert failures(kit_around(ImporterKit, Archive(), example=digits)) == {}
