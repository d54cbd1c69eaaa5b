"""LangChain's chains over HTTP: what they yield as events, what ends them, what goes wrong in them and in their models.

The service is real, and so are LangChain and its package for OpenAI; the model is the scripted upstream, whose record
is the proof of who was asked what, and when its client went away.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .client import DEADLINE, Client, get, post, text
from .conftest import FOREIGN, ROOT, Service, Start, eventually
from .recorded import (
    CHAT_RECORDINGS,
    DONE,
    OPENAI,
    RESPONSES_RECORDINGS,
    ROLE,
    Recording,
    Told,
    called,
    chat,
    joined,
)
from .resource import NDJSON, answer, create, is_one_run, refused, rest_of, status_of, stop
from .upstream import END, FIN, HOLD, OPENAI_KEY, PAUSE, RST, Exchange, Head, Repeat, Upstream, environ

pytest_plugins = ["tests.upstream"]

NAMES = (
    *("writer", "messages", "responder", "parsed", "several", "conversing", "model", "both", "retrieving", "working"),
    *(
        "echo",
        "telling",
        "changing",
        "failing",
        "failing_async",
        "failing_both",
        "failing_words",
        "failing_words_async",
    ),
    *("leaving", "leaving_async", "panicking", "panicking_words", "words", "words_async", "words_of_model"),
    *("slow", "slow_in_sequence", "waiting", "thinking", "tools", "anything"),
)
WITHOUT_LOCAL = json.dumps({"local": {"enabled": False}})


@pytest.fixture(scope="module")
def chained(start_service: Start, upstream_server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A service with all chains, by a file. Without pings, what should end and does not is found out by its silence."""
    config = tmp_path_factory.mktemp("chains") / "sidestream.toml"
    targets = "".join(f'{name} = "tests.chains:{name}"\n' for name in NAMES)
    config.write_text(f"threads = 4\nping_interval = 0\n[langchain]\n{targets}[providers.local]\nenabled = false\n")
    return start_service(SIDESTREAM_CONFIG=str(config), **environ(upstream_server))


@pytest.fixture(scope="module")
def narrow(start_service: Start, upstream_server: Upstream) -> Service:
    """A service with a few chains, by the environment, and one thread for those that block."""
    named = {"first": "words", "slow": "slow", "async": "words_async", "leaving": "leaving", "panic": "panicking_words"}
    return start_service(
        SIDESTREAM_CHAINS=",".join(f"{name}=tests.chains:{target}" for name, target in named.items()),
        SIDESTREAM_PROVIDERS=WITHOUT_LOCAL,
        SIDESTREAM_THREADS="1",
        SIDESTREAM_PING_INTERVAL="0",
        **environ(upstream_server),
    )


USAGE = {"input_tokens": 14, "output_tokens": 8, "cached_tokens": 6}


def start(name: str) -> tuple[str, Any]:
    return "start", {"provider": "langchain", "model": name}


def done(name: str, tokens: int, **other: Any) -> tuple[str, Any]:
    whole = {"finish_reason": "stop", "model": name, "usage": USAGE}
    return "done", {"done": True, **whole, "tokens": tokens, **other}


def estimated(read: int, written: int) -> dict[str, Any]:
    return {"input_tokens": read, "output_tokens": written, "estimated": True}


def whole(client: Client) -> Told:
    """Read a run to its end and return its events, adjacent deltas joined, without what differs from run to run."""
    events = rest_of(client)
    assert is_one_run(events), events
    varies = {"start": ("run", "created"), "done": ("ttft_ms", "latency_ms")}
    for event in events:
        for name in varies.get(event.name, ()):
            del event.data[name]
    return joined([(event.name, event.data) for event in events])


def events_of(service: Service, name: str, **body: Any) -> Told:
    """Ask a chain on its own path, for what a message says where nothing else is said; return all but its start."""
    asked = body if {"message", "messages", "input"} & {*body} else {"message": "Hi", **body}
    events = whole(post(service.port, f"/{name}/stream", **asked))
    assert events[0] == start(name)
    return events[1:]


def says(upstream: Upstream, *parts: str) -> None:
    upstream.stream(ROLE, *(chat({"content": part}) for part in parts), *OPENAI.ending)


def asked_for(upstream: Upstream) -> list[tuple[str, Any]]:
    """Return the messages that the upstream was sent, by role."""
    exchange = upstream.request()
    assert exchange.headers["authorization"] == f"Bearer {OPENAI_KEY}"
    return [(message["role"], message.get("content")) for message in exchange.body["messages"]]


# --- By name ---------------------------------------------------------------------------------------------------------


