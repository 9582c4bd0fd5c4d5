"""Flags and the place of compiled programs: what the user set wins, and nothing is set twice."""

import pytest

from assay import devices


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name in ("XLA_FLAGS", devices.CACHE, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ASSAY_CACHE_DIR", str(tmp_path))
    return monkeypatch


def flags():
    return devices.os.environ["XLA_FLAGS"].split()


def test_flags_are_added_once_and_the_users_own_stay(environment):
    environment.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=MINE --other=1")
    devices.configure()
    devices.configure()
    assert flags() == ["--xla_cpu_experimental_ynn_fusion_type=MINE", "--other=1"]


def test_deterministic_adds_its_flags_to_what_is_there(environment):
    devices.configure()
    before = flags()
    assert not any("deterministic" in flag for flag in before)
    devices.configure(deterministic=True)
    added = {f"--{name}={value}" for name, value in devices.DETERMINISTIC_FLAGS.items()}
    assert set(flags()) == {*before, *added}
    environment.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    devices.configure(deterministic=True)
    assert "--xla_gpu_autotune_level=4" in flags()
    assert "--xla_gpu_autotune_level=0" not in flags()


def test_compiled_programs_are_kept_in_a_folder_of_the_processor(environment, tmp_path):
    devices.configure()
    place = tmp_path / "xla"
    assert devices.os.environ[devices.CACHE].startswith(str(place))
    assert devices.cache_line().endswith("0 programs kept")
    folder = place / devices._processor()
    folder.mkdir(parents=True)
    (folder / "jit_step-abc-cache").touch()
    assert devices.cache_line() == f"compiled    {folder}, 1 programs kept"


def test_the_users_own_place_stays_and_an_empty_one_keeps_nothing(environment, tmp_path):
    environment.setenv(devices.CACHE, str(tmp_path / "mine"))
    devices.configure()
    assert devices.os.environ[devices.CACHE] == str(tmp_path / "mine")
    environment.setenv(devices.CACHE, "")
    devices.configure()
    assert devices.cache_line() == "compiled    not kept between processes"


def test_a_system_without_cpuinfo_has_a_name_too(monkeypatch):
    monkeypatch.setattr(devices.Path, "read_text", lambda self: (_ for _ in ()).throw(FileNotFoundError))
    assert devices._processor()
