"""The posterior of the eight schools by experiments/eight_schools_nuts.gin, against published reference draws.

The reference is posteriordb's `eight_schools-eight_schools_noncentered` (github.com/stan-dev/posteriordb, 10,000 draws by Stan, 10
chains thinned by 10): means and their Monte Carlo standard errors as in its summary_statistics/mean_value; standard deviations,
and their errors by the delta method, of its draws. A score is the difference over the root of both squared errors.
"""

import argparse
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from assay import config
from assay.train.launch import start

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "eight_schools_nuts.gin"
MOST_SCORE, MOST_R_HAT, LEAST_ESS = 3.0, 1.01, 400.0

# site: mean, its error, standard deviation, its error
REFERENCE = {
    "mu": (4.41052, 0.03304, 3.3093, 0.0238),
    "tau": (3.60206, 0.03186, 3.1985, 0.0457),
    "theta[0]": (6.15050, 0.05574, 5.6159, 0.0624),
    "theta[1]": (4.93958, 0.04623, 4.6456, 0.0413),
    "theta[2]": (3.90591, 0.05423, 5.2807, 0.0565),
    "theta[3]": (4.79602, 0.04749, 4.7709, 0.0437),
    "theta[4]": (3.61444, 0.04615, 4.6147, 0.0413),
    "theta[5]": (4.05115, 0.04852, 4.7962, 0.0453),
    "theta[6]": (6.31717, 0.04988, 5.0029, 0.0463),
    "theta[7]": (4.88400, 0.05425, 5.3177, 0.0640),
}


def main() -> None:
    """Sample, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the experiment's seed")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} processors; {EXPERIMENT.name}, seed {arguments.seed}")
    settings = [f"experiment.seed={arguments.seed}", "experiment.trackers=[]"]
    with tempfile.TemporaryDirectory() as folder:
        values = start(config.load(EXPERIMENT, settings), Path(folder)).values
    found = scores(values)
    for site, (mean, _, deviation, _) in REFERENCE.items():
        ours = (values[f"train/{site}/mean"], values[f"train/{site}/sd"])
        errors = (values[f"train/{site}/mcse"], values[f"train/{site}/mcse_sd"])
        print(
            f"result: {site}_mean {ours[0]:.3f} points (target {mean:.3f}; score {found[site, 'mean']:+.2f}, error {errors[0]:.3f})"
        )
        print(
            f"result: {site}_sd {ours[1]:.3f} points (target {deviation:.3f}; score {found[site, 'sd']:+.2f}, error {errors[1]:.3f})"
        )
    print(f"result: largest_score {max(map(abs, found.values())):.2f} standard errors (target <= {MOST_SCORE})")
    print(f"result: r_hat_max {values['train/r_hat_max']:.4f} ratio (target <= {MOST_R_HAT})")
    print(f"result: ess_min {values['train/ess_min']:.0f} draws (target >= {LEAST_ESS:.0f})")
    print(f"result: divergences {values['train/divergences']:.0f} transitions (target 0)")


def scores(values: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """(site, "mean" or "sd") -> how many standard errors a run's values are away from the reference."""
    found = {}
    for site, (mean, mean_error, deviation, deviation_error) in REFERENCE.items():
        error = math.hypot(mean_error, values[f"train/{site}/mcse"])
        found[site, "mean"] = (values[f"train/{site}/mean"] - mean) / error
        error = math.hypot(deviation_error, values[f"train/{site}/mcse_sd"])
        found[site, "sd"] = (values[f"train/{site}/sd"] - deviation) / error
    return found


if __name__ == "__main__":
    main()
