"""The Vercel AI SDK itself, in Node: chats without a screen, of its versions 5, 6 and 7, against a real service.

A chat is a subclass of `AbstractChat` with a plain object for its state, as the packages for React and others make one.
"""

import json
import os
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from streaming.events import Token, ToolResult
from wires import vercel
from wires.vercel_request import CONTINUED

from .client import DEADLINE, get
from .conftest import ROOT, Service, Start
from .folds import GOLDEN, RUNS, done, folded, start
from .node import BIN, NPM, Node, told
from .proxy import Cut, How, Proxy
from .recorded import call as call_chunk
from .recorded import chat, chat_end, chat_usage
from .served_graphs import answer
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.proxy", "tests.served_graphs", "tests.replicas"]

VERSIONS = ["ai", "ai5", "ai6"]
each_version = pytest.mark.parametrize("version", VERSIONS)
each_way = pytest.mark.parametrize("how", ["FIN", "RST"])
STOP = [chat({}, "stop"), b"data: [DONE]\n\n", END]

CHAT = """
const [, url, version, json] = process.argv, input = JSON.parse(json ?? "null");
const sdk = await import(version ?? "ai");
const { AbstractChat, DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } = sdk;
class Chat extends AbstractChat {
  constructor({ messages = [], ...init }) {
    const state = {
      status: "ready", error: undefined, messages, snapshot: structuredClone,
      pushMessage: (message) => { state.messages = state.messages.concat(message); },
      popMessage: () => { state.messages = state.messages.slice(0, -1); },
      replaceMessage: (index, message) => { state.messages = state.messages.with(index, structuredClone(message)); },
    };
    const transport = new DefaultChatTransport({ api: `${url}ui/chat`, body: input?.body });
    super({ transport, onError: () => {}, ...init, state });
  }
}
const settled = async (chat) => {  // a continuation is begun without being waited for
  do await new Promise((go) => setTimeout(go, 5)); while (["submitted", "streaming"].includes(chat.status));
};
const text = (message) => message.parts.filter(({ type }) => type === "text").map(({ text }) => text).join("|");
const shown = (chat) => tell(chat.status, chat.error?.message ?? null, chat.messages.map(({ role, parts }) =>
  [role, parts.map(({ providerMetadata, callProviderMetadata, resultProviderMetadata, ...part }) => part)]));
const seen = (message) => new Promise((go) => setTimeout(function look() {
  message() ? go() : setTimeout(look, 5);
}));
"""
ASK = """
const chat = new Chat({ id: "one" });
await chat.sendMessage({ text: "Hi" });
shown(chat);
"""


def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}/"


def run(service: Service | Proxy, script: str, version: str = "ai", **value: Any) -> list[Any]:
    """Run a script with a chat to its end; `body` goes along with each of the chat's requests."""
    return told(CHAT + script, where(service), version, json.dumps(value))


def where(service: Service | Proxy) -> str:
    return service.url if isinstance(service, Proxy) else url(service)


def script(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "scripted/custom", "provider_options": {"script": steps}, **fields}


def said(text: str, state: str = "done") -> dict[str, Any]:
    return {"type": "text", "text": text, "state": state}


USER = ["user", [{"type": "text", "text": "Hi"}]]
STEP = {"type": "step-start"}


# --- What each version makes of an answer ----------------------------------------------------------------------------


def test_a_chat_gets_the_embedded_models_answer(service: Service) -> None:
    ask = ASK.replace("Hi", "What is the capital of France?") + "tell(chat.messages[1].metadata);"
    (status, error, messages), (metadata,) = run(service, ask, body={"model": "local"})
    assert (status, error) == ("ready", None)
    step, answer = messages[1][1]
    assert step == STEP
    assert "Paris" in answer["text"]
    assert answer["state"] == "done"
    assert (metadata["provider"], metadata["finishReason"]) == ("local", "stop")
    usage = metadata["usage"]
    assert 0 < usage["inputTokens"] < usage["inputTokens"] + usage["outputTokens"] == usage["totalTokens"]
    assert 0 < metadata["ttft_ms"] <= metadata["latency_ms"]


