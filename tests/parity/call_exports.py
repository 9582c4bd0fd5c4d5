"""Calls exported models through the transformers library, and writes what came of it beside each: found.npz and found.json.

Run in the environment that `make parity` builds; nothing of Assay is imported here but the loader that an artifact holds.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def main(folder: Path) -> None:
    """Call every model below `folder`."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for path in sorted(folder.iterdir()):
        call(path)


def call(path: Path) -> None:
    """One model: its logits by its loader, and the texts that it and its tokenizer give."""
    case = json.loads((path / "case.json").read_text())
    forward = loader(path).load(path, {}, case["facts"])
    batches = np.load(path / "batches.npz")
    names = sorted({key.split("/")[0] for key in batches})
    inputs = {n: {k.split("/")[1]: batches[k] for k in batches if k.split("/")[0] == n} for n in names}
    np.savez(path / "found.npz", **{name: forward("forward", inputs[name])["logits"] for name in names})
    if "texts" in case:
        (path / "found.json").write_text(json.dumps(written(path, case)))


def written(path: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The ids of texts, and the greedy continuation of each prompt, by the classes that users name."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    found: dict[str, Any] = {
        "ids": [tokenizer(text)["input_ids"] for text in case["texts"]],
        "eos": tokenizer.eos_token_id,
    }
    if "prompts" in case:
        model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
        found["architecture"] = type(model).__name__
        new = [continuation(model, tokenizer, text, case["length"]) for text in case["prompts"]]
        found["continuations"] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
        found["lengths"] = [len(ids) for ids in new]
    return found


def continuation(model: Any, tokenizer: Any, prompt: str, length: int) -> Any:
    """The ids that follow, by generate() as it comes."""
    given = tokenizer(prompt, return_tensors="pt")
    return model.generate(**given, max_new_tokens=length)[0, given["input_ids"].shape[1] :]


def loader(path: Path) -> Any:
    """The loader in the model's directory, as a module."""
    spec = importlib.util.spec_from_file_location("loader", path / "loader.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]))
