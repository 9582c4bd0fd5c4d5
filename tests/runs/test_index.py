"""The list of runs."""

from pathlib import Path

from assay import runs
from assay.runs.directory import RunDirectory
from assay.runs.metrics import MetricsStore, row


def log(run: RunDirectory, *rows: tuple[int, str, dict[str, float]]) -> None:
    store = MetricsStore(run.metrics)
    store.append([row(step, context, 0.0, values) for step, context, values in rows])
    store.close()


def test_a_run_is_summed_up_from_its_record_and_the_end_of_its_metrics(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "lm", steps=100)
    with run.session() as session:
        log(run, (1, "validation", {"loss": 9.0}), (40, "train", {"loss": 2.0}), (40, "validation", {"loss": 3.0}))
        log(
            run,
            (60, "train", {"loss": 1.5}),
            (60, "throughput", {"tokens_per_second": 1.0}),
            (60, "validation", {"accuracy": 1.0}),
        )
        (running,) = runs.summaries(tmp_path)
        session.step = 61
    (done,) = runs.summaries(tmp_path)
    assert (running.status, running.step) == ("running", 60)
    assert (done.id, done.name, done.status, done.step, done.steps) == (run.id, "lm", "completed", 61, 100)
    assert (done.loss, done.validation_loss) == (1.5, 3.0)
    assert done.age is not None
    assert 0 <= done.age < 60


def test_a_run_without_metrics_and_one_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    runs.create(tmp_path, "a")
    old = runs.create(tmp_path, "b")
    old.update(format=99)
    (tmp_path / "not-a-run").mkdir()
    first, second = sorted(runs.summaries(tmp_path), key=lambda s: s.status)
    assert (first.status, first.step, first.loss) == ("new", None, None)
    assert second.status.startswith("unreadable: ")
    assert "format 99" in second.status


def test_no_directory_no_runs(tmp_path: Path) -> None:
    assert runs.summaries(tmp_path / "missing") == []
