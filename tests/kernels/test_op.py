"""The choice among an op's implementations, what is recorded of it, and that jit never reuses a trace made for another target."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from assay_kernels import (
    H100,
    H200,
    ImplementationError,
    Op,
    Target,
    audit,
    current_target,
    disagreements,
    for_target,
    force,
    recording,
    target,
)


def needs_hopper(target: Target, x: jax.Array) -> str | None:
    if not target.is_hopper:
        return f"needs a Hopper GPU, this is {target}"
    return None if x.shape[-1] % 8 == 0 else f"the last dimension, {x.shape[-1]}, is no multiple of 8"


@pytest.fixture
def doubled() -> Op:
    """An op with three implementations, which can be told apart by what they give."""
    op = Op("doubled", lambda x: x + x)
    op.register("hopper", supports=needs_hopper, priority=20)(lambda x: 200.0 * x)
    op.register("anywhere", supports=lambda target, x: None, priority=10)(lambda x: 2.0 * x)
    return op


def test_auto_takes_the_best_that_can_and_says_why_not_the_better_ones(doubled, caplog) -> None:
    caplog.set_level("INFO", "assay_kernels")
    with recording() as choices:
        assert doubled(jnp.ones(8))[0] == 2.0
    (choice,) = choices
    assert (choice.implementation, choice.how, choice.arrays) == ("anywhere", "auto", ("float32[8]",))
    assert dict(choice.refused) == {"hopper": "needs a Hopper GPU, this is cpu"}
    assert "not hopper: needs a Hopper GPU, this is cpu" in caplog.text
    assert doubled.names == ["hopper", "anywhere", "reference"]


def test_the_target_decides_and_the_arguments_do(doubled) -> None:
    with for_target(H200), recording() as choices:
        assert doubled(jnp.ones(8))[0] == 200.0
        assert doubled(jnp.ones(9))[0] == 2.0
    assert [c.implementation for c in choices] == ["hopper", "anywhere"]
    assert choices[0].refused == ()
    assert dict(choices[1].refused) == {"hopper": "the last dimension, 9, is no multiple of 8"}
    assert choices[1].target == H200
    assert current_target().platform == "cpu"


def test_an_implementation_that_is_asked_for_never_falls_back(doubled) -> None:
    with pytest.raises(ImplementationError, match="hopper cannot do this call: needs a Hopper GPU, this is cpu"):
        doubled(jnp.ones(8), impl="hopper")
    with pytest.raises(
        ImplementationError, match="no implementation 'fast'; there are auto, hopper, anywhere, reference"
    ):
        doubled(jnp.ones(8), impl="fast")
    assert doubled(jnp.ones(8), impl="reference")[0] == 2.0


def test_force_stands_in_for_auto_only(doubled) -> None:
    with force(doubled="reference"), recording() as choices:
        doubled(jnp.ones(8))
        doubled(jnp.ones(8), impl="anywhere")
        with force(other="x"):
            doubled(jnp.ones(8))
    assert [(c.implementation, c.how) for c in choices] == [("reference", "forced"), ("anywhere", "asked for")]
    with force(doubled="hopper"), pytest.raises(ImplementationError, match="needs a Hopper GPU"):
        doubled(jnp.ones(8))


def test_a_name_is_registered_once(doubled) -> None:
    for name in ("hopper", "auto", "reference"):
        with pytest.raises(ValueError, match="is taken"):
            doubled.register(name, supports=needs_hopper)


def test_a_registration_from_elsewhere_is_one_like_ours(doubled) -> None:
    doubled.register("mine", supports=lambda target, x: None, priority=99)(lambda x: -x)
    assert doubled(jnp.ones(8))[0] == -1.0


def test_target_and_force_are_part_of_jits_cache_key(doubled) -> None:
    traces = []

    @jax.jit
    def f(x: jax.Array) -> jax.Array:
        traces.append(current_target())
        return doubled(x)

    x = jnp.ones(8)
    assert f(x)[0] == 2.0
    for named in (H200, H100):
        with for_target(named):
            assert f(x)[0] == 200.0
    with for_target(H200), force(doubled="reference"):
        assert f(x)[0] == 2.0
    assert [t.platform for t in traces] == ["cpu", "cuda", "cuda", "cuda"]
    assert f(x)[0] == 2.0
    with for_target(H200):
        assert f(x)[0] == 200.0
    assert len(traces) == 4


def test_a_plain_context_variable_would_give_stale_traces(doubled, monkeypatch) -> None:
    """The test above would notice: with a value that jit does not know, the first trace is used for every target."""

    class Plain:
        value = None

        @contextlib.contextmanager
        def __call__(self, value):
            before, self.value = self.value, value
            yield
            self.value = before

    monkeypatch.setattr(target, "_explicit", Plain())
    f = jax.jit(lambda x: doubled(x))
    assert f(jnp.ones(8))[0] == 2.0
    with for_target(H200):
        assert doubled(jnp.ones(8))[0] == 200.0
        assert f(jnp.ones(8))[0] == 2.0


def test_the_record_and_the_compiled_program_agree(doubled) -> None:
    def loss(x: jax.Array) -> jax.Array:
        def body(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.sin(jax.checkpoint(doubled)(x)), None

        return jnp.sum(jax.lax.scan(body, x, None, length=3)[0])

    with recording() as choices:
        compiled = jax.jit(jax.grad(loss)).lower(jnp.ones(8)).compile()
    found = audit(compiled)
    assert found.implementations == {("doubled", "anywhere")}
    assert disagreements(choices, found) == []


def test_a_disagreement_is_named_either_way(doubled) -> None:
    with recording() as choices:
        compiled = jax.jit(doubled).lower(jnp.ones(8)).compile()
        doubled(jnp.ones(8), impl="reference")
    assert disagreements(choices, audit(compiled)) == ["doubled: reference was chosen, but is not in the program"]
    assert disagreements([], audit(compiled)) == ["doubled: anywhere is in the program, but was not chosen"]


def test_the_audit_names_custom_calls() -> None:
    text = 'custom-call(%a), custom_call_target="mosaic_gpu_v2", frontend_attributes={assay_kernel="attention.mosaic_sm90"}'
    assert audit(text).custom_calls == {"mosaic_gpu_v2"}
    assert audit(text).implementations == {("attention", "mosaic_sm90")}


def test_a_choice_is_plain_values_for_a_record(doubled) -> None:
    with recording() as choices, recording() as inner:
        doubled(jnp.ones(8))
    assert inner == choices
    assert choices[0].as_json() == {
        "op": "doubled",
        "implementation": "anywhere",
        "how": "auto",
        "refused": {"hopper": "needs a Hopper GPU, this is cpu"},
        "arrays": ("float32[8]",),
        "target": "cpu",
        "configs": (),
        "derivative": "",
    }
