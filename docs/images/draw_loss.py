"""Draws the loss curves of a run: `python docs/images/draw_loss.py RUN_DIRECTORY [FILE.png]`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd


def draw(run: Path, file: Path) -> None:
    """Training and validation loss (nats) by step, from the run's metrics.jsonl, as a PNG."""
    table = pd.read_json(run / "metrics.jsonl", lines=True).dropna(subset="loss")
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for context, style in (("train", "-"), ("validation", "o--")):
        rows = table[table["context"] == context]
        axes.plot(rows["step"], rows["loss"], style, markersize=4, linewidth=1.4, label=context)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("loss.png"))
