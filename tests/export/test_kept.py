"""What an artifact keeps: real examples of each kind in their order, the status of each format, and nothing of whose machine it is from."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay import registry
from assay.cli import main
from assay.errors import ExportError
from assay_export import artifact, manifest, parity, stored
from assay_export.cases import Case, cases
from assay_export.export import finish
from assay_export.lineage import without_places
from assay_export.stablehlo import exporter
from assay_export.stablehlo.exporter import StableHLO

from .conftest import Model, made

EXPORTER = StableHLO(platforms=("cpu",), buckets=())


@pytest.fixture(scope="module")
def digits() -> Model:
    return made("mlp", max_batch=3)


def written(model: Model, place: Path) -> Path:
    """An artifact of two formats, the second of which was not compared."""
    place.mkdir()
    formats = {"stablehlo": EXPORTER, "other": EXPORTER}
    content = artifact.fill(place, model.source, formats, {"tokenizer": None})
    absent = parity.unchecked(["not-there-at-all"], 2e-5)
    assert absent is not None
    sound = parity.Checked(2e-5, [], {}, 0, [])
    found = {"stablehlo": sound, "other": absent}
    kept = [(case, case.of_live(model.live.forward(case.inputs))) for case in cases(model.source)]
    finish(place, content, found, kept)
    return place


def with_(place: Path, change: Callable[[Any], Any], statuses: dict[str, str]) -> Path:
    """The artifact with another manifest, sealed again."""
    content = manifest.read(place)
    change(content)
    manifest.seal(place, content, statuses)
    return place


def test_each_format_has_its_status(digits: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = written(digits, tmp_path / "artifact")
    content = manifest.read(place)
    assert content["status"] == "unverified"
    assert {name: facts["status"] for name, facts in content["formats"].items()} == {
        "stablehlo": "verified",
        "other": "unverified",
    }
    np.savez(tmp_path / "in.npz", **digits.source.examples)  # type: ignore[arg-type]
    predict = ["predict", str(place), "--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")]
    # `other` is read by the loader of stablehlo, from its directory.
    absent = lambda content: content["formats"]["other"].update(requirements=["not-there-at-all"])
    with (
        registry.temporary("exporter", "stablehlo", StableHLO),
        registry.temporary("exporter", "other", StableHLO),
    ):
        # Where there is what it needs, it is compared, and holds.
        assert main(["artifact", "verify", str(place)]) == 0
        assert f"{place}: verified\n" in capsys.readouterr().out
        assert main(predict) == 0
        # Where there is not, the other one is.
        with_(place, absent, {"stablehlo": "verified"})
        assert main(["artifact", "verify", str(place)]) == 0
        assert f"{place}: verified: stablehlo; not compared: other\n" in capsys.readouterr().out
        # One that failed is refused, by its name; the other is not.
        with_(place, absent, {"stablehlo": "failed"})
        assert main(["artifact", "verify", str(place)]) == 1
        assert "not compared: other; FAILED the comparison, and marked so: stablehlo" in capsys.readouterr().out
        assert main([*predict, "--format", "stablehlo"]) == 1
        assert "stablehlo is marked failed: it differs from its model" in capsys.readouterr().err
        assert main(predict) == 0  # by the other one
        # Nothing that was compared is no success.
        with_(place, lambda content: content["formats"].pop("stablehlo"), {})
        assert main(["artifact", "verify", str(place)]) == 1


def test_the_worst_format_s_status_is_the_artifact_s() -> None:
    assert manifest.status_of(["verified", "failed", "unverified"]) == "failed"
    assert manifest.status_of(["verified", "unverified"]) == "unverified"
    assert manifest.status_of(["verified"]) == "verified"


def test_cases_come_back_in_their_order_real_ones_first(tmp_path: Path) -> None:
    def case(number: int, kind: str, size: int, *, real: bool = False) -> stored.Kept:
        inputs = {"x": np.full((1, 2), number, np.float32)}
        return Case(f"{kind} {number}", kind, inputs, {"batch": 1}, number, real), np.full((1, size), number, "f4")  # type: ignore[arg-type]

    given = [case(n, "forward", 3) for n in range(12)]
    given += [case(12, "forward", 50, real=True), case(13, "decode", 4), case(14, "decode", 900_000, real=True)]
    given += [case(15, "steps", 1)]
    stored.store(given, tmp_path / "cases.safetensors")
    found = stored.stored(tmp_path / "cases.safetensors")
    assert [(c.label, c.real) for c, _ in found] == [
        ("forward 12", True),
        ("decode 14", True),
        ("steps 15", False),
        ("forward 0", False),
        ("forward 1", False),
        ("decode 13", False),
    ]
    for (c, live), want in zip(found, [12, 14, 15, 0, 1, 13], strict=True):
        assert (live == want).all()
        assert (c.inputs["x"] == want).all()
        assert c.prompt == want


def test_a_kind_has_one_case_however_large_and_others_as_far_as_there_is_room(tmp_path: Path) -> None:
    one = np.ones((1, 1), np.float32)
    sizes = {"large": stored.STORED_BYTES, "small": 1}
    given = [(Case(n, "forward", {"x": one}, {}, real=n == "large"), np.ones((1, k), "f4")) for n, k in sizes.items()]
    stored.store(given, tmp_path / "cases.safetensors")
    assert [c.label for c, _ in stored.stored(tmp_path / "cases.safetensors")] == ["large"]


def test_many_cases_keep_their_order(tmp_path: Path) -> None:
    given = [
        (Case(f"{kind} {n}", kind, {"x": np.ones((1, 1), "f4")}, {}), np.full((1, 2 + n), n, "f4"))  # type: ignore[arg-type]
        for n in range(3)
        for kind in ("forward", "prefill", "decode", "steps")
    ]
    stored.store(given, tmp_path / "cases.safetensors")
    assert [c.label for c, _ in stored.stored(tmp_path / "cases.safetensors")] == [c.label for c, _ in given]


def test_real_rows_of_every_kind_are_played(decoder: Model) -> None:
    found = list(cases(decoder.source))
    real = [case for case in found if case.real]
    assert {case.kind for case in real} == {"forward", "prefill", "decode"}
    for case in real:
        rows = decoder.source.examples["inputs"][: len(case.inputs["inputs"]), : case.inputs["inputs"].shape[1]]
        np.testing.assert_array_equal(case.inputs["inputs"], rows)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/data/books.txt", "…/books.txt"),
        ("~/models/llama", "…/llama"),
        ("~me/models/llama", "…/llama"),
        ("file:///scratch/me/x", "…/x"),
        ("@dataset.text(path='/home/me/my data/a.txt', n=2)", "@dataset.text(path='…/a.txt', n=2)"),
        ("https://example.org/me/code.git", "https://example.org/me/code.git"),
        ("git@example.org:me/code.git", "git@example.org:me/code.git"),
        ("gs://bucket/me/x", "gs://bucket/me/x"),
        ("data/books.txt", "data/books.txt"),
        ("@model.mlp()", "@model.mlp()"),
        (3e-4, 3e-4),
    ],
)
def test_paths_of_the_machine_stay_there(text: object, left: object) -> None:
    assert without_places({"a": [text, {"b": text}]}) == {"a": [left, {"b": left}]}


class TestRefresh:
    """What is written again is as it was, and what is not is said."""

    @pytest.fixture(autouse=True)
    def plugin(self) -> Iterator[None]:
        with registry.temporary("exporter", "stablehlo", StableHLO):
            yield

    def test_it_says_what_it_leaves_out_and_keeps_settings(
        self, digits: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = written(digits, tmp_path / "artifact")
        assert main(["artifact", "refresh", str(place), "--out", str(tmp_path / "new")]) == 0
        said = capsys.readouterr().out
        assert said.startswith("other: left out, stablehlo alone can be written again without the run")
        new = manifest.read(tmp_path / "new")
        assert list(new["formats"]) == ["stablehlo"]
        settings = new["formats"]["stablehlo"]["settings"]
        assert settings == {"platforms": ["cpu"], "buckets": []}
        assert not list((tmp_path / "new/stablehlo/static").iterdir())
        assert new["dtype"] == "float32"
        kept = [[(c.label, c.real) for c, _ in stored.stored(p / artifact.CASES)] for p in (place, tmp_path / "new")]
        assert kept[0] == kept[1]

    def test_names_of_the_manifest_lead_nowhere_else(self, digits: Model, tmp_path: Path) -> None:
        place = written(digits, tmp_path / "artifact")
        (tmp_path / "forward.jaxexport").write_bytes(b"of somebody else")
        names = {"cpu": "../../forward.jaxexport"}
        change = lambda c: c["formats"]["stablehlo"]["facts"]["programs"]["forward"].update(platforms=names)
        with_(place, change, {"stablehlo": "verified"})
        (place / "stablehlo/forward.cpu.jaxexport").rename(place / "stablehlo/forward.jaxexport")
        with_(place, lambda content: None, {"stablehlo": "verified"})
        assert main(["artifact", "refresh", str(place), "--out", str(tmp_path / "new")]) == 0

    def test_one_file_for_each_platform_stays_so(
        self, digits: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = exporter._export

        def one_at_a_time(program: Any, weights: Any, inputs: Any, platforms: Any) -> Any:
            if len(platforms) > 1:
                raise ExportError("an operation has no lowering for both")
            return right(program, weights, inputs, platforms)

        monkeypatch.setattr(exporter, "_export", one_at_a_time)
        place = tmp_path / "artifact"
        place.mkdir()
        both = StableHLO(platforms=("cpu", "cuda"), buckets=())
        content = artifact.fill(place, digits.source, {"stablehlo": both}, {"tokenizer": None})
        kept = [(case, case.of_live(digits.live.forward(case.inputs))) for case in cases(digits.source)]
        finish(place, content, {"stablehlo": parity.Checked(2e-5, [], {}, 0, [])}, kept)
        assert main(["artifact", "refresh", str(place), "--out", str(tmp_path / "new")]) == 0
        facts = manifest.read(tmp_path / "new")["formats"]["stablehlo"]["facts"]
        assert facts["programs"]["forward"]["platforms"] == {
            "cpu": "forward.cpu.jaxexport",
            "cuda": "forward.cuda.jaxexport",
        }
