"""A graph's threads are their owner's: another who names the same thread has one of its own."""

import json
from typing import Any

import pytest

from .client import post
from .conftest import Service, Start

GRAPHS = "asking=tests.graphs:asking,remembering=tests.graphs:asking_nothing"
ONE, TWO, ONE_LATER = ({"X-API-Key": key} for key in ("key-1", "key-2", "key-3"))


def ask(service: Service, key: dict[str, str], **fields: Any) -> list[tuple[str, Any]]:
    with post(service.port, "/asking/stream", key, stream_mode=["values", "checkpoints"], **fields) as client:
        return [(event.name, event.data) for event in client]


def test_a_thread_is_its_owners(start_service: Start) -> None:
    keys = "one:key-1,two:key-2,one:key-3"
    service = start_service(SIDESTREAM_GRAPHS=GRAPHS, SIDESTREAM_API_KEYS=keys)
    first = ask(service, ONE, message="my secret is swordfish", thread_id="t")
    assert ("interrupt" in dict(first), dict(first)["done"]["finish_reason"]) == (True, "interrupt")
    assert dict(first)["start"]["thread_id"] == "t"
    for fields in ({"resume": True}, {"input": None}, {"message": "What did I say?"}):
        others = ask(service, TWO, thread_id="t", **fields)
        assert "swordfish" not in json.dumps(others), fields
    again = ask(service, ONE_LATER, thread_id="t", resume=True)
    assert again[-1][0] == "done"
    assert again[-1][1]["finish_reason"] == "stop"
    assert "swordfish" in json.dumps(again)


@pytest.mark.parametrize("how", [{"stream_mode": ["checkpoints", "debug", "tasks"]}, {"events": True}], ids=str)
def test_a_thread_is_told_as_its_owner_calls_it(start_service: Start, how: dict[str, Any]) -> None:
    service = start_service(SIDESTREAM_GRAPHS=GRAPHS, SIDESTREAM_API_KEYS="one:key-1")
    with post(service.port, "/asking/stream", ONE, message="Hi", thread_id="t", **how) as client:
        told = json.dumps([event.data for event in client])
    assert '"thread_id": "t"' in told
    assert "key:one" not in told


def test_no_name_of_a_thread_leads_to_anothers(start_service: Start) -> None:
    service = start_service(SIDESTREAM_GRAPHS=GRAPHS, SIDESTREAM_API_KEYS="one:key-1,two:key-2")
    ask(service, ONE, message="my secret is swordfish", thread_id="t")
    for thread in ("key:one/t", "/key:one/t", "../key:one/t", "key%3Aone/t"):
        assert "swordfish" not in json.dumps(ask(service, TWO, thread_id=thread, input=None))
        assert "swordfish" not in json.dumps(ask(service, TWO, thread_id=thread, message="?"))
