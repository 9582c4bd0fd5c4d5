"""`assay ui`: Aim's web page on the runs of a directory, for this machine alone, until Ctrl-C."""

import argparse
import contextlib
import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from assay.errors import PluginError, RunError
from assay.runs.directory import default_root

HELP = "Show the runs in Aim's web page, served to this machine alone until Ctrl-C. Needs `pip install assay[aim]`."
EXAMPLE = "assay ui runs --port 43801"
HOST = "127.0.0.1"  # never wider: Aim's search box evaluates what visitors type
START_SECONDS = 120.0
STOP_SECONDS = 10.0
_AIM = "from aim.cli.cli import cli_entry_point; cli_entry_point()"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the runs are, and the port."""
    parser.add_argument(
        "root",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="holds the runs and Aim's store (default: ASSAY_RUNS, or ./runs)",
    )
    parser.add_argument(
        "--port", type=int, default=43800, help="of the web page (default: 43800); 0 takes any free one"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    root = args.root.absolute() if args.root else default_root()
    _check(root)
    port = _free_port(args.port)
    signal.signal(signal.SIGTERM, _interrupt)
    print("starting Aim, which takes 10 to 30 seconds …", flush=True)
    with tempfile.TemporaryFile() as output, _serving(root, port, output) as server:
        try:
            _wait(server, port, output)
            print(f"Aim shows {root} at http://{HOST}:{port} until you press Ctrl-C", flush=True)
            server.wait()
        except KeyboardInterrupt:
            return 0
        raise RunError(f"Aim stopped by itself:\n{_tail(output)}")


def _check(root: Path) -> None:
    """Raise unless Aim and its store are there."""
    if importlib.util.find_spec("aim") is None:
        raise PluginError(
            "Aim is not installed; pip install 'assay[aim]' on Python 3.11 or 3.12. `assay runs` needs no Aim."
        )
    if not (root / ".aim").is_dir():
        raise RunError(
            f"there is no Aim store in {root}; `assay run` makes one where Aim is installed, "
            "and `assay runs --sync RUN` fills one from a run that exists"
        )


def _free_port(wanted: int) -> int:
    """The port, or any free one for 0. Raises RunError when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except (OSError, OverflowError) as error:
            raise RunError(f"port {wanted} of {HOST} cannot be used: {error}; choose another with --port") from error
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _serving(root: Path, port: int, output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """`aim up` with everything that it starts, in a process group that ends with the block."""
    arguments = ["up", "--repo", str(root), "--host", HOST, "--port", str(port), "--workers", "1", "--yes"]
    server = subprocess.Popen(
        [sys.executable, "-c", _AIM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield server
    finally:
        _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the whole group to end, and see to it when it has not after a while."""
    deadline = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(ProcessLookupError):  # nobody is left
        os.killpg(server.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            server.poll()
            os.killpg(server.pid, 0)
            time.sleep(0.05)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, output: IO[bytes]) -> None:
    """Return when the page answers. Raises RunError, with Aim's last words, when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while not _answers(port):
        if server.poll() is not None or time.monotonic() > deadline:
            why = "stopped" if server.poll() is not None else f"did not answer in {START_SECONDS:.0f} s"
            raise RunError(f"Aim could not be started, it {why}:\n{_tail(output)}")
        time.sleep(0.3)


def _answers(port: int) -> bool:
    """Whether the page is served. Asked without proxies, which urllib would take from the environment."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(output: IO[bytes]) -> str:
    output.seek(0)
    return "\n".join(output.read().decode(errors="replace").splitlines()[-15:])


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
