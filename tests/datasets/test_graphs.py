"""Graphs: citation networks, molecules and the karate club are what the literature says they are, and bad files say so."""

import dataclasses
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.data.pipeline import train_batches
from assay.errors import DataError, PluginError
from assay.kinds import Dataset
from assay.testing.dataset import DatasetKit
from assay_plugins.datasets import chemistry, karate
from assay_plugins.datasets.karate import Karate
from assay_plugins.datasets.molecules import Molecules
from assay_plugins.datasets.planetoid import Planetoid

SMILES = ["CCO", "C", "c1ccccc1", "CC(=O)[O-]", "C#N", "[Na+].[Cl-]", "BrC1CC1", "O=C=O", "CN", "CS"]


def citations() -> dict[str, np.ndarray]:
    """Six papers over four words; paper 5 has no word and no label."""
    return {
        "x_data": np.asarray([1, 3, 1, 1, 2], np.float32),
        "x_indices": np.asarray([0, 2, 1, 3, 3], np.int32),
        "x_indptr": np.asarray([0, 2, 3, 3, 4, 5, 5]),
        "x_shape": np.asarray([6, 4]),
        "y": np.asarray([0, 1, 0, 1, 0, 0], np.int16),
        "y_known": np.asarray([True] * 5 + [False]),
        "edges": np.asarray([[0, 1, 3], [1, 2, 3]], np.int32),
        "train": np.asarray([0, 1]),
        "val": np.asarray([2]),
        "test": np.asarray([4, 3, 5]),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "small.npz")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tabled(tmp_path / "table.csv")


def written(path: Path, **changes: np.ndarray) -> Path:
    np.savez(path, **citations() | changes)
    return path


def tabled(path: Path, shift: float = 0.0) -> Path:
    rows = [f"m{i},{i / 4 + shift},{smiles} " for i, smiles in enumerate(SMILES)]
    path.write_text("\n".join(["name,solubility,smiles", *rows]))
    return path


def molecules(table: Path, **settings: Any) -> Molecules:
    return Molecules(path=str(table), target_column="solubility", **settings)


def found_like_spec(data: Any, split: str) -> None:
    elements, source = data.spec().elements, data.source(split)
    assert {n: (v.shape, v.dtype.name) for n, v in source[0].items()} == {
        n: (a.shape, a.dtype) for n, a in elements.items()
    }
    gathered = source.gather(np.asarray([0, 0]))
    for name, value in source[0].items():
        np.testing.assert_array_equal(gathered[name], np.stack([value, value]))


def test_contract(file: Path, table: Path) -> None:
    for data in (Planetoid(path=str(file)), molecules(table), Karate()):
        assert isinstance(data, Dataset)
        found_like_spec(data, "train")
        found_like_spec(data, "validation")
        with pytest.raises(DataError, match="no split 'tset'"):
            data.source("tset")
        assert pickle.loads(pickle.dumps(data)).fingerprint() == data.fingerprint()


def test_a_citation_graph_is_read(file: Path) -> None:
    data = Planetoid(path=str(file))
    spec, rows = data.spec(), data.source("train")[0]
    assert (spec.vocab_size, spec.num_classes, spec.units_per_example, spec.unit) == (4, 2, 6, "nodes")
    assert set(zip(rows["senders"].tolist(), rows["receivers"].tolist(), strict=True)) == {
        *[(0, 1), (1, 0), (1, 2), (2, 1), (3, 3)]
    }
    words = np.zeros((6, 4))
    words[rows["feature_node"], rows["feature"]] = rows["feature_value"]
    expected = [[0.25, 0, 0.75, 0], [0, 1, 0, 0], [0] * 4, [0, 0, 0, 1], [0, 0, 0, 1], [0] * 4]
    np.testing.assert_allclose(words, expected)
    labels = {split: data.source(split)[0]["label"].tolist() for split in ("train", "validation", "test")}
    assert labels["train"] == [0, 1, -1, -1, -1, -1]
    assert labels["validation"] == [-1, -1, 0, -1, -1, -1]
    assert labels["test"] == [-1, -1, -1, 1, 0, -1]