def test_chains_are_models_and_have_paths(chained: Service) -> None:
    models = [model["id"] for model in json.loads(answer(get(chained.port, "/v1/models")).body)["data"]]
    chains = [model for model in models if model.startswith("langchain/")]
    assert chains == [f"langchain/{name}" for name in NAMES]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/echo/stream", {}),
        ("/echo/stream", {"model": "echo"}),
        ("/echo/stream", {"model": "langchain/echo"}),
        ("/langchain/stream", {"model": "echo"}),
        ("/langchain/stream", {"model": "langchain/echo"}),
        ("/chat/stream", {"model": "echo"}),
        ("/chat/stream", {"model": "langchain/echo"}),
        ("/stream", {"model": "echo"}),
    ],
)
@pytest.mark.parametrize("ndjson", [False, True])
def test_a_chain_answers_wherever_it_is_named(chained: Service, path: str, body: dict[str, str], ndjson: bool) -> None:
    expected = [start("echo"), ("token", {"token": "You said 'Hi'."}), done("echo", 1, usage=estimated(1, 4))]
    wire = NDJSON if ndjson or path == "/stream" else {}
    for client in (
        post(chained.port, path, wire, message="Hi", **body),
        get(chained.port, path, wire, message="Hi", **body),
    ):
        events = rest_of(client)
        assert [event.name for event in events] == [name for name, _ in expected]
        assert [event.data["token"] for event in events if event.name == "token"] == ["You said 'Hi'."]
        assert events[0].data["model"] == "echo"
        assert events[-1].data["usage"] == estimated(1, 4)


def test_the_first_chain_is_the_one_that_nobody_names(narrow: Service) -> None:
    for client in (
        post(narrow.port, "/langchain/stream", message="a b"),
        get(narrow.port, "/langchain/stream", input="a b"),
    ):
        assert whole(client) == [start("first"), ("token", {"token": "a b "}), done("first", 2, usage=estimated(1, 1))]


def test_a_run_of_a_chain_can_be_created_followed_and_read(chained: Service) -> None:
    created = create(chained.port, input="a b c", model="words")
    with get(chained.port, created["events_url"]) as client:
        assert text(list(client)) == "a b c "
    status = status_of(chained.port, created["status_url"])
    assert (status["state"], status["text"], status["model"]) == ("done", "a b c ", "words")
    with get(chained.port, created["events_url"], {"Last-Event-ID": f"{created['id']}-2"}) as client:
        assert text(list(client)) == "b c "


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("/langchain/stream", {"model": "nobody"}, f"langchain has no 'nobody', but {', '.join(NAMES)}."),
        ("/langchain/stream", {"model": "langchain/nobody"}, f"langchain has no 'nobody', but {', '.join(NAMES)}."),
        ("/chat/stream", {"model": "langchain/nobody"}, f"langchain has no 'nobody', but {', '.join(NAMES)}."),
        ("/echo/stream", {"model": "words"}, "This path is langchain/echo's; ask for 'words' elsewhere."),
        ("/chat/stream", {"model": "echo/x"}, "echo is a model: ask for langchain/echo."),
        (
            "/nobody/stream",
            {},
            "There is no provider 'nobody'. Ready: openai, openai_responses, anthropic, langchain, scripted, "
            f"{', '.join(NAMES)}.",
        ),
    ],
)
def test_a_chain_that_is_not_there_is_told_with_those_that_are(
    chained: Service, path: str, body: dict[str, str], detail: str
) -> None:
    assert refused(post(chained.port, path, message="Hi", **body)) == (404, "unknown_model", detail, "model")


@pytest.mark.parametrize(
    ("field", "value", "detail"),
    [
        *((field, value, "`{}` is for graphs; echo is a chain.") for field, value in
          (("thread_id", "t"), ("stream_mode", "values"), ("context", {}))),
        *((field, value, "`{}` is for models; a chain or graph has `config` and `context`.") for field, value in
          (("temperature", 0), ("max_tokens", 5), ("tools", []), ("provider_options", {}))),
        ("include_names", ["a"], "`{}` chooses among `events`; ask for these."),
        ("config", {"configurable": {"thread_id": "t"}}, "Send `thread_id` beside `config`, not in it."),
        ("config", {"configurable": {"__pregel_x": 1}}, "`config.configurable` cannot set '__pregel_x'."),
    ],
)  # fmt: skip
def test_what_a_chain_has_not_is_refused_before_it_runs(chained: Service, field: str, value: Any, detail: str) -> None:
    expected = (400, "invalid_request", detail.format(field), field)
    assert refused(post(chained.port, "/echo/stream", message="Hi", **{field: value})) == expected
    assert refused(post(chained.port, "/runs", message="Hi", model="echo", **{field: value})) == expected


