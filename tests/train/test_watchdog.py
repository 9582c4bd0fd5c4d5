"""A session that hangs ends, with the stacks of its threads; one that does not is left alone."""

import subprocess
import sys
import time

from assay.errors import EXIT_HUNG
from assay.train.watchdog import Watchdog

HANGS = """
import sys, time
from pathlib import Path
from assay.train.watchdog import Watchdog

def stuck_in_a_collective():
    time.sleep(300)

dog = Watchdog(3.0, Path(sys.argv[1]), print, least=1.5)
for _ in range(6):
    with dog.armed():
        time.sleep(0.01)
    dog.beat(1)
with dog.armed():
    stuck_in_a_collective()
"""


def test_a_hang_ends_with_the_stacks(tmp_path):
    done = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == EXIT_HUNG, done.stderr
    assert "stuck_in_a_collective" in (tmp_path / "hang.txt").read_text()
    assert "stuck_in_a_collective" in done.stderr
    assert "hang.txt" in done.stdout


def test_without_a_measure_or_a_factor_nothing_is_watched(tmp_path):
    assert Watchdog(None, tmp_path, print).limit is None
    dog = Watchdog(2.0, tmp_path, print, least=0.0)
    assert dog.limit is None
    for _ in range(5):
        time.sleep(0.02)
        dog.beat(1)
    assert 0.03 < dog.limit < 1
    assert Watchdog(2.0, tmp_path, print)._least == 60.0
