"""The command with several processes: one signal drains them all, a second ends them at once, none is left over."""

import os
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from .client import Client, get
from .conftest import ROOT, Service, Start, eventually

COMMAND = [sys.executable, "-c", "import command; command.main()"]
LEAN = {"SIDESTREAM_PROVIDERS": '{"local": {"enabled": false}}'}  # a second of CPU less for each process


def start(start_service: Start, *, drain: float = 0, command: list[str] = COMMAND) -> Service:
    service = start_service("--workers", "2", command=command, **LEAN, SIDESTREAM_DRAIN_TIMEOUT=str(drain))
    eventually(lambda: service.log.count("Application startup complete.") == 2)
    return service


def workers(service: Service) -> list[int]:
    """Return the processes that have begun to serve, the oldest first."""
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", service.log)]


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, though nobody may have asked what became of it."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def follow(service: Service) -> Client:
    """Follow a run that says nothing and does not end."""
    client = get(service.port, message="hi", model="scripted/silent")
    client.until("start")
    return client


def one_goes_on(service: Service, client: Client) -> bool:
    """Tell whether all processes have been told to stop, and have, but for the one that serves this client."""
    assert not select.select([client.socket], [], [], 0)[0], "its run was ended"
    return service.log.count("Finished server process") == 1


def assert_it_ended_well(service: Service, client: Client) -> None:
    with client:
        assert client.until("cancelled").data["reason"] == "draining"
    assert service.process.wait(20) == 0, service.log
    assert all(map(is_gone, workers(service)))
    assert "Traceback" not in service.log


def test_one_signal_ends_all(start_service: Start) -> None:
    service = start(start_service)
    client = follow(service)
    service.process.send_signal(signal.SIGTERM)
    assert_it_ended_well(service, client)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_by_one_signal_they_drain_and_by_another_they_end_at_once(start_service: Start, sign: int) -> None:
    service = start(start_service, drain=600)
    client = follow(service)
    service.process.send_signal(sign)
    eventually(lambda: one_goes_on(service, client))
    service.process.send_signal(sign)
    assert_it_ended_well(service, client)


def test_two_signals_at_once_are_two(start_service: Start) -> None:
    service = start(start_service, drain=600)
    client = follow(service)
    service.process.send_signal(signal.SIGTERM)
    service.process.send_signal(signal.SIGINT)
    assert_it_ended_well(service, client)


def test_ctrl_c_in_a_terminal_is_one_signal(start_service: Start) -> None:
    """It goes to every process of the terminal's group."""
    service = start(start_service, drain=600, command=["setsid", *COMMAND])
    client = follow(service)
    os.killpg(service.process.pid, signal.SIGINT)
    eventually(lambda: one_goes_on(service, client))
    os.killpg(service.process.pid, signal.SIGINT)
    assert_it_ended_well(service, client)


def test_a_worker_that_dies_is_replaced(start_service: Start) -> None:
    service = start(start_service)
    for pid in workers(service):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: service.log.count("Application startup complete.") == 4)
    with get(service.port, message="hi", model="scripted/echo") as client:
        assert client.until("done").data["done"]
    assert service.stop() == 0
    assert len(workers(service)) == 4
    assert all(map(is_gone, workers(service)))


def test_a_worker_that_does_not_end_well_is_told_by_the_exit_code(start_service: Start) -> None:
    service = start(start_service, drain=600)
    with follow(service) as client:
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: one_goes_on(service, client))
        for pid in workers(service):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert service.process.wait(20) == 1


def test_who_loses_its_parent_ends_as_if_told_to(start_service: Start) -> None:
    service = start(start_service)
    client = follow(service)
    service.process.kill()
    with client:
        assert client.until("cancelled").data["reason"] == "draining"
    eventually(lambda: all(map(is_gone, workers(service))))


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_port_that_is_taken_ends_it_with_a_word(service: Service, number: str) -> None:
    ended = subprocess.run(
        [*COMMAND, "--workers", number, "--port", str(service.port)],
        cwd=ROOT,
        env={**os.environ, **LEAN},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 3
    assert "address already in use" in ended.stderr.lower()
    assert "Traceback" not in ended.stderr
