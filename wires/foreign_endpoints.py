"""What a reader of the API is told of the endpoints of other wires: where their words are described, and an example.

As endpoints.py, which has our own.
"""

from collections.abc import Mapping

from .endpoints import JSON, QUESTION, SSE, Endpoint, Object, answer, of_json

_EVENTS = {
    "200": answer(
        "Its events, as they come; or one object, where no stream was asked for.",
        {SSE: {"schema": {"type": "string"}}, JSON: {}},
    )
}
_OBJECT = {"200": answer("As that API has it.", {JSON: {}})}
OPENAI = "https://platform.openai.com/docs/api-reference"


_SAID = [{"role": "user", "content": QUESTION}]
_AGENTS: Object = {"threadId": "1", "runId": "1", "messages": [{"id": "1", **_SAID[0]}]}
_INPUT: Object = {"assistant_id": "agent", "input": {"messages": _SAID}}


def _foreign(
    summary: str, text: str, answers: Mapping[str, Object], *names: str, example: Object | None = None
) -> Endpoint:
    """Describe a path that speaks the words of another API, in which its errors are told as well.

    With an `example` it takes an object.
    """
    body: Object | None = None if example is None else {"type": "object"}
    told = {**answers, "default": {"description": "An error, in the words of that API."}}
    known = ("unauthorized",), names, body
    return Endpoint(summary, text, told, *known, tag="Other wires", is_foreign=True, example=example)


def _of_langgraph(runs: str, *names: str) -> dict[str, Endpoint]:
    """Describe the runs of LangGraph's API below a path."""
    run = (*names, "run_id")
    gone = {"202": {"description": "It is being stopped."}, "204": {"description": "It has ended."}}
    return {
        f"POST {runs}/stream": _foreign(
            "Run and follow, as LangGraph's SDKs do", "`assistant_id` names it.", _EVENTS, *names, example=_INPUT
        ),
        f"POST {runs}/wait": _foreign(
            "Run and wait, as LangGraph's SDKs do", "For the state at the end.", _OBJECT, *names, example=_INPUT
        ),
        f"GET {runs}/{{run_id}}": _foreign("How a run stands", "", _OBJECT, *run),
        f"GET {runs}/{{run_id}}/stream": _foreign(
            "Follow a run", "From its beginning, or behind `Last-Event-ID`.", _EVENTS, *run
        ),
        f"POST {runs}/{{run_id}}/cancel": _foreign("Stop a run", "", gone, *run),
    }


FOREIGN = {
    "POST /v1/chat/completions": _foreign(
        "OpenAI's Chat Completions",
        f"{OPENAI}/chat",
        _EVENTS,
        example={"model": "local", "messages": _SAID, "stream": True},
    ),
    "POST /v1/responses": _foreign(
        "OpenAI's Responses",
        f"{OPENAI}/responses",
        _EVENTS,
        example={"model": "local", "input": QUESTION, "stream": True},
    ),
    "GET /v1/responses/{response_id}": _foreign(
        "A response, or its events",
        "With `stream=true` from behind `starting_after`.",
        _EVENTS,
        "response_id",
    ),
    "POST /v1/responses/{response_id}/cancel": _foreign("Stop a response", "", _OBJECT, "response_id"),
    "POST /v1/messages": _foreign(
        "Anthropic's Messages",
        "https://platform.claude.com/docs/en/api/messages",
        _EVENTS,
        example={"model": "local", "max_tokens": 100, "messages": _SAID, "stream": True},
    ),
    "GET /v1/models": _foreign(
        "What can be asked for",
        "The models that are known of, the default first, and the aliases; others of a provider may be asked for, too. "
        "As OpenAI lists them; as Anthropic does where `anthropic-version` is sent.",
        {"200": answer("As OpenAI lists them.", of_json("ModelList"))},
    ),
    "GET /v1/models/{model}": _foreign("A model", "By any name that can be asked for.", _OBJECT, "model"),
    "POST /ui/chat": _foreign(
        "The Vercel AI SDK's chat",
        "https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol",
        _EVENTS,
        example={"model": "local", "messages": [{"role": "user", "parts": [{"type": "text", "text": QUESTION}]}]},
    ),
    "GET /ui/chat/{chat_id}/stream": _foreign(
        "Take a chat's answer up again",
        "By the chat's id or the run's: from its beginning, or with `startIndex` behind so many chunks.",
        {**_EVENTS, "204": {"description": "There is none, or it is over."}},
        "chat_id",
    ),
    "DELETE /ui/chat/{chat_id}/stream": _foreign(
        "Stop a chat's answer", "", {"204": {"description": "None goes on."}}, "chat_id"
    ),
    "POST /ag-ui": _foreign(
        "AG-UI", "https://docs.ag-ui.com", _EVENTS, example={**_AGENTS, "forwardedProps": {"model": "local"}}
    ),
    "POST /ag-ui/{name}": _foreign(
        "AG-UI, with one of a name", "As `/{name}/stream`.", _EVENTS, "name", example=_AGENTS
    ),
    "POST /lg/threads": _foreign(
        "Name a thread", "Its graph's checkpointer makes it with its first run.", _OBJECT, example={}
    ),
    **_of_langgraph("/lg/threads/{thread_id}/runs", "thread_id"),
    **_of_langgraph("/lg/runs"),
}