def test_the_graph_is_read_once_and_never_copied(file: Path) -> None:
    first, second = (Planetoid(path=str(file)).source("train")[0]["senders"] for _ in range(2))
    assert np.shares_memory(first, second)
    gathered = Planetoid(path=str(file)).source("train").gather(np.zeros(3, np.int64))
    assert np.shares_memory(first, gathered["senders"])


def test_a_full_batch_is_the_graph_every_step(file: Path) -> None:
    source = Planetoid(path=str(file)).source("train")
    batches = train_batches(source, batch_size=1, seed=0, rows=slice(0, 1), prefetch=2, workers=0)
    for _ in range(3):
        batch = next(batches)
        np.testing.assert_array_equal(batch["senders"][0], source[0]["senders"])
        assert batch["mask"].tolist() == [True]
    batches.close()


def test_a_file_that_changes_is_read_again(file: Path) -> None:
    data = Planetoid(path=str(file))
    before = data.fingerprint(), data.source("train")[0]["label"].tolist()
    np.savez(file, **citations() | {"train": np.asarray([0])})
    os.utime(file, ns=(1, 1))
    assert data.source("train")[0]["label"].tolist() != before[1]
    assert data.fingerprint() != before[0]


@pytest.mark.parametrize(
    ("name", "papers", "words", "edges", "classes", "train"),
    [
        ("cora", 2708, 1433, 5278, 7, 140),
        ("citeseer", 3327, 3703, 4552, 6, 120),
        ("pubmed", 19717, 500, 44324, 3, 60),
    ],
)
def test_the_published_graphs(
    data_dir: Path, name: str, papers: int, words: int, edges: int, classes: int, train: int
) -> None:
    data = Planetoid(path=str(data_dir / f"{name}.npz"))
    spec, rows = data.spec(), data.source("train")[0]
    assert (spec.units_per_example, spec.vocab_size, spec.num_classes) == (papers, words, classes)
    assert len(rows["senders"]) == 2 * edges
    labelled = {split: data.source(split)[0]["label"] >= 0 for split in ("train", "validation", "test")}
    assert [int(chosen.sum()) for chosen in labelled.values()] == [train, 500, 1000]
    assert not np.any(labelled["train"] & labelled["validation"] | labelled["test"] & labelled["train"])
    assert np.bincount(rows["label"][labelled["train"]]).tolist() == [20] * classes
    sums = np.bincount(rows["feature_node"], weights=rows["feature_value"], minlength=papers)
    assert np.all((np.abs(sums - 1) < 1e-5) | (sums == 0))


DAMAGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no array": (lambda d: {k: v for k, v in d.items() if k != "edges"}, "has no array edges; it needs x_data"),
    "a word": (lambda d: d | {"x_indices": d["x_indices"] + 1}, "x_indices has a word beyond 4"),
    "a row": (lambda d: d | {"x_indptr": d["x_indptr"][:-1]}, "x_indptr does not divide x_data"),
    "an edge": (lambda d: d | {"edges": d["edges"] - 1}, "edges is not .* of papers below 6"),
    "a label": (lambda d: d | {"y": d["y"][:-1]}, r"y or y_known is not \(6,\)"),
    "a split": (lambda d: d | {"val": np.asarray([6])}, "a split has a paper beyond 6"),
    "a value": (lambda d: d | {"x_data": -d["x_data"]}, "negative or not finite"),
    "objects": (lambda d: d | {"y": np.asarray([{}] * 6, object)}, "no .npz file of plain arrays, or is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_says_how(file: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    np.savez(file, **change(citations()))
    with pytest.raises(DataError, match=message):
        Planetoid(path=str(file)).spec()


@pytest.mark.parametrize("content", [b"not a file of arrays", b"PK\x03\x04 cut off"])
def test_a_file_of_something_else(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"no \.npz file of plain arrays, or is damaged"):
        Planetoid(path=str(file)).spec()


def test_a_file_cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"small\.npz is no \.npz file of plain arrays, or is damaged"):
        Planetoid(path=str(file)).spec()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.planetoid\.path: cannot read .*none\.npz: No such file"):
        Planetoid(path=str(tmp_path / "none.npz")).spec()
    with pytest.raises(DataError, match=r"cannot read .*none\.csv"):
        Molecules(path=str(tmp_path / "none.csv")).spec()


