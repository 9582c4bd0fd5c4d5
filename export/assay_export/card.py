"""The draft of a model card: what is known of itself, and headings for what only people know."""

from collections.abc import Mapping
from typing import Any

from assay_export import manifest


def card(content: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Markdown. content: the manifest's. found: format -> assay_export.parity.Checked."""
    lineage, weights = content["lineage"], content["weights"]
    sizes = ", ".join(f"{name} from {d['low']} to {d['high']}" for name, d in content["dims"].items())
    lines = [
        f"# {lineage.get('experiment', 'model')}, step {lineage.get('step')}",
        "",
        f"{weights['parameters']:,} parameters, {', '.join(weights['dtypes'])}. From run `{lineage.get('run')}`.",
        "",
        "## How to run it",
        "",
        "`python run.py forward --input inputs.npz --output outputs.npz`, without Assay, or `assay predict`.",
        "",
        "| program | inputs | outputs |",
        "|---|---|---|",
        *(f"| `{name}` | {_ports(p['inputs'])} | {_ports(p['outputs'])} |" for name, p in content["programs"].items()),
        "",
        f"Sizes: {sizes or 'all are fixed'}.",
        "",
        "## How it was checked",
        "",
        "| format | largest difference | bound | examples | holds |",
        "|---|---|---|---|---|",
        *(
            f"| {n} | not compared: {c.unchecked} | | | |"
            if c.unchecked
            else f"| {n} | {c.worst:.1e} | {c.bound:.0e} | {c.examples} | {'no' if c.problems else 'yes'} |"
            for n, c in found.items()
        ),
        "",
        *(f"* {name}: {live:.6f}" for c in list(found.values())[:1] for name, (_, live) in c.metrics.items()),
        "",
        *(f"Note: {note}" for note in manifest.notes(content)),
        "",
        "## Intended use",
        "",
        "*(to be written)*",
        "",
        "## Training data",
        "",
        f"Fingerprint `{lineage.get('data')}`. *(to be written: where it comes from, its licence)*",
        "",
        "## Limits and risks",
        "",
        "*(to be written)*",
    ]
    return "\n".join(lines) + "\n"


def _ports(tensors: Mapping[str, Any]) -> str:
    shown = [f"`{n}` {t['dtype']} ({', '.join(map(str, t['shape']))})" for n, t in tensors.items() if "cache/" not in n]
    caches = len(tensors) - len(shown)
    return ", ".join(shown + ([f"{caches} caches"] if caches else []))
