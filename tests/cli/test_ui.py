"""`assay ui`."""

import http.client
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from assay.cli import main


def test_without_a_store_it_says_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("aim") is None:
        pytest.skip("needs Aim")
    assert main(["ui", str(tmp_path)]) == 1
    assert re.search(r"no Aim store in .*assay runs --sync", capsys.readouterr().err)


def test_without_aim_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["ui", str(tmp_path)]) == 1
    assert "pip install 'assay[aim]'" in capsys.readouterr().err


def test_a_port_in_use_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / ".aim").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", str(tmp_path), "--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


@pytest.mark.slow
def test_it_serves_the_page_and_stops_with_all_its_processes(tmp_path: Path) -> None:
    pytest.importorskip("aim", exc_type=ImportError)
    init = "import sys; from aim import Repo; Repo.from_path(sys.argv[1], init=True)"
    subprocess.run([sys.executable, "-c", init, str(tmp_path)], check=True)
    command = [
        sys.executable,
        "-c",
        "from assay.cli import main; raise SystemExit(main())",
        "ui",
        str(tmp_path),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("GET", "/")
        response = connection.getresponse()
        assert (response.status, b"<html" in response.read().lower()) == (200, True)
        connection.close()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=200) == 0
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", int(found[1])))
