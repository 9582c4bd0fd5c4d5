"""A program's density at a point: where its latent sites are, each as an unconstrained array, and what it then says of each row."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from assay.errors import PluginError
from assay.outcome import Batch
from assay_plugins.bayes.optional import load_numpyro
from assay_plugins.bayes.program import Problem

Position = Mapping[str, Array]
"""Latent site -> unconstrained value: the site's own value is a bijection of it onto the site's support."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Joint:
    """A program at one position.

    prior: log density of the latent sites' own values. jacobian: what the change to unconstrained values adds to it.
    likelihood: log density of each row. sites: latent and deterministic values.
    scores: log probability of each value that the first observed site may take, where these are finitely many, else None.
    moments: mean and variance of that site where there are no scores, else None.
    """

    prior: Float[Array, ""]
    jacobian: Float[Array, ""]
    likelihood: Float[Array, " batch"]
    sites: Mapping[str, Array]
    scores: Float[Array, "batch classes"] | None
    moments: Float[Array, "batch 2"] | None

    def potential(self) -> Float[Array, ""]:
        """Minus the log density, in unconstrained values, of a batch that is the whole data."""
        return -(self.prior + self.jacobian + jnp.sum(self.likelihood))


def joint(problem: Problem, position: Position, batch: Batch) -> Joint:
    """The program at `position`. Differentiable; handles supports that depend on other sites."""
    numpyro, dist = load_numpyro()
    jacobians: list[Array] = []

    def value_of(site: Mapping[str, Any]) -> Array | None:
        if site["type"] != "sample" or site["is_observed"]:
            return None
        transform = dist.biject_to(site["fn"].support)
        free = position[site["name"]].astype(jnp.float32)
        value: Array = transform(free)
        jacobians.append(jnp.sum(transform.log_abs_det_jacobian(free, value)))
        return value

    substituted = numpyro.handlers.substitute(problem.program.program, substitute_fn=value_of)
    trace = numpyro.handlers.trace(substituted).get_trace(batch, problem.spec)
    samples = [site for site in trace.values() if site["type"] == "sample"]
    latent, observed = ([s for s in samples if s["is_observed"] is seen] for seen in (False, True))
    named = [s for s in trace.values() if s["type"] == "deterministic"]
    is_finite = observed[0]["fn"].has_enumerate_support
    return Joint(
        prior=jnp.sum(jnp.stack([jnp.sum(_log_density(s)) for s in latent])),
        jacobian=jnp.sum(jnp.stack(jacobians)),
        likelihood=jnp.sum(jnp.stack([_rows(s, batch) for s in observed]), axis=0),
        sites={s["name"]: s["value"] for s in latent + named},
        scores=_scores(observed[0]["fn"]) if is_finite else None,
        moments=None if is_finite else _moments(observed[0]["fn"]),
    )


def latent_shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    """Latent site -> shape of its unconstrained value, in the program's order; from shapes alone.

    Raises PluginError for a program without latent or observed sites, and for sites that inference cannot treat.
    """
    two, three = (_shapes(problem, rows) for rows in (2, 3))
    local = [name for name in two if two[name] != three[name]]
    if local:
        raise PluginError(
            f"{_name(problem)}: the shape of latent {', '.join(local)} depends on the number of rows in a batch; "
            "give each a fixed shape, or integrate it out"
        )
    return two


def _shapes(problem: Problem, rows: int) -> dict[str, tuple[int, ...]]:
    numpyro, dist = load_numpyro()
    found: dict[str, tuple[int, ...]] = {}

    def run(batch: Batch) -> None:
        seeded = numpyro.handlers.seed(problem.program.program, rng_seed=jax.random.key(0))
        sites = [
            s for s in numpyro.handlers.trace(seeded).get_trace(batch, problem.spec).values() if s["type"] == "sample"
        ]
        if not {True, False} <= {s["is_observed"] for s in sites}:
            raise PluginError(f"{_name(problem)} needs a latent site and an observed one; it has {len(sites)} sites")
        for site in (s for s in sites if not s["is_observed"]):
            if site["fn"].support.is_discrete:
                raise PluginError(f"{_name(problem)}: latent {site['name']} is discrete; sum it out of the density")
            found[site["name"]] = dist.biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))

    jax.eval_shape(run, {k: jax.ShapeDtypeStruct((rows, *v.shape), v.dtype) for k, v in problem.spec.elements.items()})
    return found


def _log_density(site: Mapping[str, Any]) -> Array:
    """The site's log density times the scale that a handler or a plate gave it."""
    found: Array = site["fn"].log_prob(site["value"])
    return found if site["scale"] is None else found * site["scale"]


def _rows(site: Mapping[str, Any], batch: Batch) -> Float[Array, " batch"]:
    found, rows = _log_density(site), len(next(iter(batch.values())))
    if found.shape != (rows,):
        raise PluginError(
            f"observed site {site['name']} has log densities {found.shape} for {rows} rows; it needs one each"
        )
    return found.astype(jnp.float32)


def _scores(distribution: Any) -> Float[Array, "batch classes"]:
    return jnp.moveaxis(distribution.log_prob(distribution.enumerate_support(expand=True)), 0, -1)


def _moments(distribution: Any) -> Float[Array, "batch 2"]:
    return jnp.stack(jnp.broadcast_arrays(distribution.mean, distribution.variance), axis=-1)


def _name(problem: Problem) -> str:
    return f"program {type(problem.program).__module__}.{type(problem.program).__qualname__}"
