"""Where an artifact comes from: facts of its run, and the tokenizer that its ids are of."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay import registry
from assay.checkpoint import manifest as checkpoint_manifest
from assay.data.spec import DataSpec, Encoder
from assay.experiment import Experiment
from assay.kinds import Tokenizer
from assay.runs import RunDirectory

TOKENIZER = "tokenizer"
PLACE = re.compile(r"(?<![\w.:/@])(?:file://|~\w*)?/(?:[^/'\",()]+/)*(?=[^/])")
"""An absolute path but for its last name; what begins with a scheme, such as https://, is none."""


def lineage_of(run: RunDirectory, step: int) -> dict[str, Any]:
    """The run's id, configuration, code, data and versions, and the digest of the checkpoint.

    Paths are cut down to their last name: whoever gets the artifact need not know whose machine it is from.
    """
    record = run.record()
    environment = (record["sessions"] or [{}])[-1].get("environment", {})
    sealed = run.checkpoints / str(step) / checkpoint_manifest.NAME
    found = {
        "run": run.id,
        "experiment": record["name"],
        "step": step,
        "checkpoint": json.loads(sealed.read_text(encoding="utf-8"))["digest"],
        "parent": record.get("parent"),
        "config": record.get("config"),
        "config_digest": record.get("config_digest"),
        "data": record.get("data"),
        "plugins": record.get("plugins"),
        "code": environment.get("git"),
        "python": environment.get("python"),
        "packages": environment.get("packages"),
    }
    return {key: without_places(value) for key, value in found.items()}


def without_places(value: Any) -> Any:
    """The JSON-able value, of whose absolute paths, and of those from a home directory on, the last name is left, as …/NAME."""
    if isinstance(value, Mapping):
        return {without_places(key): without_places(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(x) for x in value]
    return PLACE.sub("…/", value) if isinstance(value, str) else value


def write_tokenizer(experiment: Experiment, spec: DataSpec, directory: Path) -> dict[str, Any] | None:
    """Write the tokenizer's files into `directory`/tokenizer, and say what reads them; None for data without one."""
    plugin, encoder = getattr(experiment.dataset, "tokenizer", None), spec.encoder
    if encoder is None or not isinstance(plugin, Tokenizer):
        return None
    place = directory / TOKENIZER
    place.mkdir()
    plugin.save(encoder, place)
    names = [e.name for e in registry.entries("tokenizer") if e.target.endswith(f":{type(plugin).__qualname__}")]
    settings: dict[str, Any] = dataclasses.asdict(plugin) if dataclasses.is_dataclass(plugin) else {}
    return {
        "plugin": names[0] if names else None,
        "settings": {
            k: without_places(v) for k, v in settings.items() if isinstance(v, str | int | float | bool | None)
        },
        "vocab_size": encoder.vocab_size,
        "separator_id": encoder.separator_id,
        "fingerprint": encoder.fingerprint,
        "files": sorted(p.name for p in place.iterdir()),
    }


def encoder_of(content: Mapping[str, Any], directory: Path) -> Encoder | None:
    """The artifact's tokenizer, by the plugin that wrote it, which must be installed; None where there is none."""
    found = content.get(TOKENIZER)
    if not found or not found["plugin"]:
        return None
    tokenizer: Tokenizer = registry.load("tokenizer", found["plugin"])(**found["settings"])
    return tokenizer.restore(directory / TOKENIZER)