WEATHER = {"tool": "weather", "args": {"city": "Paris"}, "result": {"sky": "clear"}}


@each_version
def test_a_chat_gets_thoughts_text_a_tools_answer_and_an_error(service: Service, version: str) -> None:
    steps = [{"think": "Hm."}, {"say": "I look."}, {"call": WEATHER}, {"say": "It is"}, {"fail": "upstream_incomplete"}]
    ((status, error, messages),) = run(service, ASK, version, body=script(*steps))
    assert (status, error) == ("error", "The script says that the upstream fails here.")
    user, (role, parts) = messages
    assert (user, role) == (USER, "assistant")
    assert parts[1].pop("id", "0") == "0"
    assert parts == [
        STEP,
        {"type": "reasoning", "text": "Hm.", "state": "done"},
        said("I look."),
        {
            "type": "tool-weather",
            "toolCallId": "call_1",
            "state": "output-available",
            "input": {"city": "Paris"},
            "output": {"sky": "clear"},
            "providerExecuted": True,
        },
        STEP,
        said("It is"),
    ]


@each_version
def test_a_chat_is_told_of_an_error_before_anything_was_said(service: Service, version: str) -> None:
    ask = ASK.replace('id: "one"', "onData: (part) => tell(part)")
    (part,), ending = run(service, ask, version, body=script({"fail": "upstream_auth"}))
    assert part["type"] == "data-error"
    assert (part["data"]["code"], part["data"]["retryable"]) == ("upstream_auth", False)
    assert ending == ["error", "The script says that the upstream fails here.", [USER]]


@pytest.mark.parametrize(
    ("version", "body", "text"),
    [
        ("ai", {"model": "no/such"}, "There is no provider 'no'. Ready: local, scripted."),
        ("ai6", {"top_p": 9}, "Bad request: Expected `float` <= 1.0 - at `$.top_p`."),
        ("ai5", {"temperature": 9}, "Bad request: Expected `float` <= 2.0 - at `$.temperature`."),
    ],
    ids=["no-provider", "one-option", "another"],
)
def test_a_chat_shows_what_is_wrong_with_a_request(
    service: Service, version: str, body: dict[str, Any], text: str
) -> None:
    assert run(service, ASK, version, body=body) == [["error", text, [USER]]]


# --- Who stops, and who comes back -----------------------------------------------------------------------------------

OPENAI = {"model": "openai/gpt-4o-mini"}


def count(upstream: Upstream) -> None:
    """Let the upstream say One, two and three, each when it is told to, and end well."""
    one, two, three = (chat({"content": word}) for word in ("One", " two", " three"))
    upstream.play(Head(), one, PAUSE, two, PAUSE, three, *STOP)


BEGIN = """
const chat = new Chat({ id: "one" }), sending = chat.sendMessage({ text: "Hi" });
await seen(() => chat.messages[1] && text(chat.messages[1]) === "One");
tell("One");
"""


@pytest.mark.replicated
@each_version
def test_the_upstream_sees_a_chats_stop(relay: Service, upstream: Upstream, version: str) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    stop = BEGIN + "await chat.stop(); await sending; shown(chat);"
    assert run(relay, stop, version, body=OPENAI)[1:] == [
        ["ready", None, [USER, ["assistant", [STEP, said("One", "streaming")]]]]
    ]
    assert upstream.request().wait().ended == "aborted"


