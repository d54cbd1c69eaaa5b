"""The Vercel AI SDK's wire, pure: every run as golden bytes, and every request as it is read or refused.

Its endpoints are in test_vercel_endpoints.py, the SDK itself is in test_vercel_clients.py.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import RequestError
from streaming.events import Event, Interrupt, Reasoning, Token, ToolCallDelta, ToolResult, Updates
from wires.fold import Folded
from wires.vercel import Chunks, name_of
from wires.vercel_request import CONTINUED, read

from .folds import AGENT, INNER, PARIS, RUNS, call, check_golden, done, folded, piecemeal, start

Said = dict[str, Any]


def form(skip: int = 0, continued: Said | None = None) -> Folded:
    return Folded(Chunks(continued), merges=False, skip=skip)


def chunks(told: bytes) -> list[Said]:
    """Return what a stream says, but for its last word."""
    *frames, last, end = told.decode().split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def told(events: Sequence[Event], continued: Said | None = None) -> list[Said]:
    return chunks(folded(form(continued=continued), events))


def types(told: list[Said]) -> list[str]:
    return [chunk["type"] for chunk in told]


# --- What a run is told as -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_is_told_as(name: str) -> None:
    check_golden("vercel", name, folded(form(), RUNS[name]))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_told_the_same_however_it_comes(name: str) -> None:
    assert b"".join(piecemeal(form(), RUNS[name])) == folded(form(), RUNS[name])


@pytest.mark.parametrize("name", RUNS)
def test_who_comes_back_gets_the_chunks_that_follow_those_it_has(name: str) -> None:
    whole = folded(form(), RUNS[name])
    frames = [frame + b"\n\n" for frame in whole.split(b"\n\n")[:-1]]
    for has in range(len(frames) + 2):
        assert folded(form(skip=has), RUNS[name]) == b"".join(frames[has:])


# The chunks and fields that ai 5.0.0 knows, which refuses all others; but for `tool-input-error`, which came later.
CORE = {
    "text-start": "id providerMetadata?",
    "text-delta": "id delta providerMetadata?",
    "text-end": "id providerMetadata?",
    "error": "errorText",
    "tool-input-start": "toolCallId toolName providerExecuted? dynamic?",
    "tool-input-delta": "toolCallId inputTextDelta",
    "tool-input-available": "toolCallId toolName input providerExecuted? providerMetadata? dynamic?",
    "tool-input-error": "toolCallId toolName input errorText providerExecuted? providerMetadata? dynamic?",
    "tool-output-available": "toolCallId output providerExecuted? dynamic?",
    "reasoning-start": "id providerMetadata?",
    "reasoning-delta": "id delta providerMetadata?",
    "reasoning-end": "id providerMetadata?",
    "data-": "data id? transient?",
    "start-step": "",
    "finish-step": "",
    "start": "messageId? messageMetadata?",
    "finish": "messageMetadata?",
    "abort": "",
    "message-metadata": "messageMetadata",
}


@pytest.mark.parametrize("name", RUNS)
def test_no_chunk_has_what_the_first_of_version_5_does_not_know(name: str) -> None:
    for chunk in told(RUNS[name]):
        kind = chunk.pop("type")
        fields = CORE["data-" if kind.startswith("data-") else kind].split()
        required = {field for field in fields if not field.endswith("?")}
        assert required <= chunk.keys() <= {field.removesuffix("?") for field in fields}, kind


@pytest.mark.parametrize("name", RUNS)
def test_every_part_is_begun_once_and_ended_and_every_stream_finishes_once(name: str) -> None:
    said = told(RUNS[name])
    for kind in ("text", "reasoning"):
        for mark in ("start", "end"):
            ids = [chunk["id"] for chunk in said if chunk["type"] == f"{kind}-{mark}"]
            assert len(ids) == len(set(ids))
        of_kind = [chunk for chunk in said if chunk["type"].startswith(f"{kind}-")]
        for one in {chunk["id"] for chunk in of_kind}:
            order = [chunk["type"].removeprefix(f"{kind}-") for chunk in of_kind if chunk["id"] == one]
            assert (order[0], order[-1], {*order[1:-1]}) == ("start", "end", {"delta"})
    assert types(said).count("start") <= 1
    assert types(said).count("start-step") == types(said).count("finish-step")
    assert types(said).index("finish") == len(said) - 1


def test_a_message_that_is_continued_keeps_its_id() -> None:
    """And what was said to go on with is answered in it."""
    events = [start(), ToolResult("call_0", "weather", "clear"), Token("It is clear."), done()]
    said = told(events, {"calls": ["call_0"]})
    assert "messageId" not in said[0]
    assert types(said)[1:5] == ["start-step", "tool-output-available", "finish-step", "start-step"]


@pytest.mark.parametrize("continued", [None, {"calls": ["call_9"]}], ids=["new", "continued"])
def test_the_answer_to_a_call_that_was_never_told_comes_with_a_call(continued: Said | None) -> None:
    said = told(
        [start(), ToolResult("call_0", "", [1], **AGENT), ToolResult("call_0", "", [2], **AGENT), done()], continued
    )
    assert said[2:5] == [
        {
            "type": "tool-input-available",
            "toolCallId": "call_0",
            "toolName": "tool",
            "input": {},
            "providerExecuted": True,
            "providerMetadata": {"sidestream": {"node": "model"}},
        },
        {"type": "tool-output-available", "toolCallId": "call_0", "output": [1], "providerExecuted": True},
        {"type": "tool-output-available", "toolCallId": "call_0", "output": [2], "providerExecuted": True},
    ]


def test_a_node_that_has_ended_has_said_all_of_its_part() -> None:
    said = told([start(), Token("A", **INNER), Updates(INNER["ns"], {"writer": None}), Token("B", **INNER), done()])
    assert types(said)[2:9] == [*["text-start", "text-delta", "text-end", "data-updates"], *types(said)[2:5]]
    assert [chunk["id"] for chunk in said if chunk["type"] == "text-start"] == ["0", "1"]


@pytest.mark.parametrize("data", [None, [], "text", {}])
def test_an_update_may_be_anything(data: Any) -> None:
    assert types(told([start(), Token("A", node="one"), Updates((), data), done()]))[4] == "data-updates"


def test_calls_of_two_nodes_are_told_apart() -> None:
    events = [
        start(),
        ToolCallDelta(0, "{", "call_0", "a", node="one"),
        ToolCallDelta(0, "[", "call_1", "b", node="two"),
        ToolCallDelta(0, "}", node="one"),
        ToolCallDelta(0, "]", node="two"),
        done(),
    ]
    deltas = [chunk for chunk in told(events) if chunk["type"] == "tool-input-delta"]
    assert [(one["toolCallId"], one["inputTextDelta"]) for one in deltas] == [
        ("call_0", "{"),
        ("call_1", "["),
        ("call_0", "}"),
        ("call_1", "]"),
    ]


def test_tools_that_answer_together_end_one_step() -> None:
    calls = [*call(0, "weather", PARIS), *call(1, "time", {})]
    results = [ToolResult("call_0", "weather", "clear"), ToolResult("call_1", "time", 12)]
    said = types(told([start(), *calls, *results, Reasoning("Hm."), Token("Fine."), done()]))
    assert said.count("start-step") == 2
    assert said.index("finish-step") == said.index("reasoning-start") - 2


def test_a_thought_without_words_ends_what_was_thought() -> None:
    signed = Reasoning("", signature="c2lnbmVk")
    said = types(told([start(), signed, Reasoning("Hm."), signed, Reasoning("So."), done()]))
    assert said[2:8] == ["reasoning-start", "reasoning-delta", "reasoning-end"] * 2


def test_a_graph_that_waits_before_any_word_has_a_message_to_show() -> None:
    said = told([start(thread="thread-1"), Interrupt("i1", "Shall I?"), done("interrupt")])
    assert said[0]["messageMetadata"]["thread_id"] == "thread-1"
    assert said[2] == {"type": "data-interrupt", "id": "i1", "data": {"id": "i1", "value": "Shall I?"}}


# --- What a request says ---------------------------------------------------------------------------------------------


def request(*messages: Said, **fields: Any) -> Any:
    body = {"id": "chat-1", "messages": messages, "trigger": "submit-message", "model": "local", **fields}
    return read(json.dumps(body).encode())


def turns(*parts: Said, role: str = "assistant", **fields: Any) -> list[Said]:
    """What becomes of a message of these parts."""
    said = request({"id": "m", "role": role, "parts": parts}, **fields)
    return [plain(turn) for turn in said.chat.messages]


def plain(turn: Any) -> Said:
    built: Said = msgspec.to_builtins(turn)
    return built


def user(*parts: Said) -> Said:
    return {"id": "u", "role": "user", "parts": parts}


def text(words: str) -> Said:
    return {"type": "text", "text": words, "state": "done"}


def tool(call_id: str = "call_1", kind: str = "tool-weather", state: str = "output-available", **more: Any) -> Said:
    return {"type": kind, "toolCallId": call_id, "state": state, "input": PARIS, **more}


def called(*calls: str, arguments: str = '{"city":"Paris"}', tool: str = "weather", says: str | None = None) -> Said:
    function = {"name": tool, "arguments": arguments}
    told: Said = {
        "role": "assistant",
        "tool_calls": [{"id": c, "function": function, "type": "function"} for c in calls],
    }
    return {**told, "content": says} if says else told


def answered(content: str, call_id: str = "call_1") -> Said:
    return {"role": "tool", "content": content, "tool_call_id": call_id}


STEP = {"type": "step-start"}
PNG = "data:image/png;base64,aGk="


@pytest.mark.parametrize("role", ["user", "system"])
def test_a_message_of_one_text_is_that_text(role: str) -> None:
    assert turns(text("Hi"), text(""), {"type": "data-page", "data": 1}, role=role) == [{"role": role, "content": "Hi"}]


@pytest.mark.parametrize("url", [PNG, "https://example.com/a.png", "http://example.com/a.png"])
def test_a_users_file_is_an_image(url: str) -> None:
    file = {"type": "file", "mediaType": "image/png", "filename": "a.png", "url": url}
    assert turns(file, text("What is it?"), role="user") == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "What is it?"},
            ],
        }
    ]


ANSWERS = {
    "text": (tool(output="clear"), "clear"),
    "json": (tool(output={"sky": "clear"}), '{"sky":"clear"}'),
    "null": (tool(output=None), "null"),
    "error": (tool(state="output-error", errorText="No such city."), "No such city."),
    "denied": (tool(state="output-denied", approval={"id": "a", "approved": False, "reason": "No."}), "No."),
    "denied-without-a-reason": (tool(state="output-denied"), "The call was refused."),
    "refused": (tool(state="approval-responded", approval={"id": "a", "approved": False}), "The call was refused."),
    "dynamic": (tool(kind="dynamic-tool", toolName="weather", output="clear"), "clear"),
    "a-graphs-own": (tool(output="clear", providerExecuted=True), "clear"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_call_that_was_answered_is_a_call_and_its_answer(name: str) -> None:
    part, content = ANSWERS[name]
    assert turns(STEP, part) == [called("call_1"), answered(content)]


@pytest.mark.parametrize("state", ["input-available", "approval-requested", "approval-responded"])
def test_a_call_that_was_not_answered_is_a_call(state: str) -> None:
    assert turns(tool(state=state, approval={"id": "a", "approved": True})) == [called("call_1")]


def test_a_call_that_broke_off_is_none_and_a_message_of_nothing_else_neither() -> None:
    broken = {"id": "a", "role": "assistant", "parts": [STEP, tool(state="input-streaming"), text("")]}
    said = request(user(text("Hi")), broken, user(text("Again")))
    assert [turn.content for turn in said.chat.messages] == ["Hi", "Again"]


@pytest.mark.parametrize("part", [{"rawInput": '{"ci'}, {"input": '{"ci'}, {"input": '{"ci', "rawInput": "no"}])
def test_arguments_that_were_no_json_are_what_the_model_wrote(part: Said) -> None:
    told = {"type": "tool-weather", "toolCallId": "call_1", "state": "output-error", "errorText": "No.", **part}
    assert turns(told) == [called("call_1", arguments='{"ci'), answered("No.")]


def test_a_call_without_input_has_no_arguments() -> None:
    part = {"type": "tool-now", "toolCallId": "call_1", "state": "input-available"}
    assert turns(part) == [called("call_1", arguments="{}", tool="now")]


def test_an_answer_in_steps_is_one_turn_after_the_other() -> None:
    """What follows an answered call follows it, whether a step begins there or not."""
    said = turns(
        STEP,
        {"type": "reasoning", "text": "Hm."},
        text("I look."),
        tool("call_1", output="clear"),
        tool("call_2", output="dark"),
        {"type": "data-updates", "data": {}},
        STEP,
        tool("call_3", output="wet"),
        text("It is wet."),
        {"type": "source-url", "sourceId": "1", "url": "https://example.com"},
        STEP,
        text("So there."),
    )
    assert said == [
        called("call_1", "call_2", says="I look."),
        answered("clear", "call_1"),
        answered("dark", "call_2"),
        called("call_3"),
        answered("wet", "call_3"),
        {"role": "assistant", "content": "It is wet."},
        {"role": "assistant", "content": "So there."},
    ]


def test_what_a_person_said_between_two_steps_stands_there() -> None:
    steering = {"type": "steering-message", "id": "s", "parts": [text("Be brief.")]}
    assert turns(text("Well"), steering, text("Yes.")) == [
        {"role": "assistant", "content": "Well"},
        {"role": "user", "content": "Be brief."},
        {"role": "assistant", "content": "Yes."},
    ]


def test_our_own_words_stand_beside_the_messages() -> None:
    said = request(
        user(text("Hi")),
        model=["openai/gpt-4o-mini", "local"],
        system="Be brief.",
        temperature=0.5,
        linger=3,
        tools=[{"type": "function", "function": {"name": "weather"}}],
        sessionId="the page's own",
    )
    chat = said.chat
    assert (chat.model, chat.system, chat.temperature, chat.linger) == (
        ["openai/gpt-4o-mini", "local"],
        "Be brief.",
        0.5,
        3,
    )
    assert [one.function.name for one in chat.tools] == ["weather"]
    assert (said.chat_id, said.about) == ("chat-1", {})
    assert (name_of("chat-1"), name_of("")) == ("ui:chat-1", "")


def test_a_message_of_the_assistants_at_the_end_is_gone_on_with() -> None:
    said = request(
        user(text("Hi")), {"id": "a", "role": "assistant", "parts": [tool(output=1), tool("call_2", output=2)]}
    )
    assert said.about == {CONTINUED: {"calls": ["call_1", "call_2"]}}


CONVERSATION = [user(text("Hi")), {"id": "a", "role": "assistant", "parts": [text("Hello."), tool(output="clear")]}]


@pytest.mark.parametrize(
    ("messages", "sent"),
    [
        ([user(text("Hi"))], [{"role": "user", "content": "Hi"}]),
        ([*CONVERSATION, user(text("And?"))], [answered("clear"), {"role": "user", "content": "And?"}]),
        (CONVERSATION, [answered("clear")]),
    ],
    ids=["first", "next", "tools"],
)
def test_a_thread_is_sent_what_came_after_its_last_answer(messages: list[Said], sent: list[Said]) -> None:
    said = request(*messages, thread_id="t")
    assert [plain(turn) for turn in said.chat.messages[said.since :]] == sent
    assert request(*messages).since == 0


def test_a_thread_that_knows_nothing_is_sent_all() -> None:
    whole = [plain(turn) for turn in request(*CONVERSATION).chat.messages]
    assert [plain(turn) for turn in request(*CONVERSATION, thread_id="t").chat.messages] == whole


def test_a_resume_stands_without_messages() -> None:
    chat = request(*CONVERSATION, thread_id="t", resume={"ok": True}).chat
    assert (chat.messages, chat.resume) == (None, {"ok": True})


WRONG: dict[str, tuple[Any, str]] = {
    "no-object": ([], "Bad request: Expected `object`, got `array`."),
    "no-messages": ({"id": "1"}, "Send `messages`."),
    "empty": ({"messages": []}, "Send `messages`."),
    "role": ({"messages": [{"role": "tool", "parts": []}]}, "Invalid enum value 'tool'"),
    "no-parts": ({"messages": [{"role": "user", "content": "Hi"}]}, "missing required field `parts`"),
    "part": ({"messages": [user({"type": "video"})]}, "There is no such part, or not in this message: 'video'."),
    "untyped": ({"messages": [user({"text": "Hi"})]}, "There is no such part, or not in this message: 'None'."),
    "no-text": ({"messages": [user({"type": "text"})]}, "There is no such part, or not in this message: 'text'."),
    "a-users-tool": ({"messages": [user(tool())]}, "There is no such part, or not in this message: 'tool-weather'."),
    "pdf": (
        {"messages": [user({"type": "file", "mediaType": "application/pdf", "url": "data:application/pdf;base64,"})]},
        "Files can be images only, as data:image/... or https:// URLs: 'application/pdf'.",
    ),
    "local": (
        {"messages": [user({"type": "file", "mediaType": "image/png", "url": "file:///etc/passwd"})]},
        "Files can be images only, as data:image/... or https:// URLs: 'image/png'.",
    ),
    "assistants-file": (
        {"messages": [{"role": "assistant", "parts": [{"type": "file", "mediaType": "image/png", "url": PNG}]}]},
        "There is no such part, or not in the assistant's message: 'file'.",
    ),
    "tool-id": (
        {"messages": [{"role": "assistant", "parts": [tool("")]}]},
        "A tool's part has a `toolCallId` and a name: 'tool-weather'.",
    ),
    "tool-name": (
        {"messages": [{"role": "assistant", "parts": [tool(kind="dynamic-tool")]}]},
        "A tool's part has a `toolCallId` and a name: 'dynamic-tool'.",
    ),
    "tool-state": (
        {"messages": [{"role": "assistant", "parts": [tool(state="call")]}]},
        "A tool's part has no such state: 'call'.",
    ),
    "steering": (
        {"messages": [{"role": "assistant", "parts": [{"type": "steering-message", "parts": ["Be brief."]}]}]},
        "A part is an object, not: 'Be brief.'.",
    ),
    "nothing-said": ({"messages": [user()]}, "`messages[0]` has no content."),
    "nothing-new": (
        {"messages": [*CONVERSATION[:1], {"role": "assistant", "parts": [text("Hello.")]}], "thread_id": "t"},
        "Nothing is said after the last answer, which the thread knows.",
    ),
    "own-word": ({"messages": [user(text("Hi"))], "temperature": 9}, "Expected `float` <= 2.0"),
    "long-id": ({"messages": [user(text("Hi"))], "id": "x" * 1001}, "Expected `str` of length <= 1000"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_answered_is_refused(name: str) -> None:
    body, why = WRONG[name]
    with pytest.raises(RequestError) as refused:
        read(json.dumps(body).encode()).chat.conversation()
    assert refused.value.status == 400
    assert why in refused.value.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(["text", "file", "tool-a", "dynamic-tool", "step-start", "steering-message", "data-x", "tool-"])
NAMES = [
    "text",
    "toolCallId",
    "state",
    "input",
    "output",
    "approval",
    "mediaType",
    "url",
    "parts",
    "toolName",
    "rawInput",
]
PART = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5).flatmap(
    lambda part: KINDS.map(lambda kind: {**part, "type": kind}) | JSON.map(lambda kind: {**part, "type": kind})
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "parts": st.lists(PART, max_size=4)}
)
BODY = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE | JSON, max_size=3)}, optional={"id": JSON, "thread_id": JSON, "resume": JSON}
)


@given(BODY | JSON)
def test_rubbish_is_refused_as_the_callers_fault(body: Any) -> None:
    with suppress(RequestError):
        said = read(json.dumps(body).encode())
        said.chat.conversation()
        json.dumps(said.about)
