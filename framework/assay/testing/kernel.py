"""The conformance kit of kernels."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from assay.kinds import Kernel
from assay.testing.kit import Kit, check, skip
from assay_kernels import (
    H100,
    H200,
    Op,
    Target,
    audit,
    current_target,
    disagreements,
    op_of,
    problem_of,
    recording,
    using,
)
from assay_kernels.aot import lower_for_cuda
from assay_kernels.testing import Case, computation, device, outputs
from assay_kernels.testing import check as check_exactness

TARGETS = (Target("cpu", "cpu"), H100, H200, Target("cuda", "NVIDIA A100", (8, 0)), Target("tpu", "TPU v5e"))


class KernelKit(Kit):
    """Checks of a kernel plugin on the cases of its op (`assay_kernels.<op>.cases`), those of them that it supports.

    interpret: check it as on an H200, with Mosaic kernels (assay_kernels.mosaic) run in Pallas' interpreter on the CPU. Without it the
    checks that compute are of the device that there is, and are left out where the plugin supports none of the cases on it.
    """

    kind = "kernel"
    interpret: bool = False

    def plugin(self) -> Kernel:
        """The kernel to check."""
        return super().plugin()

    def cases(self) -> Mapping[str, Case]:
        """The op's cases, by name; a subclass may add its own."""
        found: Mapping[str, Case] = importlib.import_module(f"assay_kernels.{self.plugin().op}.cases").CASES
        return found

    @check
    def test_it_implements_an_op(self) -> None:
        """Its op is one of Assay's, its name is free, and its priority is an integer."""
        plugin = self.plugin()
        problem = problem_of(plugin)
        assert not problem, problem
        assert type(plugin.priority) is int, f"priority is {plugin.priority!r}, and must be an integer"

    @check
    def test_equal_plugins_are_one_key(self) -> None:
        """Two of the same settings are equal and have one hash, so that jit's cache knows them again."""
        one, other = self.plugin(), self.plugin()
        assert one == other, "two of the same settings are not equal; a frozen dataclass is"
        assert hash(one) == hash(other), "two of the same settings have different hashes"

    @check
    def test_a_refusal_says_why(self) -> None:
        """For every case and kind of device `supports` gives None or a reason in words."""
        for target in TARGETS:
            for name, case in self.cases().items():
                reason = self.plugin().supports(target, *case.draw(0))
                assert reason is None or (isinstance(reason, str) and reason), (
                    f"for the case '{name}' on {target} supports gives {reason!r}, which is neither None nor a reason"
                )

    @check
    def test_it_supports_something(self) -> None:
        """On some device it supports at least one case."""
        found = [t for t in (*TARGETS, self._target) if any(True for _ in self._supported(t))]
        assert found, f"it supports none of the cases {', '.join(self.cases())} on any kind of device"

    @check
    def test_values_and_gradients_are_exact(self) -> None:
        """Against the specification in float64: off by at most twice the specification's own error, three times for gradients."""
        problems = []
        for name, case in self._here():
            try:
                with using(self.plugin()):
                    check_exactness(self._op, self.plugin().name, case, interpret=self.interpret)
            except AssertionError as error:
                problems.append(f"{name}: {error}")
        assert not problems, "; ".join(problems)

    @check
    def test_it_is_deterministic(self) -> None:
        """The same call again gives the same bits, value and gradient."""
        for name, case in self._here():
            first, again = self._outputs(case), self._outputs(case)
            same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again, strict=True))
            assert same, f"{name}: two calls with the same arguments differ"

    @check
    def test_the_program_holds_it(self) -> None:
        """Compiled, it is found in the program as what was chosen: it computes its results inside its own call."""
        name, case = next(self._here())
        function, arrays = computation(self._op, self.plugin().name, case, case.draw(0))
        with device(self.interpret), using(self.plugin()), recording() as choices:
            wrong = disagreements(choices, audit(jax.jit(function).lower(*arrays).compile()))
        assert not wrong, f"{name}: {'; '.join(wrong)}"

    @check
    def test_it_lowers_for_cuda(self) -> None:
        """Value and gradient of every case that it supports on an H200 lower for one, on any machine."""
        supported = list(self._supported(H200))
        if not supported:
            skip("it supports none of the cases on an H200")
        for _, case in supported:
            with using(self.plugin()):
                function, arrays = computation(self._op, self.plugin().name, case, case.draw(0))
                lower_for_cuda(function, *arrays)

    @property
    def _op(self) -> Op:
        return op_of(self.plugin().op)

    @property
    def _target(self) -> Target:
        return H200 if self.interpret else current_target()

    def _supported(self, target: Target) -> Iterator[tuple[str, Case]]:
        return ((n, c) for n, c in self.cases().items() if self.plugin().supports(target, *c.draw(0)) is None)

    def _here(self) -> Iterator[tuple[str, Case]]:
        """The cases that it supports on the device of the checks; skips where there is none."""
        found = list(self._supported(self._target))
        if not found:
            refusals = {self.plugin().supports(self._target, *case.draw(0)) for case in self.cases().values()}
            skip(f"on {self._target} it supports none of the cases: {'; '.join(sorted(map(str, refusals)))}")
        return iter(found)

    def _outputs(self, case: Case) -> list[Any]:
        with device(self.interpret), using(self.plugin()):
            values, gradients = outputs(self._op, self.plugin().name, case, case.draw(0))
        return [*values, *gradients]