def test_an_answer_to_a_chain_is_refused(chained: Service) -> None:
    detail = "`resume` is for graphs; echo is a chain."
    assert refused(post(chained.port, "/echo/stream", resume=True)) == (400, "invalid_request", detail, "resume")


def test_what_is_no_chain_stops_the_start_and_each_is_named() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    targets = {
        "a": "no_such_module:x",
        "b": "tests.chains:nowhere",
        "c": "tests.chains:nothing",
        "d": "tests.chains:echo",
    }
    chains = ",".join(f"{name}={target}" for name, target in targets.items())
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "service:app", "--port", "0"],
        cwd=ROOT,
        env={**clean, "SIDESTREAM_CHAINS": chains, "OPENAI_API_KEY": "k"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        1,
        "",
        "Bad settings:\n"
        "  langchain: a: cannot import no_such_module:x: ModuleNotFoundError: No module named 'no_such_module'\n"
        "  langchain: b: cannot import tests.chains:nowhere: AttributeError: module 'tests.chains' has no attribute "
        "'nowhere'\n"
        "  langchain: c: tests.chains:nothing is a int, not a chain\n",
    )


# --- What they are given ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "topic"),
    [
        ({"message": "cats"}, "cats"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "cats"}]}]}, "cats"),
        ({"input": "cats"}, "cats"),
        ({"input": {"topic": "cats"}}, "cats"),
        ({"input": {"topic": ["cats"], "other": 1}}, "['cats']"),
    ],
)
def test_a_prompt_is_filled_by_a_message_or_by_its_own_input(
    chained: Service, upstream: Upstream, body: dict[str, Any], topic: str
) -> None:
    says(upstream, "Hello")
    assert whole(post(chained.port, "/writer/stream", **body))[1:] == [
        ("token", {"token": "Hello"}),
        done("writer", 1),
    ]
    assert asked_for(upstream) == [("system", "Be brief."), ("user", f"Tell me of {topic}.")]


CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
SAID = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]


def test_a_conversation_is_given_as_messages(chained: Service, upstream: Upstream) -> None:
    for name, before in (
        ("model", [("system", "Be good.")]),
        ("conversing", [("system", "Be kind."), ("system", "Be good.")]),
    ):
        says(upstream, "So long")
        assert text_of(events_of(chained, name, messages=CONVERSATION, system="Be good.")) == "So long"
        assert asked_for(upstream) == [*before, *SAID]


def test_a_single_message_is_given_as_messages_to_who_takes_these(chained: Service, upstream: Upstream) -> None:
    says(upstream, "Hello")
    assert text_of(events_of(chained, "conversing")) == "Hello"
    assert asked_for(upstream) == [("system", "Be kind."), ("user", "Hi")]


def test_an_image_and_a_call_of_tools_are_part_of_a_conversation(chained: Service, upstream: Upstream) -> None:
    """A call says nothing beside it, as is usual."""
    image = {"type": "image_url", "image_url": {"url": "https://a.example/cat.png"}}
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    look = {"role": "user", "content": [{"type": "text", "text": "Who?"}, image]}
    calling = {"role": "assistant", "tool_calls": [call]}
    result = {"role": "tool", "content": "A cat.", "tool_call_id": "call_1"}
    for conversation in ([look], [look, calling, result]):
        says(upstream, "A cat.")
        assert text_of(events_of(chained, "model", messages=conversation)) == "A cat."
        exchange = upstream.request()
        assert [message["role"] for message in exchange.body["messages"]] == [turn["role"] for turn in conversation]
        assert exchange.body["messages"][0]["content"][1]["image_url"]["url"] == image["image_url"]["url"]


def test_who_takes_several_things_is_asked_by_its_own_input(chained: Service, upstream: Upstream) -> None:
    says(upstream, "Hm.")
    assert text_of(events_of(chained, "several", input={"one": "cats", "other": "dogs"})) == "Hm."
    assert asked_for(upstream) == [("user", "Compare cats with dogs.")]


def test_what_a_request_says_of_its_config_reaches_the_chain(chained: Service) -> None:
    config = {
        "configurable": {"my_user": 5},
        "tags": ["a", "b"],
        "metadata": {"user": "Ann"},
        "run_name": "it",
        "recursion_limit": 5,
        "max_concurrency": 2,
    }
    telling = {"given": "Hi", "tags": ["a", "b"], "metadata": {"user": "Ann"}, "configurable": {"my_user": 5}}
    assert events_of(chained, "telling", config=config)[0] == ("values", {"ns": [], "data": telling})
    [(_, first), *_] = events_of(chained, "telling", config=config, events=True)
    assert (first["data"]["name"], first["data"]["tags"]) == ("it", ["a", "b"])
    assert first["data"]["metadata"] | {"user": "Ann"} == first["data"]["metadata"]


