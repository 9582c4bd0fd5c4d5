"""The conformance kit of datasets: the shipped ones pass it, and each check catches the dataset that it is for."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import threading
import unittest
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assay.data import cache
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import DataError
from assay.testing.dataset import DatasetKit
from assay.testing.kit import run
from assay_plugins.datasets.arithmetic import Arithmetic
from assay_plugins.datasets.array_record import ArrayRecord, write_array_record
from assay_plugins.datasets.digits import Digits
from assay_plugins.datasets.eight_schools import EightSchools
from assay_plugins.datasets.hf_datasets import HFDatasets
from assay_plugins.datasets.image_folder import ImageFolder
from assay_plugins.datasets.iris_sepals import IrisSepals
from assay_plugins.datasets.karate import Karate
from assay_plugins.datasets.mixture import Mixture
from assay_plugins.datasets.molecules import Molecules
from assay_plugins.datasets.planetoid import Planetoid
from assay_plugins.datasets.python_stdlib import PythonStdlib
from assay_plugins.datasets.text_files import TextFiles
from assay_plugins.tokenizers.bpe import BPE
from assay_plugins.tokenizers.byte import Bytes

TEXT = "One plate of gold, and two of silver; assayed, weighed, and found wanting.\n" * 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ASSAY_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def kit_of(plugin, **hooks):
    methods = {name: value if name == "splits" else lambda self, value=value: value for name, value in hooks.items()}
    return type("Found", (DatasetKit,), {"plugin": lambda self: plugin, **methods})()


def texts(folder):
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_text(TEXT.upper())
    one = TextFiles(files=str(folder / "a.txt"), tokenizer=BPE(vocab_size=280), context=8)
    return {"plugin": one, "changed": dataclasses.replace(one, files=str(folder / "b.txt"))}


def packed(folder):
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": TEXT[i : 2 * i]}) for i in range(1, 60)))
    settings = {"tokenizer": Bytes(), "context": 16, "packing": "documents", "split_by": "document"}
    one = TextFiles(files=str(folder / "a.jsonl"), **settings)
    return {"plugin": one, "changed": dataclasses.replace(one, context=17)}


def standard_library(folder):
    one = PythonStdlib(tokenizer=Bytes(), context=32, max_bytes=150_000)
    return {"plugin": one, "changed": dataclasses.replace(one, max_bytes=100_000)}


def tables(folder):
    library = pytest.importorskip("datasets", reason="needs the extra assay[hf]")
    for name, text in (("one", TEXT), ("two", TEXT.upper())):
        table = library.Dataset.from_dict({"text": [text, text[:50]]})
        library.DatasetDict({"train": table, "validation": table}).save_to_disk(folder / name)
    one = HFDatasets(path=str(folder / "one"), tokenizer=Bytes(), context=8)
    return {"plugin": one, "changed": dataclasses.replace(one, path=str(folder / "two"))}


def images(folder):
    generator = np.random.default_rng(0)
    for root, name in itertools.product(("one", "two"), ("cat", "dog")):
        (folder / root / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (9, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / root / name / f"{i}.png")
    one = ImageFolder(directory=str(folder / "one"), image_size=6, validation_fraction=0.3)
    (folder / "three" / "cat").mkdir(parents=True)
    whole = (folder / "one" / "cat" / "1.png").read_bytes()
    (folder / "three" / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    other, broken = (dataclasses.replace(one, directory=str(folder / name)) for name in ("two", "three"))
    return {"plugin": one, "changed": other, "damaged": dataclasses.replace(broken, validation_fraction=1e-6)}


def records(folder):
    for name, start in (("a", 0), ("b", 5)):
        examples = ({"x": np.full(3, i, np.float32), "label": np.int32(i % 3)} for i in range(start, start + 9))
        write_array_record(folder / f"{name}.array_record", examples)
    one = ArrayRecord(files=f"{folder}/a.array_record", num_classes=3)
    other = ArrayRecord(files=f"{folder}/b.array_record", num_classes=3)
    (folder / "c.array_record").write_bytes((folder / "a.array_record").read_bytes()[:-100])
    broken = dataclasses.replace(one, files=f"{folder}/c.array_record")
    return {"plugin": one, "changed": other, "damaged": broken, "splits": ("train",)}


def mixed(folder):
    parts = [Digits(), Digits(seed=1)]
    return {"plugin": Mixture(datasets=parts, weights=[0.7, 0.3]), "changed": Mixture(datasets=parts, weights=[1, 1])}


def karate(folder):
    pytest.importorskip("networkx", reason="needs the extra assay[graphs]")
    return {"plugin": Karate()}


def molecules(folder):
    pytest.importorskip("rdkit", reason="needs the extra assay[graphs]")
    rows = [f"{'C' * n}{end},{n / 3}" for n in range(1, 9) for end in ("O", "N", "=O")]
    for name, chosen in (("one", rows), ("two", rows[1:]), ("three", [*rows, "not a molecule,1"])):
        (folder / f"{name}.csv").write_text("\n".join(["smiles,target", *chosen]))
    one = Molecules(path=str(folder / "one.csv"), target_column="target")
    other, broken = (dataclasses.replace(one, path=str(folder / f"{name}.csv")) for name in ("two", "three"))
    return {"plugin": one, "changed": other, "damaged": broken, "splits": ("train", "validation", "test")}


def citations(folder):
    data = os.environ.get("ASSAY_DATA_DIR") or pytest.skip(
        "needs real data: set ASSAY_DATA_DIR to a folder with cora.npz"
    )
    paths = [str(Path(data).resolve() / name) for name in ("cora.npz", "citeseer.npz")]
    (folder / "short.npz").write_bytes(Path(paths[0]).read_bytes()[:-5000])
    one, other, broken = (Planetoid(path=path) for path in (*paths, str(folder / "short.npz")))
    return {"plugin": one, "changed": other, "damaged": broken, "splits": ("train", "validation", "test")}


SHIPPED = {
    "text_files": texts,
    "text_files, packed": packed,
    "python_stdlib": standard_library,
    "hf_datasets": tables,
    "digits": lambda folder: {"plugin": Digits(), "changed": Digits(seed=1)},
    "image_folder": images,
    "array_record": records,
    "mixture": mixed,
    "arithmetic": lambda folder: {"plugin": Arithmetic(held_out=0.2), "changed": Arithmetic(top=8)},
    "karate": karate,
    "molecules": molecules,
    "planetoid": citations,
    "iris_sepals": lambda folder: {
        "plugin": IrisSepals(validation_fraction=0.2),
        "changed": IrisSepals(validation_fraction=0.2, seed=1),
    },
    "eight_schools": lambda folder: {"plugin": EightSchools(), "splits": ("train",)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_datasets_pass(name, tmp_path):
    results = list(run(kit_of(**SHIPPED[name](tmp_path))))
    assert [f"{r.name}: {r.detail}" for r in results if r.status == "failed"] == []
    assert {r.name for r in results if r.status == "skipped"} <= {
        "test_damaged_data_are_an_error",
        "test_integers_are_in_range",
        "test_gather_equals_single_reads",
        "test_the_fingerprint_follows_the_data" if name in ("eight_schools", "karate") else "",
        "test_processes_read_parts_of_one_order" if name in ("planetoid", "karate") else "",
    }


CALLS = itertools.count()


@dataclasses.dataclass
class Rows:
    """Rows that tell their place, and a place for one mistake. It counts its reads."""

    split: str
    count: int
    flaw: str
    first: int = 0
    reads: int = 0

    def __post_init__(self):
        self.kept = []
        self.noise = float(uuid.uuid4().int % 9973) if self.flaw == "drawn" else 0.0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        flaw = self.flaw
        if flaw == "key error" and index >= self.count:
            raise KeyError(index)
        if flaw == "endless":
            index = index % self.count
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.read(index)

    def read(self, index):
        flaw, self.reads = self.flaw, self.reads + 1
        if flaw == "lock":
            self.kept.append(threading.Lock())
        if flaw == "damaged" and index == 3:
            raise DataError("row 3 is damaged")
        if flaw == "damaged, silent" and index == 3:
            index = 0
        if flaw == "set":
            index = list({f"row {i}" for i in range(self.count)}).index(f"row {index}")
        if flaw == "worker" and multiprocessing.parent_process() is not None:
            index = 0
        if flaw == "worker crash" and multiprocessing.parent_process() is not None:
            raise OSError("no such device")
        late = flaw == "history" and self.reads > 130
        value = np.full(3, self.first + index + self.noise + late, np.float32)
        label = np.asarray(4 if flaw == "label" and index == self.count - 1 else index % 4, np.int32)
        if flaw == "dtype" and self.split == "validation":
            value = value.astype(np.float64)
        return {"image": value[:2] if flaw == "shape" and index == 2 else value, "label": label}


class Gathered(Rows):
    def gather(self, indices):
        if self.flaw == "sorted":
            indices = np.sort(indices)
        if self.flaw == "short" and 16 < len(indices) < 200:  # as the blocks of 2 and 4 processes are
            indices = indices[::-1]
        examples = [self.read(int(i)) for i in indices]
        found = {name: np.stack([x[name] for x in examples]) for name in examples[0]}
        if self.flaw == "normalised":
            found["image"] = found["image"] - found["image"].mean()
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flawed:
    flaw: str = ""
    first: int = 0

    def spec(self):
        classes = 4 + (next(CALLS) if self.flaw == "spec" else 0)
        name = "mask" if self.flaw == "mask" else "label"
        return DataSpec(
            {"image": ArraySpec((3,), "float32"), name: ArraySpec((), "int32")},
            num_classes=classes,
        )

    def source(self, split):
        if split not in ("train", "validation"):
            if self.flaw == "split, bare":
                raise KeyError(split)
            raise DataError(f"no split {split}" if self.flaw == "split" else "there are train and validation")
        kind = Gathered if self.flaw in ("sorted", "normalised", "short") else Rows
        return kind(split, 23 if split == "train" else 9, self.flaw, self.first)

    def fingerprint(self):
        if self.flaw == "fingerprint, random":
            return uuid.uuid4().hex
        if self.flaw == "fingerprint, hash":
            return str(hash("rows"))
        if self.flaw == "fingerprint, constant":
            return "rows"
        return cache.digest("rows", self.first)


class OnRows(DatasetKit):
    flaw = ""

    def plugin(self):
        return Flawed(flaw=self.flaw)

    def changed(self):
        return Flawed(flaw=self.flaw, first=100)

    def damaged(self):
        return Flawed(flaw="damaged, silent" if self.flaw == "silent" else "damaged")


PROCESSES = {"test_another_process_finds_the_same", "test_a_worker_reads_the_same_and_fails_aloud"}
HERE = [name for name in OnRows.checks() if name not in PROCESSES]
SPEC, EXAMPLES = "test_the_specification_is_stable", "test_examples_are_as_specified"
ORDER, RESTORE = "test_the_order_depends_on_seed_and_epoch_alone", "test_every_position_restores"
PARTS, GATHER = "test_processes_read_parts_of_one_order", "test_gather_equals_single_reads"
MUTATIONS = {  # the check that a flaw is for, then those that fail as well
    "spec": [SPEC],
    "mask": [SPEC, EXAMPLES],
    "dtype": [EXAMPLES],
    "shape": [EXAMPLES, ORDER, RESTORE, PARTS],
    "label": ["test_integers_are_in_range"],
    "endless": ["test_the_length_is_the_number_of_examples"],
    "key error": ["test_the_length_is_the_number_of_examples"],
    "sorted": [GATHER, ORDER, RESTORE, PARTS],
    "normalised": [GATHER, ORDER, RESTORE, PARTS],
    "short": [PARTS],
    "drawn": [ORDER, RESTORE, PARTS],
    "history": [RESTORE],
    "fingerprint, random": ["test_the_fingerprint_is_stable"],
    "fingerprint, constant": ["test_the_fingerprint_follows_the_data"],
    "lock": ["test_a_source_can_be_sent"],
    "silent": ["test_damaged_data_are_an_error"],
    "split": ["test_an_unknown_split_is_named"],
    "split, bare": ["test_an_unknown_split_is_named"],
}


def failures(flaw, names):
    kit = type("Broken", (OnRows,), {"flaw": flaw})()
    found = {}
    for name in names:
        try:
            getattr(kit, name)()
        except unittest.SkipTest:
            continue
        except (AssertionError, DataError) as error:
            found[name] = str(error)
    return found


def test_the_right_dataset_passes():
    assert failures("", HERE) == {}


@pytest.mark.parametrize("flaw", MUTATIONS)
def test_a_flaw_is_caught_by_its_check(flaw):
    assert failures(flaw, HERE).keys() == set(MUTATIONS[flaw])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flaw", "name", "message"),
    [
        ("set", "test_another_process_finds_the_same", "examples of 'train'"),
        ("fingerprint, hash", "test_another_process_finds_the_same", "fingerprint"),
        ("worker", "test_a_worker_reads_the_same_and_fails_aloud", "of a worker process differs"),
        ("worker crash", "test_a_worker_reads_the_same_and_fails_aloud", "no such device"),
    ],
)
def test_a_flaw_that_shows_in_another_process_is_caught(flaw, name, message):
    kit = type("Broken", (OnRows,), {"flaw": flaw})()
    with pytest.raises(AssertionError, match=message):
        getattr(kit, name)()


@pytest.mark.slow
class TestThroughPytest(OnRows):
    """The door that authors use."""
