"""NumPyro, imported when it is first needed."""

from typing import Any

from assay.errors import PluginError


def load_numpyro() -> tuple[Any, Any]:
    """(numpyro, numpyro.distributions). Raises PluginError where NumPyro is not installed."""
    try:
        import numpyro
        import numpyro.diagnostics
        import numpyro.distributions
    except ImportError as error:
        raise PluginError(f"Bayesian models need NumPyro ({error}): pip install assay[bayes]") from error
    return numpyro, numpyro.distributions
