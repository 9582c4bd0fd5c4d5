"""Writes a new plugin's package: an installable project around one of the modules beside this file."""

import keyword
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from assay import __version__
from assay.errors import PluginError
from assay.kinds import KINDS

BASE: Mapping[str, str] = {
    "model": "@model.mlp()",
    "dataset": "@dataset.digits()",
    "objective": "@objective.classification()",
    "metrics": "[@metric.accuracy()]",
    "optimizer": "@optimizer.adamw()\noptimizer.adamw.learning_rate = 1e-3",
    "parallelism": "@parallelism.data_parallel()",
    "trackers": "[]",
    "steps": "100",
    "batch_size": "64",
    "log_every": "20",
}
"""An experiment of a few seconds on real data; a package's own replaces one line by its plugin."""

TEXT: Mapping[str, str] = {
    "model": "@model.transformer()\nmodel.transformer.layers = 1\nmodel.transformer.width = 32\nmodel.transformer.heads = 2",
    "dataset": "@dataset.python_stdlib()\ndataset.python_stdlib.context = 32\ndataset.python_stdlib.max_bytes = 200_000",
    "objective": "@objective.next_token()",
    "metrics": "[@metric.bits_per_byte()]",
    "batch_size": "16",
}
"""The lines of a language model."""

LINES: Mapping[str, Mapping[str, str]] = {
    "tokenizer": {**TEXT, "dataset": f"{TEXT['dataset']}\ndataset.python_stdlib.tokenizer = @tokenizer.my_plugin()"},
    "kernel": {
        **TEXT,
        "dataset": f"{TEXT['dataset']}\ndataset.python_stdlib.tokenizer = @tokenizer.char()",
        "objective": f"{TEXT['objective']}\nobjective.next_token.fused_head = 'auto'",
        "kernels": "[@kernel.my_plugin()]",
    },
    "metric": {"metrics": "[@metric.my_plugin()]"},
    "schedule": {
        "optimizer": "@optimizer.adamw()\noptimizer.adamw.learning_rate = @schedule.my_plugin()\n"
        "schedule.my_plugin.warmup_steps = 20",
    },
    "tracker": {"trackers": "[@tracker.my_plugin()]"},
    "importer": {},
    "exporter": {},
    "transform": {},
}
"""The experiment's lines by kind, where they are more than `experiment.KIND = @KIND.my_plugin()`."""


def write(name: str, kind: str, parent: Path) -> Path:
    """Make `parent`/`name`, whole or not at all. Raises PluginError for a name that will not do or a directory that is there."""
    _check(name, kind)
    directory = parent / name
    if directory.exists():
        raise PluginError(f"{directory} exists already; choose another name, or remove it")
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    try:
        for path, text in files(name, kind).items():
            target = temporary / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        return temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def files(name: str, kind: str) -> dict[str, str]:
    """Path in the package -> its text."""
    found = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{name}.gin": _experiment(kind),
        f"src/{name}/__init__.py": '"""A plugin for Assay."""\n',
        f"src/{name}/py.typed": "",
        f"src/{name}/{kind}.py": resources.files("assay.templates").joinpath(f"{kind}.py").read_text(encoding="utf-8"),
        "tests/conftest.py": _CONFTEST,
        f"tests/test_{name}.py": _IMPORTER_TEST if kind == "importer" else _TEST,
    }
    if kind in _VERBS:  # no part of an experiment
        del found[f"{name}.gin"]
        found["README.md"] = found["README.md"].replace(_RUN, _VERBS[kind])
    if kind == "exporter":
        found[f"src/{name}/loader.py"] = resources.files("assay.templates").joinpath("loader.py").read_text("utf-8")
        test = found[f"tests/test_{name}.py"]
        found[f"tests/test_{name}.py"] = test.replace("    def plugin(", '    format = "my_plugin"\n\n    def plugin(')
    words = {
        "MyPlugin": _camel(name),
        "my_plugin": name,
        "my-plugin": name.replace("_", "-"),
        "MyKind": kind.capitalize(),
        "my_kind": kind,
        "ASSAY_VERSION": __version__,
    }
    pattern = re.compile("|".join(words))
    return {path: pattern.sub(lambda m: words[m[0]], text) for path, text in found.items()}


