"""Image folders: classes by folder, images as they are, mistakes by file name."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assay.errors import DataError
from assay.kinds import Dataset
from assay_plugins.datasets.image_folder import ImageFolder


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Constant 6 x 4 images whose value tells the class and the number."""
    for c, name in enumerate(["cat", "dog"]):
        for i in range(30):
            save(tmp_path / name / f"{i}.png", np.full((4, 6, 3), 100 * c + i, np.uint8))
    return tmp_path


def test_contract(folder: Path) -> None:
    data = ImageFolder(directory=str(folder), image_size=4)
    assert isinstance(data, Dataset)
    assert data.spec().num_classes == 2
    source = data.source("train")
    example = pickle.loads(pickle.dumps(source))[0]
    assert {n: (v.shape, v.dtype.name) for n, v in example.items()} == {
        n: (a.shape, a.dtype) for n, a in data.spec().elements.items()
    }
    with pytest.raises(DataError, match="no split 'test'"):
        data.source("test")


def test_every_image_is_in_one_split_with_its_label(folder: Path) -> None:
    data = ImageFolder(directory=str(folder), image_size=4, validation_fraction=0.3)
    examples = [source[i] for source in map(data.source, ("train", "validation")) for i in range(len(source))]
    values = [round(float(e["image"][0, 0, 0]) * 255) for e in examples]
    assert sorted(values) == [*range(30), *range(100, 130)]
    assert [int(e["label"]) for e in examples] == [int(v >= 100) for v in values]


def test_splits_by_folder(tmp_path: Path) -> None:
    for split, classes in (("train", "ab"), ("validation", "b"), ("test", "a")):
        for name in classes:
            save(tmp_path / split / name / "1.png", np.zeros((4, 4), np.uint8))
    data = ImageFolder(directory=str(tmp_path), image_size=2, channels=1)
    assert [int(data.source("validation")[0]["label"]), int(data.source("test")[0]["label"])] == [1, 0]
    save(tmp_path / "test" / "c" / "1.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"split 'test' has a class that 'train' lacks; there are a, b"):
        dataclasses.replace(data, channels=3).source("train")


def test_the_middle_is_kept_and_the_shorter_side_resized(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40), np.uint8)
    pixels[:, 10:30] = 255
    save(tmp_path / "a" / "1.png", pixels)
    data = ImageFolder(directory=str(tmp_path), image_size=10, channels=1, validation_fraction=0.001)
    image = data.source("train")[0]["image"]
    assert image.shape == (10, 10, 1)
    assert image[:, 1:-1].min() == 1


def test_normalisation(folder: Path) -> None:
    plain = ImageFolder(directory=str(folder), image_size=4)
    scaled = dataclasses.replace(plain, mean=(0.5, 0.25, 0.0), std=(2.0,))
    image, found = (data.source("train")[3]["image"] for data in (plain, scaled))
    np.testing.assert_allclose(found, (image - np.asarray([[[0.5, 0.25, 0.0]]])) / 2, rtol=1e-6)
    assert found.dtype == np.float32


def test_the_fingerprint_changes_with_content_and_options(folder: Path) -> None:
    data = ImageFolder(directory=str(folder), image_size=4)
    changes = [{}, {"image_size": 5}, {"channels": 1}, {"validation_fraction": 0.2}, {"mean": (0.1,)}, {"std": (0.1,)}]
    found = {dataclasses.replace(data, **change).fingerprint() for change in changes}  # type: ignore[arg-type]
    assert len(found) == len(changes)
    save(folder / "cat" / "3.png", np.full((4, 6, 3), 77, np.uint8))
    assert dataclasses.replace(data).fingerprint() not in found


@pytest.mark.parametrize("content", [b"not an image", b""])
def test_a_corrupted_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(content)
    data = ImageFolder(directory=str(tmp_path), image_size=4, validation_fraction=0.001)
    with pytest.raises(DataError, match=r"a/1\.png is not an image"):
        data.source("train")[0]


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    file = tmp_path / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"a/1\.png is not an image"):
        ImageFolder(directory=str(tmp_path), image_size=4, validation_fraction=0.001).source("train")[0]


def test_missing_folders_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*Did you mean"):
        ImageFolder(directory=str(folder) + "x", image_size=4).source("train")
    with pytest.raises(DataError, match="no images in CLASS/"):
        ImageFolder(directory=str(folder / "cat"), image_size=4).source("train")


@pytest.mark.parametrize(
    "options", [{"image_size": 0}, {"mean": (1.0, 2.0)}, {"std": (0.0,)}, {"validation_fraction": 1.0}]
)
def test_impossible_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ImageFolder(**{"directory": ".", "image_size": 4, **options})  # type: ignore[arg-type]
