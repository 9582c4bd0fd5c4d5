"""What `assay bench` found: as a table, as JSON, and as a figure."""

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.runs.facts import environment
from assay.table import table
from assay_export.bench import LIVE, Measured

HEADER = (
    "PROGRAM",
    "BATCH",
    "LENGTH",
    "FORMAT",
    "FIRST s",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "ROWS/s",
    "TOKENS/s",
    "x LIVE",
)


def text(found: Sequence[Measured]) -> str:
    """A line for each result, with a header. LENGTH: tokens of the input, for decode in the cache."""
    return table([HEADER, *map(_line, found)])


def _line(m: Measured) -> tuple[str, ...]:
    tokens = "" if m.tokens_per_s is None else f"{m.tokens_per_s:,.0f}"
    times = [f"{m.percentile(which):.2f}" for which in (50, 90, 99)]
    beside = "" if m.of_live is None or m.format == LIVE else f"{m.of_live:.2f}"
    size = str(m.setting.length or "")
    place = (m.setting.program, str(m.setting.batch), size, m.format)
    return (*place, f"{m.first_s:.2f}", *times, f"{m.rows_per_s:,.0f}", tokens, beside)


def as_json(found: Sequence[Measured], about: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able: the results, the machine and the versions. about: further entries, such as what was measured."""
    facts = environment()
    versions = {name: _version(name) for name in ("onnxruntime", "transformers", "torch")}
    return {
        **about,
        "host": facts["host"],
        "devices": facts["devices"],
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": facts["flags"],
        "python": facts["python"],
        "packages": facts["packages"] | {name: version for name, version in versions.items() if version},
        "results": [_entry(m) for m in found],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _entry(m: Measured) -> dict[str, Any]:
    return {
        "program": m.setting.program,
        "format": m.format,
        "sizes": dict(m.setting.sizes),
        "context": m.setting.context,
        "first_s": m.first_s,
        "samples": len(m.samples),
        "p50_ms": m.percentile(50),
        "p90_ms": m.percentile(90),
        "p99_ms": m.percentile(99),
        "rows_per_s": m.rows_per_s,
        "tokens_per_s": m.tokens_per_s,
        "times_live": m.of_live,
    }


def plot(found: Sequence[Measured], path: Path) -> None:
    """A PNG, a panel for each program: milliseconds by length or batch, at the median and up to the 90th percentile. Needs matplotlib."""
    from matplotlib.figure import Figure

    programs = list(dict.fromkeys(m.setting.program for m in found))
    figure = Figure(figsize=(4.5 * len(programs), 3.6), layout="constrained")
    for axes, program in zip(figure.subplots(1, len(programs), squeeze=False)[0], programs, strict=True):
        here = [m for m in found if m.setting.program == program]
        by_length = any(m.setting.length for m in here)
        for name, batch in dict.fromkeys((m.format, m.setting.batch if by_length else None) for m in here):
            line = [m for m in here if m.format == name and batch in (None, m.setting.batch)]
            x = [m.setting.length if by_length else m.setting.batch for m in line]
            label = name if batch is None else f"{name}, batch {batch}"
            drawn = axes.plot(x, [m.percentile(50) for m in line], "o-", markersize=4, linewidth=1.4, label=label)
            high = [m.percentile(90) for m in line]
            axes.fill_between(x, [m.percentile(50) for m in line], high, alpha=0.15, color=drawn[0].get_color())
        axes.set(title=program, xlabel=_axis(program, by_length), ylabel="ms")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110, format="png")


def _axis(program: str, by_length: bool) -> str:
    if not by_length:
        return "batch"
    return "tokens in the cache" if program == "decode" else "tokens"