def test_molecules_are_graphs_of_their_atoms(table: Path) -> None:
    data = molecules(table, validation_fraction=0.1, test_fraction=0.1)
    splits = [data.source(split).arrays for split in ("train", "validation", "test")]
    assert [len(arrays["target"]) for arrays in splits] == [8, 1, 1]
    arrays = {name: np.concatenate([part[name] for part in splits]) for name in splits[0]}
    arrays = {name: values[np.argsort(arrays["target"])] for name, values in arrays.items()}
    np.testing.assert_array_equal(arrays["target"], np.arange(10, dtype=np.float32) / 4)
    assert arrays["node_mask"].sum(axis=1).tolist() == [3, 1, 6, 4, 2, 2, 4, 3, 2, 2]
    assert (arrays["senders"] >= 0).sum(axis=1).tolist() == [4, 0, 12, 6, 2, 0, 8, 4, 2, 2]
    assert not np.any(arrays["features"][~arrays["node_mask"]])
    np.testing.assert_array_equal(arrays["senders"] < 0, arrays["receivers"] < 0)
    assert not np.any(arrays["edge_features"][arrays["senders"] < 0])
    ring = arrays["edge_features"][2][:12]  # benzene: aromatic, conjugated, in a ring
    np.testing.assert_array_equal(ring, np.tile([0, 0, 0, 1, 1, 1], (12, 1)))


def test_bonds_go_both_ways() -> None:
    graph = chemistry.graph_of("CC(=O)[O-]", "here")
    there = set(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))
    assert there == {(0, 1), (1, 0), (1, 2), (2, 1), (1, 3), (3, 1)}
    np.testing.assert_array_equal(graph.edge_features[:3], graph.edge_features[3:])


def test_atoms_have_their_features() -> None:
    oxygen = chemistry.graph_of("CC(=O)[O-]", "here").features[3]
    sizes = [len(chemistry.ELEMENTS), len(chemistry.DEGREES), len(chemistry.HYDROGENS), len(chemistry.CHARGES)]
    parts = np.split(oxygen, np.cumsum([*(n + 1 for n in sizes), len(chemistry.HYBRIDISATIONS) + 1]))
    assert [int(np.flatnonzero(part)[0]) for part in parts[:5]] == [
        chemistry.ELEMENTS.index("O"),
        1,
        0,
        0,
        chemistry.HYBRIDISATIONS.index("SP2"),
    ]
    assert parts[5].tolist() == [0, 0]
    sodium = chemistry.graph_of("[Na+]", "here").features[0]
    assert sodium[len(chemistry.ELEMENTS)] == 1  # an element without a place of its own


def test_every_molecule_is_in_one_split_and_the_seed_decides(table: Path) -> None:
    data = molecules(table, validation_fraction=0.3, test_fraction=0.2)
    targets = [data.source(split).arrays["target"] for split in ("train", "validation", "test")]
    assert [len(t) for t in targets] == [5, 3, 2]
    assert len(np.unique(np.concatenate(targets))) == 10
    other = dataclasses.replace(data, seed=1)
    assert not np.array_equal(targets[0], other.source("train").arrays["target"])
    assert len({d.fingerprint() for d in (data, other, molecules(table))}) == 3


