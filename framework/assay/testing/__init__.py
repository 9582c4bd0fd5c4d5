"""Conformance kits: what a plugin of each kind must do, as named checks. See docs/guide/plugins.md."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from assay import registry
from assay.errors import PluginError
from assay.experiment import Experiment
from assay.registry import REQUIRED
from assay.testing.dataset import DatasetKit
from assay.testing.exporter import ExporterKit
from assay.testing.importer import ImporterKit
from assay.testing.kernel import KernelKit
from assay.testing.kit import ExpectedFailure, Kit, Result, check, run, skip
from assay.testing.metric import MetricKit
from assay.testing.model import ModelKit
from assay.testing.objective import ObjectiveKit
from assay.testing.optimizer import OptimizerKit
from assay.testing.parallelism import ParallelismKit
from assay.testing.schedule import ScheduleKit
from assay.testing.tokenizer import TokenizerKit
from assay.testing.tracker import TrackerKit
from assay.testing.transform import TransformKit

__all__ = [
    "KITS",
    "DatasetKit",
    "ExpectedFailure",
    "ExporterKit",
    "ImporterKit",
    "KernelKit",
    "Kit",
    "MetricKit",
    "ModelKit",
    "ObjectiveKit",
    "OptimizerKit",
    "ParallelismKit",
    "Result",
    "ScheduleKit",
    "TokenizerKit",
    "TrackerKit",
    "TransformKit",
    "check",
    "kit_of",
    "run",
    "skip",
]

KITS: dict[str, type[Kit]] = {
    kit.kind: kit
    for kit in (
        ModelKit,
        DatasetKit,
        TokenizerKit,
        ObjectiveKit,
        MetricKit,
        OptimizerKit,
        ScheduleKit,
        ParallelismKit,
        TrackerKit,
        ImporterKit,
        KernelKit,
        ExporterKit,
        TransformKit,
    )
}
"""Kind -> its kit."""


def kit_of(kind: str, name: str, experiment: Experiment | None = None) -> Kit:
    """The kit for an installed plugin, as `experiment` configures it or, without one, with its defaults.

    Raises PluginError when there is no such plugin, when the experiment does not use it, or when it has parameters without a default.
    """
    plugin = registry.load(kind, name)
    if experiment is None:
        make, required = plugin, [p.name for p in registry.parameters(plugin).values() if p.default is REQUIRED]
        if required:
            raise PluginError(
                f"{kind}.{name} needs {', '.join(required)}: name an experiment that uses it, with --experiment X.gin"
            )
    else:
        used = [x for x in _parts(experiment) if type(x) is _type_of(plugin)]
        if not used:
            raise PluginError(f"the experiment does not use {kind}.{name}; name one that does")
        make = lambda: used[0]

    found = type(name, (KITS[kind],), {"plugin": lambda self: make(), "experiment": experiment})
    return found()


def _parts(value: Any) -> Iterator[Any]:
    """`value` and everything in it, through dataclasses and sequences."""
    yield value
    if dataclasses.is_dataclass(value) and not inspect.isclass(value):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)


def _type_of(plugin: Any) -> Any:
    """The class of what the plugin makes."""
    return plugin if inspect.isclass(plugin) else registry.produces(plugin)