def test_a_chain_may_change_what_it_was_given_and_ends_all_the_same(chained: Service) -> None:
    assert events_of(chained, "changing", input={"topic": "cats"}) == [
        ("token", {"token": "done"}),
        done("changing", 1, usage=estimated(4, 1)),
    ]


# --- What they yield -------------------------------------------------------------------------------------------------


def text_of(events: Told) -> str:
    assert events[-1][0] == "done", events
    return "".join(data["token"] for name, data in events if name == "token")


def recorded(recordings: list[Recording], *names: str) -> list[Recording]:
    return [recording for recording in recordings if recording.name in names]


SAME = recorded(CHAT_RECORDINGS, "text", "tools", "filtered", "empty")


@pytest.mark.parametrize("recording", SAME, ids=[recording.name for recording in SAME])
def test_messages_of_a_model_say_what_they_say_without_langchain(
    chained: Service, upstream: Upstream, recording: Recording
) -> None:
    upstream.stream(*recording.chunks)
    assert events_of(chained, "messages") == [*recording.told, ("done", {**recording.done, "model": "messages"})]
    upstream.request()


def test_a_call_that_was_cut_by_the_limit_stays_the_text_it_was(chained: Service, upstream: Upstream) -> None:
    [recording] = recorded(CHAT_RECORDINGS, "length-in-a-call")
    upstream.stream(*recording.chunks)
    call = {"id": "call_Ab1", "tool": "get_weather", "args": '{"city":"Pa'}
    end = {**recording.done, "model": "messages"}
    assert events_of(chained, "messages") == [*recording.told, ("tool_call", call), ("done", end)]
    upstream.request()


def test_usage_that_nobody_reported_is_estimated(chained: Service, upstream: Upstream) -> None:
    upstream.stream(ROLE, chat({"content": "Twelve chars"}), chat({}, "stop"), DONE)
    assert events_of(chained, "writer") == [
        ("token", {"token": "Twelve chars"}),
        done("writer", 1, usage=estimated(1, 3)),
    ]
    upstream.request()


RESPONSES = recorded(RESPONSES_RECORDINGS, "text", "reasoning", "tools", "filtered")


@pytest.mark.parametrize("recording", RESPONSES, ids=[recording.name for recording in RESPONSES])
def test_messages_of_the_responses_api_say_what_they_say_without_langchain(
    chained: Service, upstream: Upstream, recording: Recording
) -> None:
    """Reasoning, text and calls in a list of parts; and why it stopped, which that API says in another place."""
    upstream.stream(*recording.chunks)
    calls = [event for event in recording.told if event[0] == "tool_call"]  # which LangChain does not know are whole
    others = [event for event in recording.told if event[0] != "tool_call"]
    assert events_of(chained, "responder") == [*others, *calls, ("done", {**recording.done, "model": "responder"})]
    upstream.request()


def test_parts_of_a_vendors_own_are_text_and_reasoning(chained: Service) -> None:
    assert events_of(chained, "thinking") == [
        ("reasoning", {"reasoning": "Hm."}),
        ("token", {"token": "Yes."}),
        done("thinking", 2, usage=estimated(1, 2)),
    ]


def test_whole_messages_and_what_tools_answered_are_told(chained: Service) -> None:
    assert events_of(chained, "tools") == [
        ("token", {"token": "Let me look."}),
        called("call_1", "add", {"a": 2, "b": 3}),
        ("tool_result", {"id": "call_1", "tool": "add", "content": "5"}),
        done("tools", 1, usage=estimated(1, 3)),
    ]


def test_a_parsers_output_is_told_as_far_as_it_has_come(chained: Service, upstream: Upstream) -> None:
    says(upstream, '{"a"', ":1", ',"b":', "[2]}")
    *values, end = events_of(chained, "parsed")
    assert {name for name, _ in values} == {"values"}
    assert [data["data"] for _, data in values][-1] == {"a": 1, "b": [2]}
    assert end == done("parsed", 0)
    upstream.request()


def test_a_dict_that_grows_is_told_by_what_it_grows_by(chained: Service, upstream: Upstream) -> None:
    says(upstream, "It is", " blue.")
    *updates, end = events_of(chained, "retrieving", input="Why?")
    whole: dict[str, Any] = {}
    for name, data in updates:
        assert (name, data["ns"]) == ("updates", [])
        for key, value in data["data"].items():
            whole[key] = whole[key] + value if key in whole else value
    found = {"id": None, "metadata": {"source": "sky.txt"}, "page_content": "The sky is blue.", "type": "Document"}
    assert whole == {"question": "Why?", "context": [found], "answer": "It is blue."}
    assert [key for _, data in updates for key, value in data["data"].items() if value in ("It is", " blue.")] == [
        "answer"
    ] * 2
    assert end == done("retrieving", 0)
    upstream.request()


