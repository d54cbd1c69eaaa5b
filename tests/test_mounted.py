"""Files that are replaced while the service runs: what counts from when on, and that a bad one changes nothing."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from streaming.errors import SettingsError
from wires import mounted
from wires.mounted import LOOK_INTERVAL, Mounted
from wires.tokens import Tokens

from .access import bearer, issued, jwk, jwks
from .client import get
from .conftest import Service, Start, eventually
from .resource import answer

BAD = "hunter2 is not to be told"


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def go_on(self, seconds: float = LOOK_INTERVAL) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(mounted, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("first")
    return path


def parse(text: str) -> str:
    if "hunter2" in text:
        raise ValueError("there is nothing in it that can be used")
    return text.upper()


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


def replace(path: Path, text: str) -> None:
    (new := path.with_suffix(".new")).write_text(text)
    new.replace(path)


def remake(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


WAYS: dict[str, Callable[[Path, str], None]] = {"written": rewrite, "replaced": replace, "made anew": remake}


@pytest.mark.parametrize("change", WAYS.values(), ids=WAYS)
def test_a_file_counts_a_second_after_it_was_replaced_at_the_latest(
    clock: Clock, path: Path, change: Callable[[Path, str], None]
) -> None:
    file = Mounted("setting", str(path), parse)
    assert file.value == "FIRST"
    change(path, "second")
    clock.go_on(0.999)
    assert file.value == "FIRST"
    clock.go_on(0.001)
    assert file.value == "SECOND"
    change(path, "third!")  # of the same size
    clock.go_on()
    assert file.value == "THIRD!"


def test_a_secret_of_kubernetes_is_replaced_by_a_link_to_another_folder(clock: Clock, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(name)
        os.utime(tmp_path / name / "keys", (1, 1))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "keys").symlink_to("..data/keys")
    file = Mounted("setting", str(tmp_path / "keys"), parse)
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").replace(tmp_path / "..data")
    clock.go_on()
    assert file.value == "TWO"


def test_a_file_is_looked_at_once_a_second_and_read_only_where_it_was_touched(clock: Clock, path: Path) -> None:
    read: list[str] = []
    file = Mounted("setting", str(path), lambda text: read.append(text) or text)
    for _ in range(100):
        clock.go_on(0.5)
        assert file.value == "first"
    assert read == ["first"]
    path.write_text("second")
    clock.go_on(0.5)
    assert file.value == "first"
    clock.go_on(0.5)
    assert file.value == "second"


def spoil(path: Path) -> None:
    path.write_text(BAD)


def spoil_bytes(path: Path) -> None:
    path.write_bytes(b"hunter2 \xff\xfe")


def remove(path: Path) -> None:
    path.unlink()


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def make_a_pipe(path: Path) -> None:
    """Nobody writes to it: whoever read of it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "it cannot be used": (spoil, "there is nothing in it that can be used"),
    "it is no text": (spoil_bytes, "not UTF-8"),
    "it is gone": (remove, "No such file or directory"),
    "it is a folder": (make_a_folder, "not a file"),
    "it is a pipe": (make_a_pipe, "not a file"),
    "it is a link to itself": (make_a_loop, "Too many levels of symbolic links"),
}


@pytest.mark.parametrize(("spoil", "why"), SPOILT.values(), ids=SPOILT)
def test_after_a_bad_one_the_one_before_goes_on_until_there_is_a_good_one(
    clock: Clock, path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], why: str
) -> None:
    file = Mounted("setting", str(path), parse)
    spoil(path)
    for _ in range(3):
        clock.go_on()
        assert file.value == "FIRST"
    told = [(record.levelno, record.getMessage(), record.exc_info) for record in caplog.records]
    assert told == [(logging.ERROR, f"{path}: {why}; going on with what it was", None)] * 3
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.write_text("second")
    with caplog.at_level(logging.INFO):
        clock.go_on()
        assert file.value == "SECOND"
    assert caplog.records[-1].getMessage() == f"{path} was read anew"
    assert "hunter2" not in caplog.text


def why_not(path: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Mounted("setting", path, parse)
    return caught.value.problems


@pytest.mark.parametrize(("spoil", "why"), SPOILT.values(), ids=SPOILT)
def test_a_bad_one_stops_the_start(path: Path, spoil: Callable[[Path], None], why: str) -> None:
    spoil(path)
    (told,) = why_not(str(path))
    assert told in (f"setting: {why}", f"setting {path}: {why}")


@pytest.mark.parametrize("secret", ["web:hunter2", '{"kty":"oct","k":"hunter2"}', "hunter2" * 1000])
def test_a_secret_that_stands_where_its_path_should_is_not_told(secret: str) -> None:
    (told,) = why_not(secret)
    assert told.startswith("setting: ")
    assert "hunter2" not in told


def test_the_keys_of_an_issuer_are_replaced_one_after_the_other(clock: Clock, path: Path) -> None:
    path.write_text(jwks(jwk("ES256")))
    tokens = Tokens("", str(path))
    old, new = issued("ES256"), issued("EdDSA")
    seen = []
    for keys in (jwks(jwk("ES256"), jwk("EdDSA")), jwks(jwk("EdDSA")), "{}", json.dumps({"keys": [{"kty": "oct"}]})):
        path.write_text(keys)
        clock.go_on()
        seen.append((tokens.subject(old), tokens.subject(new)))
    assert seen == [("ann", "ann"), (None, "ann"), (None, "ann"), (None, "ann")]


@pytest.fixture(scope="module")
def keyed(start_service: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Service, Path]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("# who may\nweb:first\n")
    return start_service(SIDESTREAM_API_KEYS="cron:kept", SIDESTREAM_API_KEYS_FILE=str(path)), path


def test_a_key_is_given_and_taken_while_the_service_runs(keyed: tuple[Service, Path]) -> None:
    service, path = keyed

    def counts() -> list[bool]:
        """Which keys count; the first is not of the file."""
        keys = ("kept", "first", "second", "third")
        return [answer(get(service.port, "/v1/models", bearer(key))).status == 200 for key in keys]

    assert counts() == [True, True, False, False]
    replace(path, "  web:second  \r\n\r\n#web:first\r\ncron:third")
    eventually(lambda: counts() == [True, False, True, True])
    replace(path, "web:first first\n")
    eventually(lambda: counts() and f"{path}: Expected `name:KEY`" in service.log)
    assert counts() == [True, False, True, True]
    assert "first first" not in service.log
