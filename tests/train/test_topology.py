"""Where a run runs does not matter: a part of benchmarks/topology_matrix.py, in real processes."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROUNDING = 4e-6  # over 100 steps; depends on the processor: 2.7e-7 on one, 1.02e-6 on another. A mistake shows as 1e-4 and more.
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "topology_matrix.py"


@pytest.mark.slow
def test_a_part_of_the_topology_matrix(tmp_path):
    spec = importlib.util.spec_from_file_location("topology_matrix", BENCHMARK)
    matrix = importlib.util.module_from_spec(spec)
    sys.modules["topology_matrix"] = matrix
    spec.loader.exec_module(matrix)
    divided = matrix.Cell(2, 2, "fsdp")
    jobs = [(matrix.ALONE, None), (divided, None), (divided, matrix.ALONE), (matrix.ALONE, divided)]
    matrix.measure(tmp_path, jobs[:-1])  # first those of one process; in each session the jobs come in this order
    matrix.measure(tmp_path, jobs[-1:])
    for job in jobs:
        found = matrix.differences(tmp_path, job)
        assert (found["start"], found["stream"]) == (0, 0), job
        assert max(found["losses"], found["evaluation"]) <= ROUNDING, job