@pytest.mark.replicated
def test_a_chat_is_stopped_by_its_id_although_it_would_linger(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    stop = "await fetch(`${url}ui/chat/one/stream`, { method: 'DELETE' }).then(({ status }) => tell(status));"
    ending = "await sending; shown(chat); tell(chat.messages[1].metadata.finishReason);"
    assert run(relay, BEGIN + stop + ending, body={**OPENAI, "linger": 15}) == [
        ["One"],
        [204],
        ["ready", None, [USER, ["assistant", [STEP, said("One")]]]],
        ["cancelled"],
    ]
    assert upstream.request().wait().ended == "aborted"


def went_on(upstream: Upstream, node: Node) -> None:
    """Let the upstream say the rest, word by word, to a client who tells of each."""
    exchange = upstream.request()
    for word in ("One two", "One two three"):
        exchange.release()
        assert node.next() == [word]
    assert exchange.wait().ended == "completed"


WORDS = """
for (const word of ["One two", "One two three"]) {
  await seen(() => again.messages[1] && text(again.messages[1]) === word);
  tell(word);
}
await resuming; shown(again);
await again.resumeStream(); tell(again.status, again.messages.length);
"""


@pytest.mark.replicated
@pytest.mark.parametrize(("version", "how"), [("ai", "FIN"), ("ai5", "RST"), ("ai6", "FIN")])
def test_a_page_that_is_opened_again_goes_on_with_the_answer(
    proxy: Proxy, upstream: Upstream, version: str, how: How
) -> None:
    count(upstream)
    reload = (
        BEGIN
        + """
    await sending; tell(chat.status);
    const again = new Chat({ id: "one", messages: chat.messages.slice(0, 1) }), resuming = again.resumeStream();
    """
    )
    body = json.dumps({"body": {**OPENAI, "linger": 15}})
    with Node(CHAT + reload + WORDS, proxy.url, version, body) as node:
        assert node.next() == ["One"]
        proxy.cut(how)
        assert node.next() == ["error"]
        went_on(upstream, node)
        assert node.next() == ["ready", None, [USER, ["assistant", [STEP, said("One two three")]]]]
        assert node.next() == ["ready", 2], "there was nothing more to go on with"
    assert proxy.records == ["POST /ui/chat", *["GET /ui/chat/one/stream"] * 2]


@pytest.mark.replicated
def test_a_chat_that_was_cut_off_goes_on_in_its_place(proxy: Proxy, upstream: Upstream) -> None:
    count(upstream)
    script = BEGIN + "await sending; tell(chat.status); const again = chat, resuming = chat.resumeStream();" + WORDS
    with Node(CHAT + script, proxy.url, "ai", json.dumps({"body": {**OPENAI, "linger": 15}})) as node:
        assert node.next() == ["One"]
        proxy.cut("RST")
        assert node.next() == ["error"]
        went_on(upstream, node)
        assert node.next() == ["ready", None, [USER, ["assistant", [STEP, said("One two three")]]]]
        assert node.next() == ["ready", 2]


# --- WorkflowChatTransport -------------------------------------------------------------------------------------------

WORKFLOW = """
const { WorkflowChatTransport } = await import("@ai-sdk/workflow/client");
console.error = (what) => tell(what);
const ends = [], runs = [];
const transport = new WorkflowChatTransport({
  api: `${url}ui/chat`,
  onChatSendMessage: ({ headers }) => { runs.push(headers.get("x-workflow-run-id")); },
  onChatEnd: ({ chunkIndex }) => { ends.push(chunkIndex); },
});
"""
ASK_WORKFLOW = (
    WORKFLOW
    + """
const chat = new Chat({ id: "one", transport }), sending = chat.sendMessage({ text: "Hi" }, { body: input.body });
await seen(() => chat.messages[1] && text(chat.messages[1]).startsWith("One"));
tell("One"); await sending; shown(chat); tell(ends);
"""
)
NUMBERS = " ".join(["One", *map(str, range(300))])
CHUNKS = 301 + len(["start", "start-step", "text-start", "text-end", "finish-step", "message-metadata", "finish"])


@pytest.mark.replicated
@each_way
def test_a_workflows_transport_loses_nothing_by_any_cut(proxy: Proxy, how: How) -> None:
    proxy.do("POST /ui/chat", Cut(3000, how))
    proxy.do("GET /ui/chat/*/stream", *[Cut(4000, how)] * 2)  # of one more it would despair
    body = script({"say": NUMBERS, "every": 0.002}, linger=15)
    begun, *complaints, shown, ends = run(proxy, ASK_WORKFLOW, body=body)
    assert begun == ["One"]
    assert shown == ["ready", None, [USER, ["assistant", [STEP, said(NUMBERS)]]]]
    assert ends == [[CHUNKS]]
    assert complaints == [["Error in chat POST stream"], *[["Error in chat GET reconnectToStream"]] * 2]
    assert proxy.records == ["POST /ui/chat", *["GET /ui/chat/*/stream"] * 3]


def test_a_workflows_transport_that_did_not_linger_is_told_that_its_run_was_stopped(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    with Node(CHAT + ASK_WORKFLOW, proxy.url, "ai", json.dumps({"body": OPENAI})) as node:
        assert node.next() == ["One"]
        proxy.cut("RST")
        assert node.next() == ["Error in chat POST stream"]
        assert node.next() == ["error", "The run was stopped.", [USER, ["assistant", [STEP, said("One")]]]]
        assert node.next() == [[]], "nor does it come again"


def test_a_workflows_transport_gets_the_last_chunks_of_a_run_that_is_over(service: Service) -> None:
    again = (
        ASK_WORKFLOW
        + """
    const rest = await transport.reconnectToStream({ chatId: runs[0], startIndex: -3 });
    for await (const { type } of rest) tell(type);
    tell(ends);
    """
    )
    told = run(service, again, body=script({"say": "One two"}))
    assert told[3:] == [["finish-step"], ["message-metadata"], ["finish"], [[9, 9]]]


def test_a_workflows_transport_is_told_of_a_run_that_there_is_not(service: Service) -> None:
    script = (
        WORKFLOW
        + """
    const chat = new Chat({ id: "none", transport });
    await chat.resumeStream(); tell(chat.status, chat.error.message);
    """
    )
    assert run(service, script) == [
        ["error", "Failed to fetch chat: 404 There is no such run, or it was over and is no longer kept."]
    ]


# --- Tools -----------------------------------------------------------------------------------------------------------

CLIENTS_TOOLS = """
const chat = new Chat({
  id: "tools",
  sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
  onToolCall({ toolCall: { toolName: tool, toolCallId, input } }) {
    const add = version === "ai5" ? chat.addToolResult : chat.addToolOutput;
    const failed = { state: "output-error", errorText: "No such zone." }, output = { sky: `clear in ${input.city}` };
    add({ tool, toolCallId, ...(tool === "time" ? failed : { output }) });
  },
});
await chat.sendMessage({ text: "Hi" });
await seen(() => chat.status === "ready" && text(chat.lastMessage) === "It is clear.");
shown(chat); tell(chat.messages[1].id === chat.messages[1].metadata.run);
"""


@each_version
def test_a_chats_own_tools_are_asked_and_their_answers_sent(relay: Service, upstream: Upstream, version: str) -> None:
    first, second = ("call_A", "weather", '{"city":"Paris"}'), ("call_B", "time", '{"zone":"CET"}')
    calls = [
        call_chunk(n, "", call_id, name) + call_chunk(n, args)
        for n, (call_id, name, args) in enumerate((first, second))
    ]
    upstream.stream(chat({"role": "assistant", "content": None}), *calls, *chat_end("tool_calls", chat_usage(9, 9)))
    upstream.stream(*answer("It is", " clear."))
    tools = [{"type": "function", "function": {"name": name}} for name in ("weather", "time")]
    (status, error, messages), (keeps_its_id,) = run(relay, CLIENTS_TOOLS, version, body={**OPENAI, "tools": tools})
    assert (status, error, len(messages)) == ("ready", None, 2)
    assert [part["type"] for part in messages[1][1]] == [
        "step-start",
        "tool-weather",
        "tool-time",
        "step-start",
        "text",
    ]
    assert not keeps_its_id, "the second answer goes on with the first one's message, and is another run"
    upstream.request()
    functions = [
        {"id": one, "type": "function", "function": {"name": name, "arguments": args}}
        for one, name, args in (first, second)
    ]
    _, called, *answers = upstream.request().body["messages"]
    assert (called["role"], called["tool_calls"]) == ("assistant", functions)
    assert answers == [
        {"role": "tool", "tool_call_id": "call_A", "content": '{"sky":"clear in Paris"}'},
        {"role": "tool", "tool_call_id": "call_B", "content": "No such zone."},
    ]


# --- Graphs ----------------------------------------------------------------------------------------------------------

GRAPH = """
const parts = [];
const chat = new Chat({
  id: "graph",
  onData: ({ type, data }) => { parts.push([type, data]); },
  onToolCall: ({ toolCall }) => { tell("asked for", toolCall); },
  sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
});
await chat.sendMessage({ text: "Hi" });
tell(parts);
"""


@each_version
def test_a_graphs_own_tools_are_none_of_the_chats(graphs: Service, upstream: Upstream, version: str) -> None:
    asks = call_chunk(0, "", "call_A", "weather") + call_chunk(0, '{"city":"Paris"}')
    upstream.stream(chat({"role": "assistant", "content": None}), asks, *chat_end("tool_calls", chat_usage(9, 9)))
    upstream.stream(*answer("It is", " sunny."))
    body = {"model": "langgraph/agent"}
    (parts,), (status, error, messages) = run(graphs, GRAPH + "shown(chat);", version, body=body)
    assert [[name, *data["data"]] for name, data in parts] == [
        ["data-updates", "model"],
        ["data-updates", "tools"],
        ["data-updates", "model"],
    ]
    assert (status, error) == ("ready", None)
    assert [part for part in messages[1][1] if part["type"] != "data-updates"] == [
        STEP,
        {
            "type": "tool-weather",
            "toolCallId": "call_A",
            "state": "output-available",
            "input": {"city": "Paris"},
            "output": "Sunny in Paris.",
            "providerExecuted": True,
        },
        STEP,
        said("It is sunny."),
    ]
    assert [upstream.request().path for _ in range(2)] == ["/v1/chat/completions"] * 2


@each_version
def test_a_graphs_events_are_data_and_its_state_is_the_newest(
    graphs: Service, upstream: Upstream, version: str
) -> None:
    upstream.stream(*answer("Yes."))
    body = {"model": "langgraph/telling", "stream_mode": ["values", "custom", "messages"]}
    (parts,), (status, error, messages) = run(graphs, GRAPH + "shown(chat);", version, body=body)
    custom = [["data-custom", {"ns": [], "data": {"progress": n}}] for n in range(3)]
    assert [part for part in parts if part[0] == "data-custom"] == custom
    assert [data["data"]["been"] for name, data in parts if name == "data-values"] == [
        [],
        ["speak"],
        ["speak", "write"],
    ]
    (values,) = [part for part in messages[1][1] if part["type"] == "data-values"]
    assert values["data"]["data"]["been"] == ["speak", "write"]
    assert (status, error) == ("ready", None)


@each_version
def test_a_graph_that_waits_goes_on_with_a_persons_answer_in_the_same_message(graphs: Service, version: str) -> None:
    resume = (
        GRAPH
        + """
    const { thread_id } = chat.messages[1].metadata;
    await chat.sendMessage(undefined, { body: { thread_id, resume: "yes" } });
    tell(chat.status, chat.messages.length, text(chat.messages[1]), chat.messages[1].metadata.finishReason);
    """
    )
    (parts,), ending = run(graphs, resume, version, body={"model": "langgraph/asking"})
    ((name, interrupt),) = parts
    assert (name, interrupt["value"]) == ("data-interrupt", {"question": "Shall I?"})
    assert ending == ["ready", 2, "You said yes.", "stop"]


def test_a_thread_is_sent_what_it_does_not_know(graphs: Service, upstream: Upstream) -> None:
    again = (
        GRAPH
        + """
    const { thread_id } = chat.messages[1].metadata;
    await chat.sendMessage({ text: "And?" }, { body: { thread_id } });
    tell(chat.messages.map(text));
    """
    )
    for words in ("One.", "Two."):
        upstream.stream(*answer(words))
    _, (texts,) = run(graphs, again, body={"model": "langgraph/remembering"})
    assert texts == ["Hi", "One.", "And?", "Two."]
    upstream.request()
    assert [one["content"] for one in upstream.request().body["messages"]] == ["Hi", "One.", "And?"]


# --- The line --------------------------------------------------------------------------------------------------------


def test_a_chat_that_stands_in_line_is_told_its_place(start_service: Start) -> None:
    service = start_service(SIDESTREAM_MAX_RUNS="1")
    ask = ASK.replace('id: "one"', "onData: ({ type, data }) => tell(type, data)")
    with get(service.port, "/scripted/stream", message="Hi", model="scripted/silent") as first:
        first.until("start")
        body = json.dumps({"body": script({"say": "Hello"})})
        with Node(CHAT + ask, url(service), "ai", body) as node:
            assert node.next() == ["data-queued", {"position": 1}]
            first.hang_up()
            assert node.next() == ["ready", None, [USER, ["assistant", [STEP, said("Hello")]]]]


# --- What is sent, held against the SDK's own schemas ----------------------------------------------------------------

READ = """
const { readFile, readdir } = await import("node:fs/promises");
const { parseJsonEventStream, readUIMessageStream, uiMessageChunkSchema: schema } = sdk;
for (const file of (await readdir(url)).sort()) {
  const chunks = [], errors = [];
  const parsed = parseJsonEventStream({ stream: new Blob([await readFile(`${url}/${file}`)]).stream(), schema });
  for await (const { success, value, error } of parsed) success ? chunks.push(value) : errors.push(`${error}`);
  let message;
  const stream = ReadableStream.from(chunks.filter(({ type }) => type !== "error"));
  for await (message of readUIMessageStream({ stream, terminateOnError: true, onError: (e) => errors.push(`${e}`) }));
  const open = message?.parts.filter(({ state }) => state === "streaming").length ?? 0;
  tell(file.replace(".txt", ""), chunks.length, open, errors);
}
"""


@each_version
def test_the_sdk_takes_every_chunk_of_every_run(version: str) -> None:
    """And reads a message of them of which nothing stays open."""
    chunks = {name: (GOLDEN / "vercel" / f"{name}.txt").read_bytes().count(b"\n\n") - 1 for name in RUNS}
    read = told(CHAT + READ, str(GOLDEN / "vercel"), version)
    assert {name: rest for name, *rest in read} == {name: [number, 0, []] for name, number in chunks.items()}


ANSWERED = """
const called = { toolCallId: "call_0", state: "input-available", input: {}, providerExecuted: true };
const part = { type: "tool-weather", ...called };
const messages = [{ id: "u", role: "user", parts: [] }, { id: "a", role: "assistant", parts: [part] }];
for (const [name, has] of [["told", 2], ["again", 2], ["again", 1]]) {
  const fetch = async () => new Response(input[name], { headers: { "content-type": "text/event-stream" } });
  const chat = new Chat({ messages: messages.slice(0, has), transport: new DefaultChatTransport({ fetch }) });
  await (name === "again" ? chat.resumeStream() : chat.sendMessage());
  const calls = chat.lastMessage.parts.filter(({ type }) => type === "tool-weather");
  tell(chat.status, calls.map(({ state, output }) => [state, output]), text(chat.lastMessage));
}
"""


@each_version
def test_a_call_of_an_earlier_answer_is_answered_in_its_message(version: str) -> None:
    """Also where the page that goes on is a new one, whether the message was kept or not."""
    run: Any = SimpleNamespace(about={CONTINUED: {"calls": ["call_0"]}})
    events = [start(), ToolResult("call_0", "weather", "clear"), Token("It is clear."), done()]
    told_as, again = (folded(form(run), events).decode() for form in (vercel.form, vercel.replay))
    streams = json.dumps({"told": told_as, "again": again})
    answered = ["ready", [["output-available", "clear"]], "It is clear."]
    assert told(CHAT + ANSWERED, "http://127.0.0.1/", version, streams) == [answered] * 3


# --- The example -----------------------------------------------------------------------------------------------------


def test_the_example_is_answered_by_the_embedded_model(service: Service) -> None:
    source = (ROOT / "examples" / "vercel_chat.mjs").read_text()
    environ = {**os.environ, "SIDESTREAM_URL": f"http://127.0.0.1:{service.port}"}
    command = [BIN / "node", "--input-type=module", "-e", source]
    done = subprocess.run(command, cwd=NPM, env=environ, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.split("run: ")[:2]
    assert "Paris" in first
    assert "Rome" in second
    assert done.stdout.count("finishReason: 'stop'") == 2
