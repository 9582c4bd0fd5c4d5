"""A model that another program trained, as Assay keeps it: the lines that configure it, and its parameters by path."""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from assay.errors import DataError

MODEL, PARAMETERS, ORIGIN = "model.gin", "parameters.safetensors", "origin.json"


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an importer read.

    model: gin lines that configure the model, such as "experiment.model = @model.transformer()\\nmodel.transformer.layers = 2".
    parameters: path in the model ("blocks/0/attention/query/kernel") -> float32 array; may be read lazily.
    vocab_size: ids that it knows, for language models. notes: what was left out, and why that changes nothing.
    """

    model: str
    parameters: Mapping[str, np.ndarray]
    vocab_size: int | None = None
    notes: Sequence[str] = ()


def write(imported: Imported, directory: Path, *, origin: Mapping[str, str]) -> None:
    """Make `directory`, with everything in it or not at all: model.gin, parameters.safetensors and origin.json.

    origin: JSON-able facts on where it came from. Raises DataError where `directory` exists already or the disk does not take it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if directory.exists():
        raise DataError(f"{directory} exists already; choose another directory, or remove it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        save_file(
            {path: np.ascontiguousarray(value, np.float32) for path, value in imported.parameters.items()},
            temporary / PARAMETERS,
        )
        (temporary / MODEL).write_text(imported.model.rstrip() + "\n", encoding="utf-8")
        facts = {**origin, "vocab_size": imported.vocab_size, "notes": list(imported.notes)}
        with (temporary / PARAMETERS).open("rb") as file:
            facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        (temporary / ORIGIN).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        temporary.replace(directory)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise DataError(f"{directory} could not be written: {error}") from error
        raise