def test_esol(data_dir: Path) -> None:
    data = Molecules(path=str(data_dir / "delaney-processed.csv"))
    sizes = [len(data.source(split)) for split in ("train", "validation", "test")]
    assert sizes == [902, 113, 113]
    targets = np.concatenate([data.source(split).arrays["target"] for split in ("train", "validation", "test")])
    assert np.mean(targets) == pytest.approx(-3.0501, abs=1e-4)  # of the published table


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("solubility", "other", "has no column 'solubility'; it has 'name', 'other', 'smiles'"),
        ("c1ccccc1", "c1ccccc", r"table\.csv:4: 'c1ccccc' is no molecule in SMILES"),
        ("0.5,", "high,", r"table\.csv:4: 'solubility' is 'high', no number"),
        ("0.5,", "nan,", r"table\.csv:4: 'solubility' is 'nan', no number"),
        ("0.5,c1ccccc1", "0.5", r"table\.csv:4: '' is no molecule in SMILES"),
    ],
)
def test_a_table_that_is_wrong_says_where(table: Path, old: str, new: str, message: str) -> None:
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        molecules(table).spec()


def test_tables_too_small(table: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:4]))
    with pytest.raises(DataError, match="has 3 molecules, too few to divide"):
        molecules(table).source("train")
    table.write_text(lines[0])
    with pytest.raises(DataError, match="has no rows"):
        molecules(table).spec()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 0.0}, r"validation_fraction = 0\.0: must be between 0 and 1"),
        ({"test_fraction": 1.0}, r"test_fraction = 1\.0: must be between 0 and 1"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "must be less than 1"),
    ],
)
def test_bad_fractions(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Molecules(path="x.csv", **settings)  # type: ignore[arg-type]


def test_the_karate_club() -> None:
    data = Karate()
    train, validation = (data.source(split)[0] for split in ("train", "validation"))
    assert len(train["senders"]) == 2 * 78
    degrees = np.bincount(train["receivers"])
    assert (len(degrees), degrees[0], degrees[33]) == (34, 16, 17)  # the two leaders have the most friends
    assert np.flatnonzero(train["label"] >= 0).tolist() == [0, 33]
    labels = np.where(train["label"] >= 0, train["label"], validation["label"])
    assert np.bincount(labels).tolist() == [17, 17]
    assert (train["label"] >= 0).sum() + (validation["label"] >= 0).sum() == 34


@pytest.mark.parametrize(("package", "name"), [("networkx", "karate"), ("rdkit", "molecules")])
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, table: Path, package: str, name: str) -> None:
    karate._club.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    data = Karate() if name == "karate" else molecules(table)
    with pytest.raises(PluginError, match=rf"dataset\.{name} needs {package}: pip install 'assay\[graphs\]'"):
        data.spec()


class Files(DatasetKit):
    """The kit with files of its own."""

    splits = ("train", "validation", "test")
    folder: Path

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path


class TestPlanetoid(Files):
    def plugin(self) -> Planetoid:
        return Planetoid(path=str(written(self.folder / "a.npz")))

    def changed(self) -> Planetoid:
        return Planetoid(path=str(written(self.folder / "b.npz", train=np.asarray([1]))))

    def damaged(self) -> Planetoid:
        return Planetoid(path=str(written(self.folder / "c.npz", train=np.asarray([9]))))


@pytest.mark.slow
class TestMolecules(Files):
    def plugin(self) -> Molecules:
        return molecules(tabled(self.folder / "a.csv"))

    def changed(self) -> Molecules:
        return molecules(tabled(self.folder / "b.csv", shift=1.0))

    def damaged(self) -> Molecules:
        path = tabled(self.folder / "c.csv")
        path.write_text(path.read_text().replace("CCO", "CC("))
        return molecules(path)


@pytest.mark.slow
class TestKarate(DatasetKit):
    def plugin(self) -> Karate:
        return Karate()
