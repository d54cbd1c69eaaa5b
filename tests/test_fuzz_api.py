"""The OpenAPI document and the service against each other: requests made of the one, answers of the other.

Schemathesis makes them, the right ones and the wrong: fields at and beyond each bound, of other types, missing, too
many, other methods and content types. An answer that the document does not tell of, a wrong request that is served and
a right one that is refused are failures; so is any 5xx, on other wires too. The same requests in each run.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.openapi import from_dict

from service import create_app
from streaming.request import FOR_RUNNABLES

from .asgi import service_of
from .client import DEADLINE
from .conftest import Start

# One model, which says at once what it is told; a run that nobody follows is soon over.
QUICK = {
    "SIDESTREAM_PROVIDERS": '{"local": {"enabled": false}, "scripted": {"models": ["echo"]}}',
    "SIDESTREAM_RUN_TIMEOUT": "5",
    "SIDESTREAM_LINGER": "0.1",
    "SIDESTREAM_MAX_LINGER": "0.2",
}
# The same request by other paths: a sample of what can be said will do.
ALIKE = ["/runs", "/stream", "/chat/stream-meta", "/{name}/stream"]
# What is right each by itself, but makes no sense beside a message, or is another's: an unknown model, a past event.
BESIDE = {*FOR_RUNNABLES, "question", "messages", "system_prompt", "model", "last_event_id"}
PERHAPS_JSON = {"stop", "tool_choice"}  # in a URL: text that begins as JSON does, and may be none
fuzz = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


class Asking(NamedTuple):
    """A service that is asked, and the id of a run that it keeps."""

    url: str
    session: requests.Session
    run_id: str

    def __call__(self, case: Case) -> None:
        # Of other APIs the document tells no more than where they are: their requests are not made of it.
        checks = [not_a_server_error] if "Other wires" in case.operation.tags else None
        asked = makes_sense(case, self.run_id)
        asked.call_and_validate(self.url, self.session, checks=checks, timeout=DEADLINE)


@pytest.fixture(scope="module")
def ask(start_service: Start) -> Iterator[Asking]:
    service = start_service(command=[sys.executable, "-c", "import command; command.main()"], **QUICK)
    url = f"http://127.0.0.1:{service.port}"
    with requests.Session() as session:
        session.trust_env = False
        created = session.post(f"{url}/runs", json={"message": "Hi"}, timeout=DEADLINE).json()
        yield Asking(url, session, created["id"])


def makes_sense(case: Case, run_id: str) -> Case:
    """Leave of a right request what makes sense together: one message, and what is said of it; a run that there is."""
    if case.meta and case.meta.generation.mode is GenerationMode.POSITIVE:
        for name in ("Last-Event-ID", "Idempotency-Key"):
            case.headers.pop(name, None)
        if "run_id" in case.operation.path_parameters:
            case.path_parameters, case.query = {**case.path_parameters, "run_id": run_id}, {}
        elif "message" in case.operation.query:
            case.query = sensible({name: value for name, value in case.query.items() if name not in PERHAPS_JSON})
        elif isinstance(case.body, dict):
            case.body = sensible(case.body)
    return case


def sensible(told: Mapping[str, Any]) -> dict[str, Any]:
    """One message, and what may stand beside it; whole numbers without a point, the same to JSON Schema, not to us."""
    said = {name: value for name, value in told.items() if name not in BESIDE}
    whole = {name: int(value) for name, value in said.items() if isinstance(value, float) and value.is_integer()}
    return {**said, **whole, "message": "Hi"}


def described(*, coverage: bool) -> Any:
    """The document of such a service; with `coverage` each of its bounds is tried."""
    app = create_app(QUICK)
    api = from_dict(service_of(app).document.make(app.routes), config=schemathesis.Config(seed=1))
    api.config.phases.coverage.enabled = coverage
    refusals = api.config.checks.negative_data_rejection
    refusals.expected_statuses = [*refusals.expected_statuses, "431"]  # of a URL with a list that is too long
    return api


@described(coverage=True).exclude(path=ALIKE).parametrize()
@settings(fuzz, max_examples=6)
def test_every_answer_is_one_that_the_document_tells_of(case: Case, ask: Asking) -> None:
    ask(case)


@described(coverage=False).include(path=ALIKE).parametrize()
@settings(fuzz, max_examples=10)
def test_so_is_every_answer_to_the_same_by_another_path(case: Case, ask: Asking) -> None:
    ask(case)
