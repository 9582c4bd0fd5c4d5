"""The conformance kit of exporters."""

import ast
import contextlib
import json
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from assay.errors import ExportError
from assay.exported import Exported, Written, absent
from assay.kinds import Exporter
from assay.testing import exporter_example as example
from assay.testing.kit import Kit, check, skip

HINT = "a format that knows architectures rather than programs gives the plugin a method example() -> Exported, which it can write"


class ExporterKit(Kit):
    """Checks of an exporter plugin.

    format: the plugin's name, that of its directory in artifacts; the kit's class name without it.
    source(): what it is to write; by default what the plugin's method `example() -> Exported` gives, for a format that knows
    architectures and not programs, else small programs of the kit's own, with dynamic sizes and a cache.
    impossible(): what it must refuse; by default a program that calls Python, None for nothing. tolerance: of outputs, as a part of
    the largest.
    """

    kind = "exporter"
    format: ClassVar[str] = ""
    tolerance: ClassVar[float] = 2e-5

    def plugin(self) -> Exporter:
        """The exporter to check."""
        return super().plugin()

    def source(self) -> Exported:
        """What it is to write."""
        own = getattr(self.plugin(), "example", None)
        found: Exported = example.programs() if own is None else own()
        return found

    def impossible(self) -> Exported | None:
        """What it must refuse."""
        return example.calling_python()

    @check
    def test_it_writes_into_its_directory_alone(self) -> None:
        """It writes files into its directory and nothing beside it, and says which of the programs they hold."""
        source = self.source()
        with example.artifact(source) as artifact:
            before = {p for p in artifact.rglob("*") if self._name not in p.parts}
            written = self._accepted(source, artifact)
            assert {p for p in artifact.rglob("*") if self._name not in p.parts} == before, (
                "it wrote beside its directory"
            )
            assert any((artifact / self._name).rglob("*")), "it wrote nothing"
        names = [program.name for program in source.programs]
        assert written.programs, f"it holds none of {', '.join(names)}"
        assert set(written.programs) <= set(names), (
            f"it holds {', '.join(written.programs)}; there are {', '.join(names)}"
        )

    @check
    def test_its_facts_are_json(self) -> None:
        """What it returns for the manifest is plain data, which JSON gives back as it was."""
        source = self.source()
        with example.artifact(source) as artifact:
            facts = self._accepted(source, artifact).facts
        assert json.loads(json.dumps(facts)) == facts, f"{facts!r} changes on its way through JSON"

    @check
    def test_what_it_wrote_computes_the_same(self) -> None:
        """Loaded again, every program gives the outputs of the functions it was given, at every corner of the dynamic sizes."""
        source, problems = self.source(), list[str]()
        weights: Any = dict(source.weights)
        with self._loaded(source) as (run, written):
            for program in source.programs:
                for sizes in program.signature.sizes(source.dims) if program.name in written.programs else ():
                    inputs = example.inputs(source, program.signature, sizes)
                    expected = jax.jit(program.function)(weights, inputs)
                    found = run(program.name, inputs)
                    assert set(found) == set(expected), f"{program.name} gives {sorted(found)}, not {sorted(expected)}"
                    problems += [f"{program.name} at {sizes}: {p}" for p in self._differing(found, expected)]
        assert not problems, "; ".join(problems)

    @check
    def test_outputs_can_be_inputs(self) -> None:
        """What a call gives for a donated input can be that input of the next call."""
        source = self.source()
        with self._loaded(source) as (run, written):
            program = next((p for p in source.programs if p.name in written.programs and p.signature.donated), None)
            if program is None:
                skip("it writes no program with donated inputs")
            sizes = next(program.signature.sizes(source.dims))
            inputs: Any = example.inputs(source, program.signature, sizes)
            weights: Any = dict(source.weights)
            theirs, ours = dict(inputs), dict(inputs)
            for _ in range(3):
                found, expected = run(program.name, theirs), program.function(weights, ours)
                theirs |= {name: found[name] for name in program.signature.donated}
                ours |= {name: np.asarray(expected[name]) for name in program.signature.donated}
        problems = self._differing({n: theirs[n] for n in program.signature.donated}, ours)
        assert not problems, f"after three calls: {'; '.join(problems)}"

    @check
    def test_its_loader_needs_no_assay(self) -> None:
        """The loader imports nothing of Assay before or in `load`."""
        path = self.plugin().loader()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        load = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "load"]
        assert load, f"{path} has no function `load`"
        looked = [*(n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)), *ast.walk(load[0])]
        names = [a.name for n in looked if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in looked if isinstance(n, ast.ImportFrom)]
        wrong = [name for name in names if name.split(".")[0].startswith("assay")]
        assert not wrong, f"{path} imports {', '.join(wrong)}; artifacts run without Assay"

    @check
    def test_it_refuses_in_words(self) -> None:
        """A program that the format cannot express raises ExportError, which names what is in the way."""
        source = self.impossible()
        if source is None:
            skip("there is nothing that it must refuse")
        with example.artifact(source) as artifact:
            message = None
            try:
                self._written(source, artifact)
            except ExportError as error:
                message = str(error).strip()
        assert message is not None, "it wrote what cannot be exported; raise ExportError naming the operation"
        assert message, "its ExportError says nothing; name the operation that is in the way"

    def _written(self, source: Exported, artifact: Path) -> Written:
        (artifact / self._name).mkdir()
        return self.plugin().write(source, artifact / self._name)

    def _accepted(self, source: Exported, artifact: Path) -> Written:
        """The same for what it must not refuse."""
        try:
            return self._written(source, artifact)
        except ExportError as error:
            advice = "" if hasattr(self.plugin(), "example") else f": {HINT}"
            raise AssertionError(f"it refuses what it is to write: {error}{advice}") from error

    @contextlib.contextmanager
    def _loaded(self, source: Exported) -> Iterator[tuple[Any, Written]]:
        """(what the loader's `load` returns for an artifact of `source`, what `write` returned)."""
        with example.artifact(source) as artifact:
            written = self._accepted(source, artifact)
            missing = absent(written.requirements)
            if missing:
                skip(f"its loader needs {', '.join(missing)}, which is not installed here")
            programs = {p.name: example.plain(p.signature) for p in source.programs}
            manifest = {
                "programs": programs,
                "dims": {n: {"low": d.low, "high": d.high} for n, d in source.dims.items()},
            }
            facts = json.loads(json.dumps(written.facts))
            load = runpy.run_path(str(self.plugin().loader()))["load"]
            yield load(artifact, manifest, facts), written

    @property
    def _name(self) -> str:
        return self.format or type(self).__name__

    def _differing(self, found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
        problems = []
        for name, value in found.items():
            one, two = np.asarray(value, np.float64), np.asarray(expected[name], np.float64)
            if one.shape != two.shape:
                problems.append(f"{name} has shape {one.shape}, not {two.shape}")
            elif not np.max(np.abs(one - two), initial=0.0) <= self.tolerance * (
                np.max(np.abs(two), initial=0.0) or 1.0
            ):
                problems.append(f"{name} is off by {np.max(np.abs(one - two)):.1e}")
        return problems
