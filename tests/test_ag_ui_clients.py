"""AG-UI's own client, in Node, against a real service: an `HttpAgent`, its messages and its state after each run."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Service
from .folds import GOLDEN, RUNS
from .node import BIN, NPM, told
from .recorded import call as call_chunk
from .recorded import chat, chat_end, chat_usage
from .served_graphs import answer
from .test_ag_ui_wire import GIVEN, any_run, bytes_of
from .upstream import HOLD, RST, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]

# Whatever the client complains of is told, and no test expects it.
AGENT = """
const { HttpAgent, buildResumeArray } = await import("@ag-ui/client");
const [, url, json] = process.argv, input = JSON.parse(json ?? "{}");
console.warn = console.info = (...words) => tell("warned", ...words.map(String));
console.error = () => {};
const agentOf = (path, init = {}) => new HttpAgent({ url: url + path, threadId: "thread-1", ...init });
const user = (content, id = "u1") => ({ id, role: "user", content });
const shown = (agent) => tell(agent.messages.map(({ id, ...message }) => message));
const types = (into) => ({ onEvent: ({ event }) => {
  const about = event.stepName ?? event.name ?? event.toolCallId;
  into.push(about ? `${event.type} ${about}` : event.type);
} });
const failing = (run) => run.then(() => "it ran", (error) => [error.message, error.status, error.payload]);
"""


def run(service: Service, script: str, **value: Any) -> list[Any]:
    """Run a script to its end, and return what it tells, without ids that differ from run to run."""
    return [stable(one) for one in told(AGENT + script, f"http://127.0.0.1:{service.port}/ag-ui", json.dumps(value))]


def stable(told: Any) -> Any:
    return json.loads(re.sub(r"[0-9a-f]{32}", "*", json.dumps(told)))


def script(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "scripted/custom", "provider_options": {"script": steps}, **fields}


ASK = """
const agent = agentOf("", { initialMessages: [user("Hi")] }), seen = [];
await agent.runAgent({ forwardedProps: input.props }, types(seen)).catch(({ message }) => tell("failed", message));
shown(agent); tell(seen);
"""
USER = {"role": "user", "content": "Hi"}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


# --- What the client makes of every kind of run ----------------------------------------------------------------------

FOLD = """
import { readFile } from "node:fs/promises";
const streams = JSON.parse(await readFile(url)), headers = { "content-type": "text/event-stream" };
for (const [name, stream] of Object.entries(streams)) {
  const fetch = async () => new Response(stream, { headers });
  const agent = new HttpAgent({ url: "http://nowhere", fetch, initialMessages: [user("Hi")] });
  const warned = [], ends = [], seen = [];
  console.warn = (...words) => warned.push(words.join(" "));
  const end = { onRunFinishedEvent: ({ outcome }) => ends.push(outcome), onRunErrorEvent: () => ends.push("error") };
  await agent.runAgent({}, { ...types(seen), ...end }).catch((error) => ends.push(error.message));
  tell(name, ends, warned, agent.messages, seen.length);
}
"""
VOID = "TOOL_CALL_END: No message found containing tool call with ID 'call_0'"


def folded_by_the_client(folder: Path, streams: dict[str, bytes]) -> dict[str, Any]:
    """What an agent is after each of these streams: how they end, what it complains of, its messages, its events."""
    path = folder / "streams.json"
    path.write_text(json.dumps({name: stream.decode() for name, stream in streams.items()}))
    return {name: rest for name, *rest in told(AGENT + FOLD, str(path))}


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it is after each of the runs whose bytes are in tests/golden."""
    folder = tmp_path_factory.mktemp("folds")
    return folded_by_the_client(folder, {name: (GOLDEN / "ag_ui" / f"{name}.txt").read_bytes() for name in RUNS})


