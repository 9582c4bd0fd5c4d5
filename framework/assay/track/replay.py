"""What to do with a log that exists: send it into a tracker once more, or take back the steps that a resumed run repeats."""

from assay.errors import RunError
from assay.kinds import Tracker
from assay.runs.directory import RunDirectory
from assay.runs.metrics import RESERVED, read_metrics, truncate_after
from assay.track.entries import Scalars, hand_over
from assay.track.media import read_media, remove_media_after


def replay(run: RunDirectory, tracker: Tracker) -> int:
    """Hand over every entry of the run directory by time of logging, and return how many there were.

    The tracker goes on with the run that it knows, if any; one that keeps a single value for each step (Aim does) holds the
    same after two replays as after one. Raises RunError when a process trains in the run; what the tracker raises passes through.
    """
    if run.is_training():
        raise RunError(f"run {run.id} is training; send it to a tracker when it has ended")
    status = run.status().partition(":")[0]
    rows = read_metrics(run.metrics)
    scalars = [
        Scalars(r["step"], {k: v for k, v in r.items() if k not in RESERVED}, r["context"], r["time"]) for r in rows
    ]
    entries = [*scalars, *read_media(run.samples)]
    tracker.start(run.path, run.record(), resumed=True)
    for entry in entries:
        hand_over(entry, tracker)
    tracker.flush()
    tracker.finish(status if status in ("completed", "interrupted") else "failed")
    return len(entries)


def rewind(run: RunDirectory, step: int) -> int:
    """Drop everything logged for later steps than `step`, before a session goes on from there. Returns how many rows went.

    Trackers keep what they have; the steps come again. Raises RunError when the store is damaged.
    """
    remove_media_after(run.samples, step)
    return truncate_after(run.metrics, step)