def test_two_models_at_once_are_both_told_and_counted(chained: Service, upstream: Upstream) -> None:
    says(upstream, "Hello")
    says(upstream, "Hello")
    *updates, end = events_of(chained, "both")
    assert {key for _, data in updates for key, value in data["data"].items() if value == "Hello"} == {"one", "other"}
    assert end == done("both", 0, usage={"input_tokens": 28, "output_tokens": 16, "cached_tokens": 12})
    assert [asked_for(upstream) for _ in range(2)] == [[("system", "Be brief."), ("user", "Tell me of Hi.")]] * 2


def test_anything_else_is_told_as_json(chained: Service) -> None:
    assert events_of(chained, "anything") == [
        ("values", {"ns": [], "data": {"a": [1], "exception": "ValueError", "large": str(2**70)}}),
        ("values", {"ns": [], "data": None}),
        ("values", {"ns": [], "data": ["AA=="]}),
        ("token", {"token": "text\u2028"}),
        done("anything", 1, usage=estimated(1, 2)),
    ]


def test_text_comes_as_the_model_writes_it(chained: Service, upstream: Upstream) -> None:
    for name in ("writer", "messages", "words_of_model"):
        upstream.play(Head(), ROLE, chat({"content": "one"}), PAUSE, chat({"content": "two"}), *OPENAI.ending, END)
        with post(chained.port, f"/{name}/stream", message="Hi") as client:
            assert client.until("token").data["token"].strip() == "one"
            upstream.request().release()
            assert client.until("token").data["token"].strip() == "two"
            assert client.until("done").data["finish_reason"] == "stop"


def test_what_only_streams_synchronously_comes_word_by_word_too(chained: Service, tmp_path: Path) -> None:
    gate, ended = gated(tmp_path)
    with post(chained.port, "/waiting/stream", input=ended) as client:
        assert client.until("token").data["token"] == "one "
        gate.open("wb").close()
        assert [(event.name, event.data.get("token")) for event in client] == [("token", "two "), ("done", None)]
    assert Path(ended["further"]).exists()


def gated(folder: Path) -> tuple[Path, dict[str, str]]:
    """Make a gate; return it, and the input that names it and the files that tell how far one came."""
    gate = folder / "gate"
    os.mkfifo(gate)
    return gate, {"gate": str(gate), "further": str(folder / "further"), "ended": str(folder / "ended")}


# --- What goes on in them --------------------------------------------------------------------------------------------


def goings_on(service: Service, name: str, **body: Any) -> list[dict[str, Any]]:
    *events, (end, data) = events_of(service, name, events=True, **body)
    assert (end, data["finish_reason"]) == ("done", "stop")
    assert {event for event, _ in events} <= {"events"}
    return [data["data"] for _, data in events]


def test_what_goes_on_in_a_chain_is_told_from_each_ones_start_to_its_end(chained: Service, upstream: Upstream) -> None:
    says(upstream, "He", "llo")
    events = goings_on(chained, "writer")
    runs: dict[str, list[str]] = {}
    for event in events:
        runs.setdefault(f"{event['name']} {event['run_id']}", []).append(event["event"])
    assert [run.split()[0] for run in runs] == [
        "RunnableSequence",
        "ChatPromptTemplate",
        "ChatOpenAI",
        "StrOutputParser",
    ]
    for steps, kind in zip(runs.values(), ("chain", "prompt", "chat_model", "parser"), strict=True):
        assert list(dict.fromkeys(steps)) == [
            step for step in (f"on_{kind}_start", f"on_{kind}_stream", f"on_{kind}_end") if step in steps
        ]
        assert (steps.count(f"on_{kind}_start"), steps.count(f"on_{kind}_end")) == (1, 1)
    chunks = [event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream"]
    assert [chunk["content"] for chunk in chunks if chunk["content"]] == ["He", "llo"]
    assert events[0]["data"] == {"input": "Hi"}
    assert (events[-1]["event"], events[-1]["data"]) == ("on_chain_end", {"output": "Hello"})
    upstream.request()


def test_usage_counts_where_only_events_are_asked_for(chained: Service, upstream: Upstream) -> None:
    says(upstream, "Hello")
    assert events_of(chained, "writer", events=True)[-1] == done("writer", 0)
    upstream.request()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"include_types": ["tool"]}, ["on_tool_start add", "on_tool_end add"]),
        ({"include_types": ["retriever"]}, ["on_retriever_start shelf", "on_retriever_end shelf"]),
        ({"include_names": ["add"]}, ["on_tool_start add", "on_tool_end add"]),
        ({"include_tags": ["sums"]}, ["on_tool_start add", "on_tool_end add"]),
        ({"include_tags": ["books"]}, ["on_retriever_start shelf", "on_retriever_end shelf"]),
        (
            {"include_names": ["add"], "include_tags": ["books"]},
            ["on_retriever_start shelf", "on_retriever_end shelf", "on_tool_start add", "on_tool_end add"],
        ),
        ({"include_types": ["nothing"]}, []),
    ],
)
def test_events_are_chosen_by_name_type_and_tag(chained: Service, chosen: dict[str, Any], expected: list[str]) -> None:
    events = goings_on(chained, "working", **chosen)
    assert sorted(f"{event['event']} {event['name']}" for event in events) == sorted(expected)


