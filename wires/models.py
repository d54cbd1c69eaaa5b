"""`GET /v1/models` and `/v1/models/{id}`: what can be asked for, as OpenAI lists it, or Anthropic for its own clients.

Anthropic's say which version of its API they speak (`anthropic-version`). All is told on one page.
https://platform.openai.com/docs/api-reference/models, https://platform.claude.com/docs/en/api/models.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from streaming.errors import Fault

from . import anthropic, openai

Named = tuple[str, str]  # a model, and whose it is


def is_anthropics(headers: Mapping[str, str]) -> bool:
    """Whether it is Anthropic's words that a client wants to read."""
    return "anthropic-version" in headers


def tell(fault: Fault, headers: Mapping[str, str]) -> Response:
    """Tell a fault in the words of who asks."""
    return anthropic.tell(fault) if is_anthropics(headers) else openai.tell(fault)


def listed(models: Sequence[Named], since: int, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the list of the models, which are there `since` (seconds of the Unix epoch)."""
    data = [one(model, since, headers) for model in models]
    if not is_anthropics(headers):
        return {"object": "list", "data": data}
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": first, "last_id": last}


def one(model: Named, since: int, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return one model."""
    name, owner = model
    if not is_anthropics(headers):
        return {"id": name, "object": "model", "created": since, "owned_by": owner}
    created = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": created, "lifecycle": "active"}
