"""Which configuration (block sizes, pipeline stages) a kernel runs with: measured before, offline, or a rule's.

    found = tuned("attention", "mosaic", {"head_dim": 128, "tokens": 4096}, exact=("head_dim",), otherwise=Config(128, 128, 2))

Measured ones are in `data/<device>.json` of this package and in the files of the directory `$ASSAY_KERNELS_TUNING`, which come first;
`python -m assay_kernels.tune` writes such files. Nothing is measured here, and a lack is no error: then the rule's choice runs.
"""

import contextlib
import contextvars
import dataclasses
import functools
import importlib.resources
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from assay_kernels.target import current_target

VARIABLE = "ASSAY_KERNELS_TUNING"
FARTHEST = 2.0  # how many doublings a measured shape may be away in all
Config = TypeVar("Config")
_used: contextvars.ContextVar[list["Configured"] | None] = contextvars.ContextVar("assay_kernels_tuning", default=None)


@dataclasses.dataclass(frozen=True)
class Configured:
    """A configuration that was taken. source: "rule", "shipped" or the directory of $ASSAY_KERNELS_TUNING."""

    config: str
    source: str


def tuned(
    op: str,
    implementation: str,
    shape: Mapping[str, int | str],
    *,
    exact: tuple[str, ...],
    otherwise: Config,
    fits: Callable[[Any], bool] = lambda config: True,
) -> Config:
    """The measured configuration of the nearest shape, as a dataclass like `otherwise`; `otherwise` where none is near.

    shape: what the best choice depends on. Those named in `exact`, and all that are text (a dtype), must be equal; of the others the
    nearest by ratio wins. fits: whether a configuration can run here, as one measured for another shape may not; those that cannot
    are passed over. Raises ValueError for a file that is no such table, or that names a field that the dataclass lacks.
    """
    for entries, source in _tables(file_name(current_target().device_kind)):
        near = [
            (_distance(shape, e["shape"], exact), e)
            for e in entries
            if (e["op"], e["implementation"]) == (op, implementation)
        ]
        for distance, entry in sorted(near, key=lambda pair: pair[0]):
            if distance <= FARTHEST and fits(config := _built(otherwise, entry["config"], source)):
                return _noted(config, source)
    return _noted(otherwise, "rule")


@contextlib.contextmanager
def configurations() -> Iterator[list[Configured]]:
    """Collect what `tuned` gives inside, each once."""
    found: list[Configured] = []
    token = _used.set(found)
    try:
        yield found
    finally:
        _used.reset(token)


def file_name(device_kind: str) -> str:
    """The table's name for a kind of device, as jax names it: "NVIDIA H200" -> "nvidia_h200.json"."""
    return re.sub(r"\W+", "_", device_kind.lower()) + ".json"


def _tables(name: str) -> Iterator[tuple[list[dict[str, Any]], str]]:
    if os.environ.get(VARIABLE):
        mine = Path(os.environ[VARIABLE]) / name
        if mine.is_file():
            yield _read(mine, mine.stat().st_mtime_ns), str(mine.parent)
    with importlib.resources.as_file(importlib.resources.files("assay_kernels") / "data" / name) as shipped:
        if shipped.is_file():
            yield _read(shipped, shipped.stat().st_mtime_ns), "shipped"


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["entries"]
        lacking = [key for e in entries for key in ("op", "implementation", "shape", "config") if key not in e]
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} is no table of configurations ({problem}); `python -m assay_kernels.tune` writes them"
        ) from None
    if lacking:
        raise ValueError(f"{path}: an entry lacks {lacking[0]!r}")
    return entries


def _distance(wanted: Mapping[str, int | str], measured: Mapping[str, int | str], exact: tuple[str, ...]) -> float:
    if set(wanted) != set(measured):
        return math.inf
    total = 0.0
    for key, value in wanted.items():
        other = measured[key]
        if isinstance(value, str) or isinstance(other, str) or key in exact or min(value, other) <= 0:
            total += 0.0 if value == other else math.inf
        else:
            total += abs(math.log2(value / other))
    return total


def _built(like: Config, fields: Mapping[str, Any], source: str) -> Config:
    unknown = set(fields) - {f.name for f in dataclasses.fields(like)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{source} configurations: {type(like).__name__} has no field {sorted(unknown)[0]!r}")
    return dataclasses.replace(like, **fields)  # type: ignore[type-var]


def _noted(config: Config, source: str) -> Config:
    found = _used.get()
    if found is not None and (entry := Configured(str(config), source)) not in found:
        found.append(entry)
    return config