def test_events_are_chosen_in_a_query_too(chained: Service) -> None:
    query = {"input": "Hi", "events": "true", "include_names": "add,shelf", "include_types": "tool"}
    events = whole(get(chained.port, "/working/stream", **query))
    assert sorted({data["data"]["name"] for name, data in events if name == "events"}) == ["add", "shelf"]


def test_tools_and_retrievers_tell_what_they_were_given_and_found(chained: Service) -> None:
    by_event = {event["event"]: event["data"] for event in goings_on(chained, "working")}
    found = {"id": None, "metadata": {"source": "sky.txt"}, "page_content": "The sky is blue.", "type": "Document"}
    assert by_event["on_tool_start"] == {"input": {"a": 2, "b": 3}}
    assert by_event["on_tool_end"]["output"] == 5
    assert by_event["on_retriever_start"] == {"input": {"query": "Hi"}}
    assert by_event["on_retriever_end"]["output"] == [found]


# --- What ends them --------------------------------------------------------------------------------------------------

PHASES: dict[str, list[Any]] = {
    "before headers": [HOLD],
    "before tokens": [Head(), HOLD],
    "in mid-stream": [Head(), ROLE, chat({"content": "Here"}), HOLD],
}
# Chains by how many models they have at work at once.
STREAMING = {"writer": 1, "messages": 1, "both": 2, "retrieving": 1}


def underway(service: Service, upstream: Upstream, name: str, phase: str, **body: Any) -> tuple[Any, list[Exchange]]:
    """Ask a chain; return its client and its upstream's exchanges once they are in this phase."""
    for _ in range(STREAMING[name]):
        upstream.play(*PHASES[phase])
    client = post(service.port, f"/{name}/stream", input="Hi", **body)
    exchanges = [upstream.request() for _ in range(STREAMING[name])]
    for exchange in exchanges:
        exchange.wait_for_pause()
    client.read_on(lambda body: (b"Here" if phase == "in mid-stream" else b"start") in body)
    return client, exchanges


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("inside", [False, True], ids=["answer", "events"])
def test_who_leaves_takes_the_models_with_it(
    chained: Service, upstream: Upstream, name: str, phase: str, inside: bool
) -> None:
    """However many there are in the chain, and wherever."""
    client, exchanges = underway(chained, upstream, name, phase, events=inside)
    client.hang_up()
    assert [exchange.wait().ended for exchange in exchanges] == ["aborted"] * len(exchanges)


@pytest.mark.parametrize("name", STREAMING)
def test_a_stop_takes_the_models_with_it_and_is_told(chained: Service, upstream: Upstream, name: str) -> None:
    client, exchanges = underway(chained, upstream, name, "in mid-stream")
    stop(chained.port, client.head()[1]["content-location"])
    last = rest_of(client)[-1]
    assert (last.name, last.data["reason"]) == ("cancelled", "requested")
    assert [exchange.wait().ended for exchange in exchanges] == ["aborted"] * len(exchanges)


@pytest.mark.parametrize(("limit", "code"), [("run_timeout", "run_timeout"), ("idle_timeout", "idle_timeout")])
def test_a_deadline_takes_the_models_with_it_and_is_told(
    chained: Service, upstream: Upstream, limit: str, code: str
) -> None:
    client, exchanges = underway(chained, upstream, "writer", "in mid-stream", **{limit: 0.3})
    last = rest_of(client)[-1]
    assert (last.name, last.data["code"], last.data["usage"]) == ("error", code, estimated(1, 1))
    assert exchanges[0].wait().ended == "aborted"


def test_a_chain_that_failed_takes_the_models_beside_it_with_it(chained: Service, upstream: Upstream) -> None:
    upstream.play(*PHASES["in mid-stream"])
    upstream.play(Head(), ROLE, chat({"content": "There"}), PAUSE, FIN)
    with post(chained.port, "/both/stream", input="Hi") as client:
        left, right = upstream.request(), upstream.request()
        client.read_on(lambda body: b"Here" in body and b"There" in body)
        right.release()
        left.release()
        assert client.until("error").data["code"] == "graph_failed"
    assert {left.wait().ended, right.wait().ended} == {"aborted", "completed"}


