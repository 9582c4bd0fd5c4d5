"""What `assay bench` compares: the formats of an artifact, and the live model of the run that it comes from."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from assay.errors import AssayError, ExportError
from assay.exported import OUTPUT, TOKENS
from assay.kinds import Exporter
from assay.runs import open_run
from assay.train.launch import restored
from assay_export import run
from assay_export.bench import Call
from assay_export.live import Live
from assay_export.manifest import FAILED, format_status
from assay_export.named import exporter_of
from assay_export.parity import unchecked
from assay_kernels import using


def formats(
    artifact: Path, content: Mapping[str, Any], wanted: Sequence[str] | None, report: Callable[[str], None]
) -> dict[str, Call]:
    """Format -> its programs in this process; those that failed or cannot run here are left out and reported, unless they were asked for.

    wanted: None for all there are. Raises ExportError for one that is not there or cannot run, and where none is left.
    """
    absent = [name for name in wanted or () if name not in content["formats"]]
    if absent:
        raise ExportError(f"{artifact} has no format '{absent[0]}'; it has {', '.join(content['formats'])}")
    found = {}
    for name in wanted or content["formats"]:
        why = _in_the_way(content, name)
        if why is None:
            found[name] = _loaded(artifact, name, exporter_of(content, name))
        elif wanted:
            raise ExportError(f"{name} cannot be measured: {why}")
        else:
            report(f"{name} is not measured: {why}")
    if not found:
        raise ExportError(f"{artifact}: none of its formats can be measured here: {why}")
    return found


def _in_the_way(content: Mapping[str, Any], name: str) -> str | None:
    """Why a format cannot be measured: it failed the gate, or what it needs is not installed."""
    if format_status(content, name) == FAILED:
        return "it is marked failed, since it differs from its model; export the run again"
    lacking = unchecked(content["formats"][name]["requirements"], 0.0)
    return None if lacking is None else lacking.unchecked


def _loaded(artifact: Path, name: str, exporter: Exporter) -> Call:
    """The loader's own function, which gives arrays where they are."""
    call: Call = run.load(artifact, name, exporter.loader())
    return call


def live(content: Mapping[str, Any], root: Path | None) -> tuple[dict[str, Callable[[Mapping[str, Any]], Any]], str]:
    """(the live model's programs by name, compiled, with their caches donated, what it is); no programs, and why, where it is not there.

    root: where runs are kept, None for the usual place.
    """
    lineage = content["lineage"]
    try:
        plan, state, step = restored(open_run(str(lineage.get("run")), root), lineage.get("step"))
    except AssayError as error:
        return {}, f"not compared with the live model: {error}"
    model = Live(plan, state.variables)
    changed = " before its transforms" if content.get("transforms") else ""
    found: dict[str, Any] = {"forward": functools.partial(_forward, model)}
    if {"prefill", "decode"} <= set(content["programs"]) and hasattr(model.module, "decode"):
        found |= {"decode": decoding(model), "prefill": decoding(model)}
    return found, f"live is run {lineage['run']}, step {step}{changed}"


def _forward(model: Live, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    return {OUTPUT: model.forward(inputs)}


def decoding(model: Live) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """The network's own decode, with the kernels of the experiment; a prompt is at position 0."""
    e, network = model.plan.experiment, model.plan.network
    variables = jax.device_put(model.variables, jax.devices()[0])
    tree = jax.tree.structure(jax.eval_shape(lambda: model.module.init_cache(1, 1, "float32")))

    @functools.partial(jax.jit, donate_argnums=2)
    def step(variables: Any, tokens: Any, cache: Sequence[Any], position: Any) -> Any:
        params, frozen, stats = variables
        with using(*e.kernels):
            module: Any = network.merge(params, stats, e.compute_dtype, frozen)
            output, new = module.decode(tokens, jax.tree.unflatten(tree, cache), position)
        return output, jax.tree.leaves(new)

    def call(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        names = [name for name in inputs if name not in (TOKENS, "position")]
        output, new = step(variables, inputs[TOKENS], [inputs[n] for n in names], inputs.get("position", 0))
        return {OUTPUT: output, **dict(zip(names, new, strict=True))}

    return call
