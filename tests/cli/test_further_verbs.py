"""Verbs of other packages: found by entry points, listed without trust, and never in the place of one of Assay's."""

import importlib.metadata
import sys
import types

import pytest

from assay.cli import main
from assay.cli.main import GROUP


@pytest.fixture
def verbs(monkeypatch):
    said = []
    module = types.ModuleType("greeting")
    module.ABOUT, module.HELP, module.EXAMPLE = "say hello", "Say hello to somebody.", "assay greet you"
    module.add_arguments = lambda parser: parser.add_argument("who")
    module.run = lambda args: said.append(args.who) or 3
    monkeypatch.setitem(sys.modules, "greeting", module)
    points = [
        importlib.metadata.EntryPoint(name=name, value=value, group=GROUP)
        for name, value in (("greet", "greeting"), ("broken", "no_such_module"), ("run", "greeting"))
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **selected: points)
    return said


def test_a_verb_of_another_package_is_listed_and_run(verbs, capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "  greet     say hello" in printed
    assert "  broken    (cannot be used: verb broken (no_such_module, of unknown) cannot be imported: Module" in printed
    assert printed.count("  run  ") == 1
    assert main(["greet", "you"]) == 3
    assert verbs == ["you"]
    assert main(["greet", "--help"]) == 0
    assert "Say hello to somebody." in capsys.readouterr().out


def test_a_broken_one_says_so(verbs, capsys):
    assert main(["broken"]) == 1
    assert "No module named 'no_such_module'; update or uninstall unknown" in capsys.readouterr().err


def test_it_takes_no_verb_of_assay_s(verbs, capsys):
    assert main(["run", "--help"]) == 0
    assert "Say hello" not in capsys.readouterr().out