@pytest.mark.parametrize("how", ["leaves", "stops", "deadline"])
def test_a_chain_that_blocks_ends_at_the_next_thing_it_yields_and_its_viewer_is_told_before(
    chained: Service, tmp_path: Path, how: str
) -> None:
    gate, ended = gated(tmp_path)
    limits = {"run_timeout": 0.3} if how == "deadline" else {}
    with post(chained.port, "/waiting/stream", input=ended, **limits) as client:
        assert client.until("token").data["token"] == "one "
        path = client.head()[1]["content-location"]
        if how == "stops":
            stop(chained.port, path)
            assert client.until("cancelled").data["reason"] == "requested"
        elif how == "deadline":
            assert client.until("error").data["code"] == "run_timeout"
    eventually(lambda: status_of(chained.port, path)["ending"])
    assert not Path(ended["ended"]).exists()
    gate.open("wb").close()
    eventually(Path(ended["ended"]).exists)
    assert not Path(ended["further"]).exists()


def test_a_model_in_a_chain_that_blocks_is_stopped_with_its_next_token(chained: Service, upstream: Upstream) -> None:
    upstream.play(Head(), ROLE, chat({"content": "Here"}), PAUSE, Repeat(chat({"content": "There"}), 0.02))
    client = post(chained.port, "/words_of_model/stream", message="Hi")
    exchange = upstream.request()
    client.read_on(lambda body: b"Here" in body)
    client.hang_up()
    exchange.release()
    assert exchange.wait().ended == "aborted"


@pytest.mark.parametrize("name", ["slow", "slow_in_sequence"])
def test_an_endless_chain_ends_with_its_viewer(chained: Service, tmp_path: Path, name: str) -> None:
    ended = tmp_path / "ended"
    with post(chained.port, f"/{name}/stream", input={"ended": str(ended)}) as client:
        assert [client.until("token").data["token"][:5] for _ in range(3)] == ["word "] * 3
    eventually(ended.exists)


def test_who_blocks_holds_up_its_like_and_nobody_else(narrow: Service) -> None:
    """With one thread, the second waits for it; what is asynchronous does not."""
    with post(narrow.port, "/slow/stream", message="Hi") as slow:
        slow.until("token")
        with post(narrow.port, "/first/stream", message="a b") as second:
            second.until("start")
            assert text_of(events_of(narrow, "async", message="x y")) == "x y "
            slow.until("token")
            assert b"token" not in second.body
            slow.hang_up()
            assert text(list(second)) == "a b "


def test_who_waits_for_a_thread_can_be_stopped_and_never_begins(narrow: Service, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with post(narrow.port, "/slow/stream", message="Hi") as slow:
        slow.until("token")
        with post(narrow.port, "/slow/stream", input={"ended": str(ended)}) as second:
            second.until("start")
            stop(narrow.port, second.head()[1]["content-location"])
            assert second.until("cancelled").data["reason"] == "requested"
    assert text_of(events_of(narrow, "first")) == "Hi "
    assert not ended.exists()


# --- What goes wrong -------------------------------------------------------------------------------------------------


def error(service: Service, name: str, **body: Any) -> tuple[str, str]:
    """Return the code and text that a chain ends in; check that it may not be retried."""
    *_, (end, data) = events_of(service, name, **body)
    assert (end, data["done"], data["retryable"]) == ("error", True, False)
    return data["code"], data["error"]


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        (
            "writer",
            {"subject": "cats"},
            "Input to ChatPromptTemplate is missing variables {'topic'}. Expected: ['topic'] Received: ['subject']",
        ),
        ("several", "cats", "Expected mapping type as input to ChatPromptTemplate. Received <class 'str'>."),
        ("model", 5, "Invalid input type <class 'int'>. Must be a PromptValue, str, or list of BaseMessages."),
        ("model", [{"text": "cats"}], "Message dict must contain 'role' and 'content' keys, got {'text': 'cats'}"),
        ("conversing", {"messages": "cats"}, "variable messages should be a list of base messages, got cats of type"),
        (
            "words_of_model",
            {},
            "Input to ChatPromptTemplate is missing variables {'topic'}. Expected: ['topic'] Received: []",
        ),
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["answer", "events"])
def test_an_input_that_is_refused_is_told_in_the_words_of_who_refuses_it(
    chained: Service, upstream: Upstream, name: str, given: Any, text: str, inside: bool
) -> None:
    if name == "words_of_model" and inside:
        return  # it cannot be looked into
    code, told_text = error(chained, name, input=given, events=inside)
    assert code == "invalid_input"
    assert told_text.startswith(f"The input was refused: {text}")


