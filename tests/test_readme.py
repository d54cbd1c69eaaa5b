"""What the README says is so: its tables against the code, its example provider and its requests by running them."""

import re
import typing
from pathlib import Path

import msgspec
import pytest

from streaming import events
from streaming.settings import Settings

from .client import get, post, text
from .conftest import ROOT, Service, Start

README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    """Return the text under a heading, up to the next of any level."""
    return re.split(r"^##+ ", README.partition(f" {title}\n")[2], flags=re.MULTILINE)[0]


def block(title: str, language: str) -> str:
    return section(title).partition(f"```{language}\n")[2].partition("```")[0]


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def setting_rows() -> list[list[str]]:
    table = []
    hints = typing.get_type_hints(Settings, include_extras=True)
    for field in msgspec.structs.fields(Settings):
        (doc,) = [meta.description for meta in typing.get_args(hints[field.name])[1:] if meta.description]
        default = None if field.default is msgspec.NODEFAULT else field.default
        shown = default if isinstance(default, str) else f"{default:.15g}" if isinstance(default, float | int) else ""
        shown = str(default).lower() if isinstance(default, bool) else shown
        table.append([f"`{field.name}`", shown, doc])
    return table


def test_the_settings_table_is_the_settings() -> None:
    assert rows("Settings") == setting_rows()


def of_graphs(kind: type[events.Event]) -> set[str]:
    """Fields that the table leaves to the section on graphs."""
    return {"node", "ns"} if "node" in kind.__struct_fields__ else set()


def test_the_event_table_is_the_events() -> None:
    public = [kind for kind in vars(events).values() if isinstance(kind, type) and hasattr(kind, "name")]
    told = {cells[0].strip("`"): set(re.findall(r"[a-z_]+", cells[1].replace("true", ""))) for cells in rows("Events")}
    assert told == {kind.name: {*kind.__struct_encode_fields__} - of_graphs(kind) for kind in public}


def test_what_is_said_of_runs_is_shown_by_tests_that_exist() -> None:
    code = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = [cells[2].strip("`") for cells in rows("Runs that outlive a connection")]
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in code] == []


def test_the_provider_of_twenty_lines_works(start_service: Start, tmp_path: Path) -> None:
    code, config = block("A provider of your own", "python"), block("A provider of your own", "toml")
    assert len(code.splitlines()) <= 20
    (tmp_path / "shout.py").write_text(code)
    (tmp_path / "sidestream.toml").write_text(config)
    service = start_service(SIDESTREAM_CONFIG=str(tmp_path / "sidestream.toml"), PYTHONPATH=str(tmp_path))
    with post(service.port, "/shout/stream", message="hello there") as client:
        got = list(client)
    assert text(got) == "HELLO THERE !!!"
    assert [got[0].name, got[-1].name] == ["start", "done"]
    assert got[0].data["model"] == "loud"
    assert got[-1].data["tokens"] == 3


@pytest.mark.parametrize("path", ["/chat/stream", "/chat/stream-meta", "/scripted/stream"])
@pytest.mark.parametrize("fields", [{"message": "hi"}, {"question": "hi"}, {"message": "hi", "system_prompt": "Echo."}])
def test_those_who_come_from_a_hand_written_stream_change_nothing(
    service: Service, path: str, fields: dict[str, str]
) -> None:
    with post(service.port, path, model="scripted/echo", **fields) as client:
        lines = [line[6:] for line in client.read().decode().split("\n") if line.startswith("data: ")]
    answer = ""
    for line in map(msgspec.json.decode, lines):
        if line.get("done"):
            break
        answer += line.get("token", "")
    assert answer == "hi"


def test_get_stream_is_ndjson(service: Service) -> None:
    with get(service.port, "/stream", message="hi", model="scripted/echo") as client:
        assert [client.line()["event"] for _ in range(3)] == ["start", "token", "done"]
