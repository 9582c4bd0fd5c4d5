"""What models need of a dataset's description, or a ConfigError that says which dataset would do."""

from assay.data.spec import DataSpec
from assay.errors import ConfigError


def tokens_of(spec: DataSpec, model: str) -> tuple[int, int]:
    """(vocabulary size, tokens in a row) of token data."""
    if spec.vocab_size is None or "inputs" not in spec.elements:
        raise ConfigError(
            f"model.{model} needs a dataset of tokens; this one has {_said(spec)}. "
            "Choose a text dataset, such as @dataset.python_stdlib()"
        )
    return spec.vocab_size, spec.elements["inputs"].shape[0]


def images_of(spec: DataSpec, model: str) -> tuple[tuple[int, int, int], int]:
    """((height, width, channels), number of labels) of labelled images."""
    shape = spec.elements["image"].shape if "image" in spec.elements else ()
    if spec.num_classes is None or len(shape) != 3:
        raise ConfigError(
            f"model.{model} needs a dataset with images (height, width, channels) and labels; this one has {_said(spec)}. "
            "Choose an image dataset, such as @dataset.digits()"
        )
    return (shape[0], shape[1], shape[2]), spec.num_classes


def vectors_of(spec: DataSpec, model: str) -> tuple[str, tuple[int, ...], int]:
    """(the element's name, its shape, number of labels) of labelled feature vectors or images."""
    ranks = {"features": 1, "image": 3}
    name = next((n for n, rank in ranks.items() if n in spec.elements and len(spec.elements[n].shape) == rank), None)
    if spec.num_classes is None or name is None:
        raise ConfigError(
            f"model.{model} needs a dataset with features or images, and labels; this one has {_said(spec)}. "
            "Choose a dataset such as @dataset.digits()"
        )
    return name, spec.elements[name].shape, spec.num_classes


def _said(spec: DataSpec) -> str:
    """The arrays of an example with their shapes, and the sizes."""
    arrays = ", ".join(f"{name} {element.shape}" for name, element in spec.elements.items())
    return f"{arrays or 'no arrays'}, vocab_size {spec.vocab_size}, num_classes {spec.num_classes}"
