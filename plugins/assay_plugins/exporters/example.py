"""A small model as exporters get it, for the conformance kit: the layout knows architectures, and not the kit's own programs."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from assay.data.spec import ArraySpec, DataSpec
from assay.exported import Dim, Exported, Program, Signature, Tensor
from assay.kinds import Model
from assay.network import make_network

VOCAB, LENGTH = 13, 12


def exported(model: Model) -> Exported:
    """A decoder of VOCAB tokens with random weights, whose rows have at most LENGTH."""
    spec = DataSpec({"inputs": ArraySpec((LENGTH,), "int32")}, vocab_size=VOCAB)
    network, rng = make_network(model, spec), np.random.default_rng(0)
    leaves, structure = jax.tree_util.tree_flatten_with_path(network.params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]

    def forward(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        module: Any = network.merge(jax.tree.unflatten(structure, [weights[path] for path in paths]), {})
        return {"output": module(inputs, train=False, rngs=None)}

    signature = Signature(
        {"inputs": Tensor(("batch", "seq"), "int32", VOCAB)}, {"output": Tensor(("batch", "seq", VOCAB), "float32")}
    )
    return Exported(
        model=model,
        spec=spec,
        programs=[Program("forward", forward, signature)],
        dims={"batch": Dim(1, 3), "seq": Dim(1, LENGTH)},
        weights={
            path: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
            for path, (_, leaf) in zip(paths, leaves, strict=True)
        },
        examples={},
        lineage={},
    )