@pytest.mark.parametrize("name", RUNS)
def test_the_client_takes_every_kind_of_run(folds: dict[str, Any], name: str) -> None:
    ends, warned, _, seen = folds[name]
    stream = (GOLDEN / "ag_ui" / f"{name}.txt").read_bytes()
    last = json.loads(stream.rstrip().rpartition(b"data: ")[2])
    assert ends == [last.get("outcome", {"type": "error"})["type"]]
    assert seen == stream.count(b"\n\n"), "each event reaches the application"
    assert warned == ([VOID] if name == "reset-of-a-tool" else []), "nothing is stripped, nothing is unknown"


def test_the_client_has_the_messages_that_were_said(folds: dict[str, Any]) -> None:
    def messages(name: str) -> list[Any]:
        return [{key: one[key] for key in one if key != "id"} for one in folds[name][2][1:]]

    assert messages("text") == [said("Hello, world")]
    assert messages("reasoning") == [{"role": "reasoning", "content": "Let me think."}, said("Hello, world")]
    city = {"name": "weather", "arguments": '{"city":"Paris"}'}
    called = {"id": "call_0", "type": "function", "function": city}
    other = {"id": "call_1", "type": "function", "function": city | {"arguments": '{"city":"Rome"}'}}
    assert messages("tools-parallel") == [{"role": "assistant", "toolCalls": [called, other]}]
    assert messages("tool-answered") == [
        {**said("Let me look."), "toolCalls": [called]},
        {"role": "tool", "toolCallId": "call_0", "content": '{"sky":"clear"}'},
        said("It is clear."),
    ]
    assert messages("nodes")[:2] == [said("AC"), said("B")]
    assert messages("reset") == messages("reset-of-a-tool") == [said("Hello, world")], "what was void is gone"


def test_the_client_takes_runs_in_any_order(tmp_path: Path) -> None:
    found = folded_by_the_client(tmp_path, {str(seed): bytes_of(any_run(seed), GIVEN) for seed in range(60)})
    assert {one for ends, *_ in found.values() for one in ends} == {"success", "interrupt", "cancelled", "error"}
    assert all(len(ends) == 1 for ends, *_ in found.values())


# --- Models ----------------------------------------------------------------------------------------------------------


def test_an_agent_gets_the_embedded_models_answer(service: Service) -> None:
    ask = """
    const agent = agentOf("/local", { initialMessages: [user("What is the capital of France?")] });
    let deltas = 0;
    const { result, newMessages } = await agent.runAgent({}, { onTextMessageContentEvent: () => { deltas += 1; } });
    tell(newMessages, agent.messages.length, result, deltas > 1);
    """
    (((message,), count, result, streams),) = run(service, ask)
    assert "Paris" in message["content"]
    assert (message["id"], message["role"], count, streams) == ("*-1", "assistant", 2, True)
    assert result == {"run": "*", "model": "smollm2", "finishReason": "stop"}


WEATHER = {"tool": "weather", "args": {"city": "Paris"}, "result": {"sky": "clear"}}


def test_an_agent_gets_thoughts_text_and_a_tools_answer(service: Service) -> None:
    steps = [{"think": "Hm."}, {"say": "I look."}, {"call": WEATHER}, {"say": "Clear."}]
    messages, seen = run(service, ASK, props=script(*steps))
    function = {"name": "weather", "arguments": '{"city":"Paris"}'}
    assert messages == [
        [
            USER,
            {"role": "reasoning", "content": "Hm."},
            {**said("I look."), "toolCalls": [{"id": "call_1", "type": "function", "function": function}]},
            {"role": "tool", "toolCallId": "call_1", "content": '{"sky":"clear"}'},
            said("Clear."),
        ]
    ]
    assert (seen[0][0], seen[0][-1]) == ("RUN_STARTED", "RUN_FINISHED")