def _check(name: str, kind: str) -> None:
    """Raise PluginError for a kind that there is not, or a name that is no plugin's or no package's."""
    kinds = [k.name for k in KINDS]
    if kind not in kinds:
        raise PluginError(f"no plugin kind '{kind}'. Kinds: {', '.join(kinds)}.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise PluginError(
            f"'{name}' cannot name a plugin; a plugin's name is a lower-case letter, then lower-case letters, digits and _"
        )
    if name in ("assay", "tests", "src", kind):
        raise PluginError(f"'{name}' cannot name the plugin's package; choose a name that says what it does")


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _experiment(kind: str) -> str:
    own = LINES.get(kind, {kind: f"@{kind}.my_plugin()"})
    lines = [f"experiment.{key} = {value}" for key, value in {**BASE, **own}.items()]
    return "# my_kind.my_plugin in an experiment of a few seconds.\n" + "\n".join(lines) + "\n"


_PYPROJECT = """[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "my-plugin"
version = "0.1.0"
description = "A my_kind for Assay"
requires-python = ">=3.11"
dependencies = ["assay>=ASSAY_VERSION"]

[project.optional-dependencies]
dev = ["pytest>=8", "ruff>=0.14", "mypy>=1.18"]

[project.entry-points."assay.my_kind"]
my_plugin = "my_plugin.my_kind:MyPlugin"

[tool.hatch.build.targets.wheel]
packages = ["src/my_plugin"]

[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = ["--import-mode=importlib"]

[tool.ruff]
line-length = 120

[tool.ruff.lint]
select = ["E4", "E7", "E9", "F", "I", "B", "UP"]

[tool.mypy]
strict = true
files = ["src"]
disable_error_code = ["import-untyped"]
untyped_calls_exclude = ["jax"]
"""

_RUN = "assay run my_plugin.gin"
_VERBS = {
    "importer": "assay import my_plugin PATH --to DIR",
    "exporter": "assay export latest --to my_plugin",
    "transform": "assay export latest --transform my_plugin",
}

_README = f"""# my-plugin

`my_kind.my_plugin`, a my_kind for Assay, in `src/my_plugin/my_kind.py`.

```sh
pip install -e '.[dev]'
assay show my_kind.my_plugin
pytest
ruff check .
mypy
{_RUN}
```

`assay show` prints its parameters as Assay sees them; `pytest` makes the checks that every my_kind must pass.
"""

_CONFTEST = '''"""Eight virtual devices, so that checks of placement run on any machine."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
'''

_TEST = '''"""MyPlugin does what every my_kind must."""

from assay.testing import MyKindKit

from my_plugin.my_kind import MyPlugin


class TestMyPlugin(MyKindKit):
    """Each check of the kit is a test; more tests of your own go beside it."""

    def plugin(self) -> MyPlugin:
        """The plugin to check; small, for its checks to be quick."""
        return MyPlugin()
'''

_IMPORTER_TEST = '''"""MyPlugin does what every importer must."""

from pathlib import Path

import numpy as np
from assay.testing import ImporterKit

from my_plugin.importer import MyPlugin


class TestMyPlugin(ImporterKit):
    """Each check of the kit is a test; more tests of your own go beside it."""

    def plugin(self) -> MyPlugin:
        """The plugin to check."""
        return MyPlugin()

    def example(self, directory: Path) -> Path:
        """A small model of digits in the files that the plugin reads."""
        draw = np.random.default_rng(0).normal
        np.savez(directory / "net.npz", w0=draw(size=(64, 5)), b0=draw(size=5), w1=draw(size=(5, 10)), b1=draw(size=10))
        return directory / "net.npz"
'''
