"""The conformance kit of importers."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from assay import config, imported, registry
from assay.checkpoint.checkpoints import dotted
from assay.data.spec import DataSpec
from assay.errors import AssayError, ConfigError, DataError
from assay.imported import Imported
from assay.kinds import Importer, Model
from assay.network import make_network
from assay.testing.examples import SPECS
from assay.testing.kit import Kit, check, skip

PARTS = ("dataset", "objective", "optimizer", "parallelism")


class ImporterKit(Kit):
    """Checks of an importer plugin. example(directory): makes files that the plugin can read, and returns their path.

    spec(found): the data that the imported model reads; by default the first of assay.testing.examples.SPECS, with the imported
    vocabulary, that it builds for.
    """

    kind = "importer"

    def plugin(self) -> Importer:
        """The importer to check."""
        return super().plugin()

    def example(self, directory: Path) -> Path:
        """A small model in the library's files, below `directory`."""
        skip("there is no example to read: define example(directory) in a subclass of ImporterKit")

    def spec(self, found: Imported) -> DataSpec:
        """The data that the imported model reads."""
        model, refusals = _model_of(found), []
        for spec in SPECS.values():
            vocab = found.vocab_size if spec.vocab_size else None
            known = dataclasses.replace(spec, vocab_size=vocab, num_classes=10 if spec.num_classes else None)
            try:
                make_network(model, known)
            except (AssayError, ValueError, TypeError) as error:
                refusals.append(str(error))
            else:
                return known
        raise AssertionError(
            f"the model builds for none of the kit's examples: define spec(found). {'; '.join(refusals)}"
        )

    @check
    def test_its_arrays_are_finite_fp32(self) -> None:
        """Every parameter is a float32 array without NaN or infinity."""
        with self._found() as found:
            assert found.parameters, "there are no parameters"
            wrong = [path for path, x in found.parameters.items() if np.asarray(x).dtype != np.float32]
            assert not wrong, f"not float32: {', '.join(wrong)}"
            bad = [path for path, x in found.parameters.items() if not np.isfinite(x).all()]
            assert not bad, f"not finite: {', '.join(bad)}"

    @check
    def test_its_lines_make_a_model_with_these_parameters(self) -> None:
        """The lines configure a model that has exactly the parameters that were read, by name and shape."""
        with self._found() as found:
            network = make_network(_model_of(found), self.spec(found))
            wanted = {k.replace(".", "/"): v.shape for k, v in dotted(network.params).items()}
            given = {path: tuple(x.shape) for path, x in found.parameters.items()}
        missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
        assert not missing, f"the model's parameters {', '.join(missing)} were not read"
        assert not extra, f"the model has no parameters {', '.join(extra)}"
        differ = [f"{k}: read {given[k]}, the model's is {wanted[k]}" for k in wanted if given[k] != wanted[k]]
        assert not differ, "; ".join(differ)

    @check
    def test_reading_is_repeatable(self) -> None:
        """Reading twice gives the same lines and bits."""
        with self._found() as one, self._found() as two:
            assert one.model == two.model, "two readings gave different lines"
            same = jax.tree.map(np.array_equal, dict(one.parameters), dict(two.parameters))
            assert all(same.values()), f"two readings differ in {', '.join(k for k, v in same.items() if not v)}"

    @check
    def test_it_can_be_written_and_read_again(self) -> None:
        """What `assay import` writes holds the same arrays."""
        from safetensors.numpy import load_file

        with self._found() as found, tempfile.TemporaryDirectory() as folder:
            imported.write(found, Path(folder) / "to", origin={})
            back = load_file(Path(folder) / "to" / imported.PARAMETERS)
            assert back.keys() == found.parameters.keys(), "names changed"
            assert all(np.array_equal(x, found.parameters[k]) for k, x in back.items()), "values changed"

    @check
    def test_files_that_are_not_there_or_damaged_are_named(self) -> None:
        """An empty directory and a file of noise raise DataError or ConfigError, with their path."""
        with tempfile.TemporaryDirectory() as folder:
            noise = Path(folder) / "noise.bin"
            noise.write_bytes(np.random.default_rng(0).bytes(999))
            for path in (Path(folder) / "nothing", noise):
                message = self._refusal(path)
                assert message, f"reading {path.name} raised nothing"
                assert path.name in message, f"the message does not name {path.name}: {message}"

    def _refusal(self, path: Path) -> str:
        """The message with which the plugin refuses `path`, or nothing."""
        try:
            dict(self.plugin().read(path).parameters)
        except (DataError, ConfigError) as error:
            return str(error)
        return ""

    @contextlib.contextmanager
    def _found(self) -> Iterator[Imported]:
        """The example, read, while its files are there."""
        with tempfile.TemporaryDirectory() as folder:
            yield self.plugin().read(self.example(Path(folder)))


def _model_of(found: Imported) -> Model:
    """The model that the lines configure, in an experiment whose other parts do nothing."""
    lines = [found.model, *(f"experiment.{kind} = @{kind}.kit_part()" for kind in PARTS)]
    with contextlib.ExitStack() as stack:
        for kind in PARTS:
            stack.enter_context(registry.temporary(kind, "kit_part", _Part))
        text = "\n".join([*lines, "experiment.steps = 1", "experiment.batch_size = 1", "experiment.trackers = []", ""])
        return config.load_text(text, "imported.gin").experiment.model


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """Has every method of every other kind; none is called."""

    def spec(self) -> Any: ...

    source = fingerprint = build = learning_rate_at = mesh_axes = rules = __call__ = spec
