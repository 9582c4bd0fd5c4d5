"""The conformance kit of transforms: Assay's pass, and each check catches the transform that it is for."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from assay.errors import ExportError
from assay.exported import Exported
from assay.testing import TransformKit, run
from assay_export.transforms.cast import Cast
from assay_export.transforms.int4 import Int4
from assay_export.transforms.int8 import Int8
from assay_export.transforms.lora_merge import LoRAMerge
from assay_export.transforms.prune import Prune


@pytest.mark.parametrize("plugin", [Cast(), Int8(), Int4(), Prune(), Prune(pattern="2:4")], ids=str)
def test_assay_s_own_pass(plugin, kit_around, failures) -> None:
    assert failures(kit_around(TransformKit, plugin)) == {}


def test_a_transform_that_is_for_something_else_is_skipped(kit_around) -> None:
    statuses = {result.status for result in run(kit_around(TransformKit, LoRAMerge()))}
    assert statuses == {"skipped"}


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Doubles the weights, and has a place for one mistake."""

    flaw: str = ""

    def apply(self, source: Exported) -> Exported:
        weights = {path: 2 * w for path, w in source.weights.items()}
        (program,) = source.programs
        function, fixed = program.function, dict(weights)
        if self.flaw == "renamed":
            program = dataclasses.replace(program, name="other")
        if self.flaw == "narrower":
            narrow = lambda w, x: {k: v.astype(jnp.bfloat16) for k, v in function(w, x).items()}
            program = dataclasses.replace(program, function=narrow)
        if self.flaw == "infinite":
            weights["head/kernel"] = np.full_like(weights["head/kernel"], np.inf)
        if self.flaw == "in place":
            for w in source.weights.values():
                w += 1
        if self.flaw == "jax":
            weights["up/bias"] = jnp.asarray(weights["up/bias"])
        if self.flaw == "complex":
            program = dataclasses.replace(program, function=lambda w, x: function(fixed, x))
            weights = {path: w.astype(np.complex64) for path, w in weights.items()}
        if self.flaw == "baked in":
            program = dataclasses.replace(program, function=lambda w, x: function(fixed, x))
        if self.flaw == "looks at values":
            look = lambda w, x: function(w, {"x": x["x"] * float(w["up/bias"].sum())})
            program = dataclasses.replace(program, function=look)
        if self.flaw == "random":
            weights["up/bias"] = weights["up/bias"] + np.float32(np.random.default_rng().normal())
        if self.flaw == "further":
            weights["up/kernel"] = 1.01 * weights["up/kernel"]
        if self.flaw == "others":
            weights["up/bias"] = weights["up/bias"] / 4
            more = lambda w, x: function({**w, "up/bias": 4 * w["up/bias"]}, x)
            program = dataclasses.replace(program, function=more)
        return dataclasses.replace(source, weights=weights, programs=[program])

    def bounds(self, source: Exported) -> list[tuple[str, np.ndarray]] | None:
        """Each weight is off by itself."""
        if self.flaw == "says nothing":
            return None
        paths = [path for path in source.weights if self.flaw != "leaves one out" or path != "head/kernel"]
        return [(path, np.abs(source.weights[path])) for path in paths]


def test_one_without_a_mistake_passes(kit_around, failures) -> None:
    assert failures(kit_around(TransformKit, Scaled())) == {}


@pytest.mark.parametrize(
    ("flaw", "check", "message"),
    [
        ("renamed", "test_programs_keep_their_names_and_signatures", "the programs were"),
        ("narrower", "test_programs_keep_their_names_and_signatures", "output was float32, and is bfloat16"),
        ("infinite", "test_programs_keep_their_names_and_signatures", "output is not finite"),
        ("jax", "test_weights_can_be_stored", "up/bias is ArrayImpl, no numpy array"),
        ("complex", "test_weights_can_be_stored", "is complex64; what can be stored"),
        ("baked in", "test_programs_compute_with_the_weights_that_they_are_given", "the same whatever its weights"),
        ("looks at values", "test_programs_can_be_traced_without_values_for_any_batch", "ConcretizationTypeError"),
        ("random", "test_it_is_repeatable", "two applications differ in up/bias"),
        ("further", "test_it_changes_no_more_than_it_says", "up/kernel is off by"),
        ("leaves one out", "test_it_changes_no_more_than_it_says", "head/kernel is off by"),
        ("says nothing", "test_it_changes_no_more_than_it_says", "and so computes the same, but output is off by"),
        ("others", "test_it_changes_no_more_than_it_says", "programs compute with what restore gives, but output"),
        ("in place", "test_the_source_stays_as_it_was", "the source's own up/kernel, up/bias, head/kernel changed"),
    ],
)
def test_each_mistake_is_found(flaw: str, check: str, message: str, kit_around, failures) -> None:
    found = failures(kit_around(TransformKit, Scaled(flaw)))
    assert check in found
    assert message in found[check]


def test_a_refusal_is_no_failure(kit_around, failures) -> None:
    class Refuses:
        def apply(self, source: Exported) -> Exported:
            raise ExportError("not for this")

        def bounds(self, source: Exported) -> None:
            """It is for nothing."""

    assert failures(kit_around(TransformKit, Refuses())) == {}
