"""Validation loss of experiments/lm_shakespeare_shape.gin on tinyshakespeare, over seeds, against nanoGPT's 1.886."""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from assay import config, devices

TARGET = 1.886
EXPERIMENT = Path(__file__).parent.parent / "experiments" / "lm_shakespeare_shape.gin"


def main() -> int:
    """Train each seed, print its loss over the whole validation split, then the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="tinyshakespeare.txt (default: in ASSAY_DATA_DIR)")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    text = args.text or Path(os.environ.get("ASSAY_DATA_DIR", ".")) / "tinyshakespeare.txt"
    devices.configure()
    from assay.train.launch import start

    losses = []
    for seed in range(args.seeds):
        overrides = [f"dataset.text_files.files={text}", f"experiment.seed={seed}", "experiment.trackers=[]"]
        loaded = config.load(EXPERIMENT, overrides)
        with tempfile.TemporaryDirectory() as root:
            finished = start(loaded, Path(root))
        if finished.status != "completed":  # an interrupted run has a loss too, of too few steps
            parser.exit(1, f"seed {seed}: {finished.status} at step {finished.step}; there is no result\n")
        losses.append(finished.values["validation/loss"])
        print(f"seed {seed}: validation loss {losses[-1]:.4f}", flush=True)
    mean = statistics.fmean(losses)
    print(f"result: nanogpt_validation_loss {mean:.4f} nats (target <= {TARGET})")
    return 0 if mean <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
