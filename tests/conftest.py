"""Eight virtual devices, strict rank promotion, a compilation cache shared by the whole suite, and where real data lies."""

import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest

_CACHE = os.environ.get("ASSAY_TEST_CACHE", str(Path(tempfile.gettempdir()) / f"assay-tests-{os.getuid()}"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small programs are compiled far longer than they run. What tests start in processes of their own is compiled as users have it.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):
    # A sixth of the time to compile; newer XLA has no other emitters, and ends at a flag that it does not know.
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
_FLAGS = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ["XLA_FLAGS"] = _FLAGS
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{_CACHE}/xla")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("ASSAY_CACHE_DIR", f"{_CACHE}/data")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as shells start what runs in the background; the programs tested would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An example takes as long as the machine makes it take; what hangs meets pytest's own limit.
hypothesis.settings.register_profile(
    "any machine",
    hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")


def pytest_runtest_teardown() -> None:
    """Take back the flags that a command of Assay added within a test: what later tests start would be compiled with them."""
    os.environ["XLA_FLAGS"] = _FLAGS


@pytest.fixture
def data_dir() -> Path:
    """The folder with real data files, from ASSAY_DATA_DIR; the test skips without it."""
    value = os.environ.get("ASSAY_DATA_DIR")
    if not value:
        pytest.skip("needs real data: set ASSAY_DATA_DIR to a folder with tinyshakespeare.txt and the other files")
    return Path(value).resolve()
