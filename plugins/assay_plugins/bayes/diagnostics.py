"""Whether chains can be trusted: R-hat and effective sample size of rank-normalised halves, and the standard error of a mean.

Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, "Rank-normalization, folding, and localization: an improved R-hat for
assessing convergence of MCMC" (arXiv:1903.08008). Autocorrelations and their truncation are numpyro's.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri
from scipy.stats import rankdata

from assay_plugins.bayes.optional import load_numpyro

LEAST_DRAWS = 4  # of each chain; with fewer its halves have no variance


def r_hat(draws: Float[np.ndarray, "chains draws"]) -> float:
    """The larger of the split R-hats of normalised ranks and of folded ones; 1 when the chains agree, NaN for too few draws."""
    if draws.shape[1] < LEAST_DRAWS:
        return float("nan")
    numpyro, _ = load_numpyro()
    both = (draws, np.abs(draws - np.median(draws)))
    return max(float(numpyro.diagnostics.gelman_rubin(_normal_scores(_halves(x)))) for x in both)


def bulk_size(draws: Float[np.ndarray, "chains draws"]) -> float:
    """Effective sample size of the normalised ranks, for how well the centre of the distribution is known."""
    return _size(_normal_scores(_halves(draws))) if draws.shape[1] >= LEAST_DRAWS else float("nan")


def standard_error(draws: Float[np.ndarray, "chains draws"]) -> float:
    """Monte Carlo standard error of the mean: standard deviation / sqrt(effective sample size of the draws themselves)."""
    if draws.shape[1] < LEAST_DRAWS:
        return float("nan")
    return float(np.std(draws, ddof=1) / np.sqrt(_size(_halves(draws))))


def standard_error_of_deviation(draws: Float[np.ndarray, "chains draws"]) -> float:
    """Monte Carlo standard error of the standard deviation s: that of the mean squared deviation, over 2 s (delta method)."""
    if draws.shape[1] < LEAST_DRAWS:
        return float("nan")
    return standard_error(np.square(draws - np.mean(draws))) / (2 * float(np.std(draws, ddof=1)))


def _halves(draws: Float[np.ndarray, "chains draws"]) -> Float[np.ndarray, "twice half"]:
    """Each chain as two, without the middle draw of an odd number."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _normal_scores(draws: Float[np.ndarray, "chains draws"]) -> Float[np.ndarray, "chains draws"]:
    """Ranks over all chains, average ranks where draws are equal, as normal quantiles (equation 14)."""
    ranks = rankdata(draws).reshape(draws.shape)
    found: np.ndarray = ndtri((ranks - 0.375) / (draws.size + 0.25))
    return found


def _size(draws: Float[np.ndarray, "chains draws"]) -> float:
    """numpyro's effective sample size, bounded as Stan's by size * log10(size)."""
    numpyro, _ = load_numpyro()
    return min(float(numpyro.diagnostics.effective_sample_size(draws)), draws.size * float(np.log10(draws.size)))