@pytest.mark.parametrize(
    ("steps", "messages"),
    [
        ([{"fail": "upstream_auth"}], [USER]),
        ([{"say": "Half an"}, {"fail": "upstream_auth"}], [USER, said("Half an")]),
    ],
    ids=["before", "after"],
)
def test_an_agent_is_told_of_an_error(service: Service, steps: list[Any], messages: list[Any]) -> None:
    ask = """
    const agent = agentOf("", { initialMessages: [user("Hi")] });
    const errors = [], onRunErrorEvent = ({ event: { type, usage, ...event } }) => { errors.push(event); };
    await agent.runAgent({ forwardedProps: input.props }, { onRunErrorEvent });
    shown(agent); tell(errors);
    """
    left, ((error,),) = run(service, ask, props=script(*steps))
    assert left == [messages]
    error.pop("metadata", None)
    assert error == {"message": "The script says that the upstream fails here.", "code": "upstream_auth"}


@pytest.mark.parametrize(
    ("props", "status", "code", "text"),
    [
        ({"model": "no/such"}, 404, "unknown_model", "There is no provider 'no'. Ready: local, scripted."),
        ({"temperature": 9}, 400, "invalid_request", "Bad request: Expected `float` <= 2.0 - at `$.temperature`."),
    ],
)
def test_an_agent_shows_what_is_wrong_with_a_request(
    service: Service, props: dict[str, Any], status: int, code: str, text: str
) -> None:
    ask = """
    const agent = agentOf("", { initialMessages: [user("Hi")] });
    tell(await failing(agent.runAgent({ forwardedProps: input.props })), agent.messages.length);
    """
    (((message, told_status, payload), count),) = run(service, ask, props=props)
    assert (told_status, payload["code"], payload["message"], count) == (status, code, text, 1)
    assert message.startswith(f"HTTP {status}: ")


OPENAI = {"model": "openai/gpt-4o-mini"}
TOOLS = {
    "tools": [
        {
            "name": "ask_user",
            "description": "Ask the user.",
            "parameters": {"type": "object", "properties": {"question": {"type": "string"}}},
        }
    ],
    "context": [{"description": "The user's town", "value": "Paris"}],
}


def test_a_front_end_runs_its_own_tool_and_goes_on(relay: Service, upstream: Upstream) -> None:
    opening = call_chunk(0, "", "call_9", "ask_user"), call_chunk(0, '{"question":"Why?"}')
    upstream.stream(*opening, *chat_end("tool_calls", chat_usage(14, 8)))
    upstream.stream(*answer("I see."))
    ask = """
    const agent = agentOf("", { initialMessages: [user("Hi")] });
    const asking = { ...input.tools, forwardedProps: input.props }, calls = [];
    await agent.runAgent(asking, {
      onToolCallEndEvent: ({ toolCallName, toolCallArgs }) => { calls.push([toolCallName, toolCallArgs]); },
      onRunFinishedEvent: ({ pendingToolCallIds }) => tell(pendingToolCallIds),
    });
    tell(calls);
    agent.addMessage({ id: "t1", role: "tool", toolCallId: "call_9", content: "Because." });
    await agent.runAgent(asking);
    shown(agent);
    """
    pending, (calls,), (messages,) = run(relay, ask, props=OPENAI, tools=TOOLS)
    assert (pending, calls) == ([["call_9"]], [["ask_user", {"question": "Why?"}]])
    assert messages[-1] == said("I see.")
    first, second = (upstream.request().wait().body for _ in range(2))
    assert first["tools"] == second["tools"] == [{"type": "function", "function": TOOLS["tools"][0]}]
    system = {"role": "system", "content": "The user's town:\nParis"}
    assert first["messages"] == [system, USER]
    function = {"name": "ask_user", "arguments": '{"question":"Why?"}'}
    assert second["messages"] == [
        system,
        USER,
        {"role": "assistant", "tool_calls": [{"id": "call_9", "function": function, "type": "function"}]},
        {"role": "tool", "content": "Because.", "tool_call_id": "call_9"},
    ]


