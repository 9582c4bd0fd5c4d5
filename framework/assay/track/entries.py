"""What is logged, as plain host data, between the training loop's thread, the local store and the trackers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from assay.kinds import Tracker


@dataclasses.dataclass(frozen=True)
class Scalars:
    """Numbers of one step in one context, logged at `time` (Unix seconds)."""

    step: int
    values: Mapping[str, float]
    context: str
    time: float


@dataclasses.dataclass(frozen=True)
class Text:
    """A text sample."""

    step: int
    name: str
    value: str


@dataclasses.dataclass(frozen=True)
class Image:
    """An image, uint8 (height, width, 1 or 3)."""

    step: int
    name: str
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plotly figure."""

    step: int
    name: str
    value: Any


Entry = Scalars | Text | Image | Figure


def hand_over(entry: Entry, tracker: Tracker) -> None:
    """Call the tracker's method for the entry."""
    match entry:
        case Scalars():
            tracker.scalars(entry.step, entry.values, entry.context)
        case Text():
            tracker.text(entry.step, entry.name, entry.value)
        case Image():
            tracker.image(entry.step, entry.name, entry.value)
        case Figure():
            tracker.figure(entry.step, entry.name, entry.value)
