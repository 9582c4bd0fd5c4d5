"""What layers of PyTorch Geometric compute on a small graph: tests/models/pyg_layers.npz, which tests/models/test_gnn.py compares with.

Run by hand, `python tests/parity/make_graph_cases.py`, in an environment with torch and torch_geometric; nothing of Assay is imported
here. The file in the repository is by torch_geometric 2.8.1, torch 2.13.0, in float64. Every parameter is redrawn. The graph has an
isolated node, self loops, two edges between the same nodes, and edges in one direction only.
"""

from pathlib import Path

import numpy as np
import torch
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

FILE = Path(__file__).parents[1] / "models" / "pyg_layers.npz"
NODES, INPUTS, OUTPUTS, HEADS = 9, 5, 4, 3
EDGES = [
    (0, 1),
    (1, 0),
    (1, 2),
    (2, 1),
    (3, 1),
    (4, 1),
    (4, 1),
    (4, 4),
    (5, 6),
    (6, 7),
    (7, 5),
    (7, 7),
    (0, 6),
]  # 8 is alone


def main() -> None:
    """Draw, compute, write."""
    torch.manual_seed(0)
    x = torch.randn(NODES, INPUTS, dtype=torch.float64)
    edges = torch.tensor(EDGES).T
    layers = {
        "gcn": GCNConv(INPUTS, OUTPUTS),
        "gat": GATConv(INPUTS, OUTPUTS, heads=HEADS),
        "gat_average": GATConv(INPUTS, OUTPUTS, heads=HEADS, concat=False),
        "sage": SAGEConv(INPUTS, OUTPUTS),
    }
    found = {"x": x.numpy(), "senders": edges[0].numpy(), "receivers": edges[1].numpy()}
    for name, layer in layers.items():
        layer.double()
        for path, parameter in layer.named_parameters():
            torch.nn.init.normal_(parameter)
            found[f"{name}/{path}"] = parameter.detach().numpy()
        found[f"{name}/output"] = layer(x, edges).detach().numpy()
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