def test_the_upstream_sees_that_a_run_is_aborted(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    abort = """
    const agent = agentOf("", { initialMessages: [user("Hi")] }), seen = [];
    const onTextMessageContentEvent = () => agent.abortRun();
    await agent.runAgent({ forwardedProps: input.props }, { ...types(seen), onTextMessageContentEvent });
    shown(agent); tell(seen.at(-1));
    """
    assert run(relay, abort, props=OPENAI) == [[[USER, said("One")]], ["RUN_ERROR"]]
    left = time.monotonic()
    exchange = upstream.request().wait()
    assert exchange.ended == "aborted"
    assert exchange.ended_at < left + 1, "at once: nobody comes back"


def test_a_run_that_is_stopped_by_its_id_was_cancelled_and_has_not_failed(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    stop = """
    const agent = agentOf("", { initialMessages: [user("Hi")] });
    let id;
    await agent.runAgent({ forwardedProps: input.props }, {
      onRunStartedEvent: ({ event }) => { id = event.metadata.run; },
      onTextMessageContentEvent: () => { fetch(url.replace("ag-ui", `runs/${id}`), { method: "DELETE" }); },
      onRunFinishedEvent: ({ outcome }) => tell(outcome),
    });
    shown(agent);
    """
    assert run(relay, stop, props=OPENAI) == [["cancelled"], [[USER, said("One")]]]
    assert upstream.request().wait().ended == "aborted"


def test_half_an_answer_is_taken_back_where_another_model_begins_anew(relay: Service, upstream: Upstream) -> None:
    thought = {"reasoning_content": "Hm.", "content": None}
    upstream.play(Head(), chat(thought), chat({"content": "Half an"}), RST)
    props = {"model": ["openai/gpt-4o-mini", "scripted/echo"]}
    messages, (seen,) = run(relay, ASK, props=props)
    assert messages == [[USER, {"role": "reasoning", "content": ""}, said("Hi")]]
    assert seen.count("MESSAGES_SNAPSHOT") == 1


# --- Graphs ----------------------------------------------------------------------------------------------------------


def test_an_agent_sees_the_steps_and_the_state_of_a_graph(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hel", "lo."))
    ask = """
    const agent = agentOf("/telling", { threadId: crypto.randomUUID(), initialMessages: [user("Hi")] }), seen = [];
    await agent.runAgent({}, types(seen));
    shown(agent); tell(agent.state.been, agent.state.messages.map(({ type, id }) => [type, id === "u1"]));
    tell(seen.filter((type) => /^(STEP|CUSTOM|STATE)/.test(type)));
    """
    messages, state, (seen,) = run(graphs, ask)
    assert messages == [[USER, said("Hello.")]]
    assert state == [["speak", "write"], [["human", True], ["ai", False]]]
    assert seen == [
        "STATE_SNAPSHOT",
        "STEP_STARTED speak",
        "STEP_FINISHED speak",
        "STATE_SNAPSHOT",
        *["CUSTOM custom"] * 3,
        "STEP_STARTED write",
        "STEP_FINISHED write",
        "STATE_SNAPSHOT",
    ]


def test_an_agent_sees_steps_within_steps_and_side_by_side(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello."))
    ask = """
    for (const [path, props] of [["/within", {}], ["/parallel", { stream_mode: "tasks" }]]) {
      const agent = agentOf(path, { initialMessages: [user("Hi")] }), seen = [];
      await agent.runAgent({ forwardedProps: props }, types(seen));
      tell(seen.filter((type) => type.startsWith("STEP")).map((type) => type.replace("STEP_", "")));
    }
    """
    (within,), (parallel,) = run(graphs, ask)
    inner = ["STARTED inner", "STARTED inner/speak", "FINISHED inner/speak"]
    inner += ["STARTED inner/note", "FINISHED inner/note", "FINISHED inner"]
    assert within == [*inner, "STARTED note_async", "FINISHED note_async"]
    assert parallel[:2] == ["STARTED note", "STARTED note_async"]
    assert sorted(parallel[2:4]) == ["FINISHED note", "FINISHED note_async"]
    assert parallel[4:] == ["STARTED write", "FINISHED write"]


def test_a_graphs_own_tools_are_answered_by_itself(graphs: Service, upstream: Upstream) -> None:
    opening = call_chunk(0, "", "call_1", "weather"), call_chunk(0, '{"city":"Paris"}')
    upstream.stream(*opening, *chat_end("tool_calls", chat_usage(14, 8)))
    upstream.stream(*answer("Sunny."))
    ask = """
    const agent = agentOf("/agent", { initialMessages: [user("Hi")] });
    const onRunFinishedEvent = ({ pendingToolCallIds }) => tell(pendingToolCallIds);
    await agent.runAgent(input.tools, { onRunFinishedEvent });
    shown(agent);
    """
    pending, (messages,) = run(graphs, ask, tools=TOOLS)
    assert pending == [[]]
    function = {"name": "weather", "arguments": '{"city":"Paris"}'}
    assert messages[1:] == [
        {"role": "assistant", "toolCalls": [{"id": "call_1", "type": "function", "function": function}]},
        {"role": "tool", "toolCallId": "call_1", "content": "Sunny in Paris."},
        said("Sunny."),
    ]


def test_a_thread_keeps_what_was_said_and_a_graph_without_one_is_told_all(graphs: Service, upstream: Upstream) -> None:
    ask = """
    for (const path of ["/remembering", "/speaking"]) {
      const agent = agentOf(path, { threadId: crypto.randomUUID(), initialMessages: [user("Hi")] });
      await agent.runAgent();
      agent.addMessage(user("And?", "u2"));
      await agent.runAgent();
      tell(agent.messages.length, agent.state.messages.map(({ content }) => content), agent.state.been);
    }
    """
    for _ in range(2):
        upstream.stream(*answer("Hello."))
        upstream.stream(*answer("Fine."))
    words = ["Hi", "Hello.", "And?", "Fine."]
    kept, whole = run(graphs, ask)
    assert kept == [4, words, ["speak", "speak"]]
    # Its state comes from the client, so it goes on from there.
    assert whole == [4, words, ["speak", "note", "speak", "note"]]
    for _ in range(2):
        first, second = (upstream.request().wait().body["messages"] for _ in range(2))
        assert [[one["content"] for one in sent] for sent in (first, second)] == [words[:1], words[:3]]


def test_what_is_asked_again_after_a_failure_is_in_the_thread_once(graphs: Service, upstream: Upstream) -> None:
    upstream.refuse(401, {})
    upstream.stream(*answer("Hello."))
    ask = """
    const agent = agentOf("/remembering", { threadId: crypto.randomUUID(), initialMessages: [user("Hi")] });
    await agent.runAgent({}, { onRunErrorEvent: ({ event }) => tell(event.code) });
    await agent.runAgent();
    tell(agent.state.messages.map(({ content }) => content));
    """
    assert run(graphs, ask) == [["graph_failed"], [["Hi", "Hello."]]]
    assert [len(upstream.request().wait().body["messages"]) for _ in range(2)] == [1, 1]


def test_a_front_end_changes_the_state_of_a_graph(graphs: Service, upstream: Upstream) -> None:
    upstream.stream(*answer("Hello."))
    ask = """
    const agent = agentOf("/speaking", { initialMessages: [user("Hi")], initialState: { been: ["here"], no: 1 } });
    await agent.runAgent();
    tell(agent.state.been);
    const strict = agentOf("/strict", { initialState: { count: 1 } });
    await strict.runAgent();
    tell(strict.state);
    """
    assert run(graphs, ask) == [[["here", "speak", "note"]], [{"count": 2}]]


RESUME = """
const agent = agentOf(input.path, { threadId: crypto.randomUUID(), initialMessages: [user("Hi")] });
await agent.runAgent();
tell(agent.pendingInterrupts.map(({ reason, metadata }) => [reason, metadata?.langgraph.raw]));
tell((await failing(agent.runAgent()))[0].replace(/:.*/, ""));  // the client itself knows that it must answer
const answerTo = ({ metadata }) => input.answers[metadata?.langgraph.raw.question ?? "none"];
const responses = Object.fromEntries(agent.pendingInterrupts.map((one) => [one.id, answerTo(one)]));
const resume = buildResumeArray(agent.pendingInterrupts, responses);
await agent.runAgent({ resume });
tell(agent.pendingInterrupts, agent.messages.map(({ content }) => content), agent.state.been);
"""
YES = {"status": "resolved", "payload": "yes"}
ASKED, TOO = "Shall I?", "Shall I, too?"


@pytest.mark.parametrize(
    ("path", "answers", "said", "been"),
    [
        ("/asking", {ASKED: YES}, ["You said yes."], ["ask", "note"]),
        ("/asking", {ASKED: {"status": "cancelled"}}, ["You said None."], ["ask", "note"]),
        ("/asking_within", {ASKED: YES}, ["You said yes."], ["ask", "note", "note_async"]),
        (
            "/asking_both",
            {ASKED: YES, TOO: YES | {"payload": "no"}},
            ["You said yes.", "You said no, too."],
            ["ask", "ask_async"],
        ),
        ("/asking_nothing", {"none": {"status": "resolved"}}, [], ["note", "note_async"]),
    ],
)
def test_a_person_answers_a_graph_and_it_goes_on(
    graphs: Service, path: str, answers: dict[str, Any], said: list[str], been: list[str]
) -> None:
    (waits,), refusal, (left, messages, state) = run(graphs, RESUME, path=path, answers=answers)
    asked = [["langgraph:interrupt", {"question": text}] for text in answers if text != "none"]
    assert sorted(waits, key=str) == sorted(asked, key=str) or waits == [["langgraph:breakpoint", None]]
    assert refusal == [f"Thread has {len(answers)} pending interrupt(s) not addressed by resume"]
    assert left == []
    assert sorted(messages) == sorted(["Hi", *said])
    assert sorted(state) == sorted(been)


def test_copilotkits_way_to_answer_a_graph_is_known_too(graphs: Service) -> None:
    ask = """
    const agent = agentOf("/asking", { threadId: crypto.randomUUID(), initialMessages: [user("Hi")] });
    await agent.runAgent();
    agent.pendingInterrupts = [];
    await agent.runAgent({ forwardedProps: { command: { resume: "yes" } } });
    shown(agent);
    """
    assert run(graphs, ask) == [[[USER, said("You said yes.")]]]


def test_an_agent_is_told_which_graph_failed_and_not_by_which_words(graphs: Service) -> None:
    ask = """
    const agent = agentOf("/failing", { initialMessages: [user("Hi")] }), seen = [];
    await agent.runAgent({}, { ...types(seen), onRunErrorEvent: ({ event }) => tell(event.code, event.message) });
    tell(seen.at(-1));
    """
    assert run(graphs, ask) == [["graph_failed", "The node 'fail' failed: ValueError."], ["RUN_ERROR"]]


# --- The example -----------------------------------------------------------------------------------------------------


def example(service: Service, *arguments: str) -> str:
    environ = {**os.environ, "SIDESTREAM_URL": f"http://127.0.0.1:{service.port}"}
    source = (ROOT / "examples" / "ag_ui_agent.mjs").read_text()
    command = [BIN / "node", "--input-type=module", "-e", source, "--", *arguments]
    done = subprocess.run(command, cwd=NPM, env=environ, capture_output=True, text=True, check=True, timeout=20)
    assert done.stderr == ""
    return done.stdout


def test_the_example_shows_an_answer(service: Service) -> None:
    shown = example(service)
    assert "Paris" in shown
    assert re.search(r"\n\(\d+ tokens\)\n2 messages; the next question goes on from them\.\n$", shown)