@pytest.mark.parametrize(
    ("name", "kind", "before"),
    [
        ("failing", "ValueError", ""),
        ("failing_async", "LookupError", ""),
        ("failing_words", "ValueError", "Here "),
        ("failing_words_async", "ValueError", "Here "),
    ],
)
def test_a_chain_that_raises_has_failed_and_its_words_stay_with_it(
    chained: Service, name: str, kind: str, before: str
) -> None:
    secret = "sk-secret-1234567890"
    events = whole(post(chained.port, f"/{name}/stream", message=secret))
    assert "".join(data["token"] for event, data in events if event == "token") == before
    assert (events[-1][0], events[-1][1]["code"], events[-1][1]["error"]) == (
        "error",
        "graph_failed",
        f"The chain {name!r} failed: {kind}.",
    )
    assert f"The chain {name!r} failed: {kind}" in chained.log
    assert secret not in chained.log


def test_chains_that_fail_side_by_side_are_one_failure_and_none_of_their_words_is_logged(chained: Service) -> None:
    for _ in range(5):
        code, told_text = error(chained, "failing_both", message="sk-secret-1234567890")
        assert (code, told_text.split(": ")[0]) == ("graph_failed", "The chain 'failing_both' failed")
    assert text_of(events_of(chained, "echo")) == "You said 'Hi'."
    assert "sk-secret" not in chained.log


@pytest.mark.parametrize("name", ["leaving", "leaving_async", "panicking"])
def test_a_chain_that_would_end_the_process_ends_its_own_run(chained: Service, name: str) -> None:
    assert error(chained, name)[0] == "graph_failed"
    assert text_of(events_of(chained, "echo")) == "You said 'Hi'."


def test_the_only_thread_survives_what_is_done_in_it(narrow: Service) -> None:
    for _ in range(3):
        assert error(narrow, "leaving")[0] == "graph_failed"
        assert error(narrow, "panic", idle_timeout=2)[0] == "graph_failed"
    assert text_of(events_of(narrow, "first")) == "Hi "


ANSWERS = [
    (400, "The upstream rejected the request (HTTP 400)."),
    (401, "The upstream refused our credentials (HTTP 401)."),
    (429, "The upstream is rate limiting us (HTTP 429)."),
    (500, "The upstream is unavailable (HTTP 500)."),
]


@pytest.mark.parametrize(("status", "why"), ANSWERS)
@pytest.mark.parametrize("name", ["writer", "words_of_model"])
def test_what_a_model_was_answered_is_told_without_a_word_of_it(
    chained: Service, upstream: Upstream, name: str, status: int, why: str
) -> None:
    body = OPENAI.error_body(f"Incorrect key provided: {OPENAI_KEY}, for a prompt about cats", code="invalid_api_key")
    upstream.refuse(status, body)
    assert error(chained, name) == ("graph_failed", f"The chain {name!r} failed: {why}")
    upstream.request()
    assert OPENAI_KEY not in chained.log
    assert "about cats" not in chained.log


@pytest.mark.parametrize("cut", [FIN, RST])
@pytest.mark.parametrize("before", [(), (Head(),), (Head(), ROLE, chat({"content": "Here"}))], ids=["", "head", "text"])
def test_a_model_that_breaks_off_has_failed_the_chain(
    chained: Service, upstream: Upstream, cut: Any, before: tuple[Any, ...]
) -> None:
    upstream.play(*before, cut)
    events = events_of(chained, "writer")
    assert [name for name, _ in events] == [*(["token"] if len(before) == 3 else []), "error"]
    assert events[-1][1]["code"] == "graph_failed"
    assert events[-1][1]["error"].startswith("The chain 'writer' failed: ")
    upstream.request()


def test_a_model_that_fails_in_mid_stream_has_failed_the_chain(chained: Service, upstream: Upstream) -> None:
    for failure in OPENAI.errors.values():
        upstream.stream(ROLE, chat({"content": "Here"}), failure)
        events = events_of(chained, "messages")
        assert (events[0], events[-1][0], events[-1][1]["code"]) == (
            ("token", {"token": "Here"}),
            "error",
            "graph_failed",
        )
        upstream.request()


def test_all_of_this_left_nothing_behind(chained: Service, narrow: Service) -> None:
    """Runs last in its module: nobody is being served, and nothing was an error of the service's own."""
    for service in (chained, narrow):
        assert "internal error" not in service.log
        assert "Traceback" not in service.log
        assert "secret" not in service.log
        assert OPENAI_KEY not in service.log


def test_what_streams_only_synchronously_tells_no_events(chained: Service) -> None:
    status, code, _, field = refused(post(chained.port, "/words/stream", message="a b", events=True))
    assert (status, code, field) == (400, "invalid_request", "events")
