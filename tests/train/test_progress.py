"""The line that says where something is: in place on a terminal, now and then elsewhere."""

import io

import pytest

from assay.train import progress
from assay.train.progress import Progress, Status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_has_one_line_that_other_output_takes_away(clock) -> None:
    stream = Terminal()
    with Status(stream) as status:
        status.show("first")
        status.show("too soon")
        status.show("second", force=True)
        status.line("above")
        clock[0] += 1
        status.show("third")
    assert stream.getvalue() == "\rfirst\x1b[K\rsecond\x1b[K\r\x1b[Kabove\n\rthird\x1b[K\r\x1b[K"


def test_a_file_has_few_lines(clock) -> None:
    stream = io.StringIO()
    with Status(stream) as status:
        for number in range(25):
            status.show(f"case {number}")
            clock[0] += 1
        status.line("above")
    assert stream.getvalue() == "case 0\ncase 10\ncase 20\nabove\n"


def test_a_run_shows_its_step_and_what_is_left(clock) -> None:
    stream = io.StringIO()
    shown = Progress(10, "tokens", stream)
    shown.update(4, 0.5, 1200.0, 2.0)
    shown.update(5, 0.5, 1200.0, 2.0)
    shown.update(10, 0.25, None, None, force=True)
    assert stream.getvalue() == "step 4/10  loss 0.5000  1.2k tokens/s  ETA 0:12\nstep 10/10  loss 0.2500\n"


def test_quiet_is_quiet() -> None:
    stream = io.StringIO()
    with Status(stream, quiet=True) as status:
        status.show("what", force=True)
        status.line("what")
    assert stream.getvalue() == ""
