"""The client in Node, with npm's EventSource, on connections that break; and its types, against the service's own.

Each script tells what it sees by lines of JSON. What npm ships is in the virtual environment: see the Makefile.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlencode

import pytest

from streaming.errors import RequestError, ServiceError, UpstreamError
from streaming.events import Delta, Event, FinishReason, GraphEvent, Terminal, Usage
from streaming.followed import CancelReason
from streaming.request import Message, RunnableConfig, StreamMode
from wires.chat import ChatRequest

from .client import DEADLINE, get
from .conftest import ROOT, Service
from .node import BIN, NPM, Node
from .proxy import LOSE, Cut, How, Proxy, Refuse
from .recorded import chat
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream", "tests.proxy", "tests.served_graphs"]

STOP = [chat({}, "stop"), b"data: [DONE]\n\n", END]
REQUEST = {"message": "Count", "model": "openai/gpt-4o-mini"}
each_way = pytest.mark.parametrize("how", ["FIN", "RST"])

PRELUDE = """
import { EventSource } from "eventsource";
const [, module, base, json] = process.argv;
const { stream, follow, StreamError } = await import(module);
const input = JSON.parse(json), options = { base, EventSource };
const reason = ({ name, code, status, retryable }) => tell(name, code, status, retryable);
"""


Run = Callable[..., Node]


@pytest.fixture
def node(proxy: Proxy, tmp_path: Path) -> Run:
    """Run a script that gets `value` as `input`."""
    module = tmp_path / "sidestream.mjs"  # so that Node takes it for a module
    shutil.copy(ROOT / "web" / "sidestream.js", module)
    return lambda script, value=None: Node(PRELUDE + script, str(module), proxy.url, json.dumps(value))


def count(upstream: Upstream) -> None:
    """Let the upstream say One, two and three, each when it is told to, and end well."""
    one, two, three = (chat({"content": word}) for word in ("One", " two", " three"))
    upstream.play(Head(), one, PAUSE, two, PAUSE, three, *STOP)


# npm's EventSource alone

PLAIN = """
const source = new EventSource(input), alive = setInterval(() => {}, 1e6);  // it does not keep Node alive itself
for (const name of ["start", "token", "done", "error", "cancelled"])
  source.addEventListener(name, ({ data }) => {
    tell(name, data ? JSON.parse(data) : null);
    if (source.readyState === EventSource.CLOSED) clearInterval(alive);
  });
"""


@each_way
def test_npms_eventsource_goes_on_where_it_was(proxy: Proxy, upstream: Upstream, node: Run, how: How) -> None:
    count(upstream)
    with node(PLAIN, f"{proxy.url}chat/stream?{urlencode(REQUEST)}&linger=10") as script:
        assert script.next()[0] == "start"
        assert script.next() == ["token", {"token": "One"}]
        proxy.cut(how)
        assert script.next() == ["error", None]
        exchange = upstream.request()
        exchange.release()
        assert script.next() == ["token", {"token": " two"}]
        exchange.release()
        assert script.next() == ["token", {"token": " three"}]
        assert script.next()[0] == "done"
        assert [script.next() for _ in range(2)] == [["error", None]] * 2  # the stream's end; the 204, which closes it
    assert proxy.records == ["GET /chat/stream", "GET /chat/stream after 2", "GET /chat/stream after 5"]
    assert exchange.wait().ended == "completed"
    assert upstream.exchanges.empty()


def test_without_linger_npms_eventsource_gets_what_is_left_and_stops(
    proxy: Proxy, upstream: Upstream, node: Run
) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    with node(PLAIN, f"{proxy.url}chat/stream?{urlencode(REQUEST)}") as script:
        assert [script.next()[0] for _ in range(2)] == ["start", "token"]
        proxy.cut("RST")
        assert script.next() == ["error", None]
        name, data = script.next()
        assert (name, data["reason"]) == ("cancelled", "disconnected")
        assert [script.next() for _ in range(2)] == [["error", None]] * 2  # the stream's end; the 204, which closes it
    assert proxy.records == ["GET /chat/stream", "GET /chat/stream after 2", "GET /chat/stream after 3"]
    assert upstream.request().wait().ended == "aborted"


# sidestream.js: the answer


@each_way
def test_a_loop_over_an_answer_sees_all_of_it_through_every_cut(proxy: Proxy, node: Run, how: How) -> None:
    text = " ".join(map(str, range(500)))
    proxy.do("GET /runs/*/events", *[Cut(700, how)] * 100)
    request = {
        "message": "Count",
        "model": "scripted/custom",
        "provider_options": {"script": [{"say": text, "every": 0.003}]},
    }
    script = """
    let heard = "";
    const answer = stream(input, { ...options, onToken(text) { heard += text; } }), seen = [];
    for await (const event of answer) seen.push(event);
    const { text, event, id, data } = await answer.result;
    tell(text, heard, seen.map(({ data }) => data.token ?? "").join(""), answer.text);
    tell(seen.map(({ event }) => event).filter((name) => name !== "token"), event, seen.at(-1).id === id, data.tokens);
    """
    with node(script, request) as answer:
        assert answer.next() == [text] * 4
        assert answer.next() == [["start", "done"], "done", True, 500]
    assert proxy.seen("POST") == ["POST /runs"]
    assert len(proxy.seen("GET /runs/*/events after")) >= 10


def test_every_loop_begins_at_the_first_event(node: Run) -> None:
    script = """
    const answer = stream(input, options), names = [[], [], []];
    const loop = async (names) => { for await (const { event } of answer) names.push(event); };
    await Promise.all([loop(names[0]), loop(names[1])]);
    await loop(names[2]);
    tell(...names);
    """
    with node(script, {"message": "one two", "model": "scripted/echo"}) as answer:
        first, *others = answer.next()
    assert (first[0], first[1], first[-1]) == ("start", "token", "done")
    assert others == [first] * 2


def test_a_failed_answer_is_told_as_an_event_and_thrown(node: Run) -> None:
    """Who looks at one of both only is told there, and no rejection is left over (it would end the script badly)."""
    script = """
    const loop = async () => { for await (const { event } of stream(input, options)) tell(event); };
    await loop().catch(reason);
    const { result } = stream(input, options);
    await result.catch((error) => tell(error instanceof StreamError, error.usage, error.message));
    stream(input, options);
    """
    with node(script, {"message": "Hi", "model": "scripted/error"}) as answer:
        assert answer.next() == ["start"]
        assert answer.next() == ["error"]
        assert answer.next() == ["StreamError", "upstream_unavailable", 0, True]
        is_one, usage, text = answer.next()
        assert (is_one, usage["estimated"]) == (True, True)
        assert text == "The script says that the upstream fails here."


def test_an_answer_that_is_taken_back_is_not_in_the_text(node: Run) -> None:
    script = """
    let heard = "";
    const onToken = (text) => { heard += text; }, onReset = (reason) => { tell(reason, heard); heard = ""; };
    const answer = stream(input, { ...options, onToken, onReset }), { text, data } = await answer.result;
    tell(text === heard, text === answer.text, text.slice(0, 6), data.model);
    """
    with node(script, {"message": "Hi", "model": ["scripted/cut", "scripted/hello"]}) as answer:
        assert answer.next() == ["upstream_incomplete", "The connection breaks in the middle of this"]
        assert answer.next() == [True, True, "Hello!", "hello"]


def test_an_answer_that_somebody_else_stops_is_no_whole_one(upstream: Upstream, node: Run) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    script = """
    const mine = stream(input, options), { id } = await mine.run;
    const theirs = follow(id, { ...options, onToken: () => mine.stop() });
    await theirs.result.catch(reason);
    await mine.result.catch(reason);
    tell(theirs.text);
    """
    with node(script, REQUEST) as answer:
        assert answer.next() == ["StreamError", "requested", 0, True]
        assert answer.next() == ["AbortError", 20, None, None]
        assert answer.next() == ["One"]
    assert upstream.request().wait().ended == "aborted"


# Graphs


def test_an_answer_says_what_a_graph_waits_for_and_the_next_goes_on(graphs: Service, node: Run) -> None:
    script = """
    const model = "langgraph/asking_within", names = [];
    options.base = input;
    const { thread_id, interrupts: [{ value }], data } = await stream({ model, message: "Hi" }, options).result;
    tell(value, data.finish_reason);
    options.onEvent = ({ event, data }) => names.push(data.node ? `${event} of ${data.node}` : event);
    const request = { model, thread_id, resume: { yes: true }, stream_mode: ["messages", "updates", "tasks"] };
    const { text, interrupts, thread_id: same } = await stream(request, options).result;
    tell(text, interrupts, thread_id === same, names);
    """
    with node(script, f"http://127.0.0.1:{graphs.port}/") as answer:
        assert answer.next() == [{"question": "Shall I?"}, "interrupt"]
        text, interrupts, same_thread, names = answer.next()
    assert (text, interrupts, same_thread) == ("You said {'yes': True}.", [], True)
    inner = ["tasks", "tasks", "token of ask", "updates", "tasks", "tasks", "updates", "tasks", "updates", "tasks"]
    assert names == ["start", *inner, "tasks", "updates", "tasks", "done"]


def test_an_answer_of_no_graph_has_no_thread_and_asks_nothing(node: Run) -> None:
    script = (
        "const { thread_id, interrupts } = await stream(input, options).result; tell(thread_id ?? null, interrupts);"
    )
    with node(script, {"message": "Hi", "model": "scripted/echo"}) as answer:
        assert answer.next() == [None, []]


# Stopping

LOOP = "try { for await (const event of answer); } catch ({ name }) { tell(name); }"
STOPS = {
    "signal": f"""
    const controller = new AbortController(), {{ signal }} = controller;
    const answer = stream(input, {{ ...options, signal, onToken: () => controller.abort() }});
    {LOOP}
    """,
    "reason": f"""
    const controller = new AbortController(), {{ signal }} = controller;
    const answer = stream(input, {{ ...options, signal, onToken: () => controller.abort({{ name: "Bored" }}) }});
    {LOOP}
    """,
    "stop": f"""
    const answer = stream(input, {{ ...options, onToken: () => answer.stop() }});
    {LOOP}
    """,
    "break": """
    const answer = stream(input, options);
    for await (const { event } of answer) if (event === "token") break;
    await answer.result.catch(({ name }) => tell(name));
    """,
}


@pytest.mark.parametrize("how", STOPS)
def test_the_upstream_ends_when_the_answer_is_stopped(proxy: Proxy, upstream: Upstream, node: Run, how: str) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    with node(STOPS[how] + "await answer.stop();", REQUEST) as script:
        assert script.next() == ["Bored" if how == "reason" else "AbortError"]
    assert upstream.request().wait().ended == "aborted"
    assert proxy.records == ["POST /runs", "GET /runs/*/events", "DELETE /runs/*"]


def test_a_run_that_is_stopped_while_it_is_created_does_not_go_on(proxy: Proxy, nimble: Service, node: Run) -> None:
    script = """
    const answer = stream(input, options);
    await answer.stop();
    tell((await answer.run).id);
    """
    with node(script, {"message": "Hi", "model": "scripted/silent", "linger": 300}) as stopped:
        (run,) = stopped.next()
    with get(nimble.port, f"/runs/{run}") as client:
        assert json.loads(client.read())["ending"]["reason"] == "requested"
    assert proxy.records == ["POST /runs", "DELETE /runs/*"]


def test_a_signal_that_has_come_before_asks_for_nothing(proxy: Proxy, node: Run) -> None:
    script = """
    const answer = stream(input, { ...options, signal: AbortSignal.abort() });
    await answer.result.catch(reason);
    await answer.run.catch(reason);
    """
    with node(script, REQUEST) as answer:
        assert [answer.next()[0] for _ in range(2)] == ["AbortError"] * 2
    assert proxy.records == []


def test_a_run_that_is_left_goes_on_and_can_be_followed(proxy: Proxy, upstream: Upstream, node: Run) -> None:
    count(upstream)
    script = """
    const answer = stream(input, { ...options, onToken: () => answer.leave() });
    await answer.result.catch(({ name }) => tell(name, answer.text));
    const again = follow(await answer.run, { ...options, onToken: (text) => tell(text) });
    tell((await again.result).text);
    """
    with node(script, REQUEST) as answer:
        assert answer.next() == ["AbortError", "One"]
        assert answer.next() == ["One"]
        exchange = upstream.request()
        exchange.release()
        assert answer.next() == [" two"]
        exchange.release()
        assert answer.next() == [" three"]
        assert answer.next() == ["One two three"]
    assert proxy.records == ["POST /runs", "GET /runs/*/events", "GET /runs/*/events"]


# Following


def test_a_run_can_be_followed_after_its_end_and_from_anywhere(proxy: Proxy, node: Run) -> None:
    script = """
    const first = stream(input, options), events = [];
    for await (const event of first) events.push(event);
    const { id } = await first.run, names = [];
    tell((await follow(id, options).result).text);
    tell((await follow(id, { ...options, lastEventId: `${id}-2` }).result).text);
    const last = follow(id, { ...options, lastEventId: events.at(-1).id, onEvent: ({ event }) => names.push(event) });
    const { text, event, data } = await last.result;
    tell(text, event, data.tokens, names);
    """
    with node(script, {"message": "one two", "model": "scripted/echo"}) as answer:
        assert answer.next() == ["one two"]
        assert answer.next() == [" two"]
        assert answer.next() == ["", "done", 2, []]
    assert proxy.records[-2:] == ["GET /runs/*/events after 4", "GET /runs/*"]


def test_a_run_that_is_not_kept_is_not_found(node: Run) -> None:
    with node("await follow(input, options).result.catch(reason);", "0" * 32) as answer:
        assert answer.next() == ["StreamError", "not_found", 404, False]


def test_a_signature_goes_along_and_must_be_right(proxy: Proxy, node: Run) -> None:
    script = """
    const { id, events_url } = await stream(input, options).run;
    tell((await follow({ id, events_url }, options).result).text);
    await follow({ id, events_url: events_url.slice(0, -1) }, options).result.catch(reason);
    """
    with node(script, {"message": "Hi", "model": "scripted/echo"}) as answer:
        assert answer.next() == ["Hi"]
        assert answer.next() == ["StreamError", "forbidden", 403, False]


# Asking for a run


def test_a_response_that_is_lost_is_not_paid_twice(proxy: Proxy, upstream: Upstream, node: Run) -> None:
    upstream.stream(chat({"content": "Once."}), *STOP[:-1])
    proxy.do("POST /runs", LOSE, Refuse(502), LOSE)
    with node("tell((await stream(input, options).result).text);", REQUEST) as answer:
        assert answer.next() == ["Once."]
    assert proxy.records == ["POST /runs"] * 4 + ["GET /runs/*/events"]
    assert upstream.request().wait().ended == "completed"
    assert upstream.exchanges.empty()


def test_a_service_that_says_when_is_asked_then(proxy: Proxy, node: Run) -> None:
    proxy.do("POST /runs", Refuse(503, "Retry-After: 2\r\n"))
    script = """
    const begun = performance.now();
    await stream(input, options).run;
    tell(performance.now() - begun);
    process.exit();
    """
    with node(script, {"message": "Hi", "model": "scripted/echo"}) as answer:
        assert answer.next()[0] >= 2000


def test_a_service_that_wants_long_to_be_left_alone_is(proxy: Proxy, node: Run) -> None:
    proxy.do("POST /runs", Refuse(429, "Retry-After: 3600\r\n"))
    script = (
        "await stream(input, options).result.catch(({ code, status, retryAfter }) => tell(code, status, retryAfter));"
    )
    with node(script, REQUEST) as answer:
        assert answer.next() == ["unreachable", 429, 3600]
    assert proxy.records == ["POST /runs"]


HASTE = """
const { setTimeout } = globalThis;
let waited = 0;
globalThis.setTimeout = (act, ms, ...rest) => { waited += ms; return setTimeout(act, ms / 1000, ...rest); };
"""


@pytest.mark.parametrize("treatment", [Refuse(503), LOSE])
def test_a_service_that_is_gone_is_asked_seven_times(proxy: Proxy, node: Run, treatment: Any) -> None:
    proxy.do("POST /runs", *[treatment] * 10)
    script = "await stream(input, options).result.catch(({ code, retryable }) => tell(code, retryable, waited));"
    with node(HASTE + script, {"message": "Hi", "model": "scripted/echo"}) as answer:
        code, retryable, waited = answer.next()
    assert (code, retryable) == ("unreachable", True)
    assert waited > 7500  # ms; Node's own timers are among them
    assert proxy.records == ["POST /runs"] * 7


def test_events_that_cannot_be_had_are_asked_for_seven_times(proxy: Proxy, node: Run) -> None:
    proxy.do("GET /runs/*/events", *[Refuse(502)] * 10)
    script = "await stream(input, options).result.catch(({ code, retryable }) => tell(code, retryable));"
    with node(HASTE + script, {"message": "Hi", "model": "scripted/echo"}) as answer:
        assert answer.next() == ["unreachable", True]
    assert len(proxy.seen("GET /runs/*/events")) == 7


def test_a_refusal_says_what_is_wrong(proxy: Proxy, node: Run) -> None:
    script = """
    const answer = stream(input, options);
    await answer.result.catch(reason);
    await answer.run.catch(({ message, data }) => tell(message, data.field));
    """
    with node(script, {"message": "Hi", "temperature": 9}) as answer:
        assert answer.next() == ["StreamError", "invalid_request", 400, False]
        text, field = answer.next()
    assert "temperature" in text
    assert field == "temperature"
    assert proxy.records == ["POST /runs"]


def test_what_is_no_sidestream_is_told_from_one(node: Run) -> None:
    script = """
    const fetch = async () => new Response("<!doctype html>");
    await stream(input, { ...options, fetch }).result.catch(reason);
    """
    with node(script, REQUEST) as answer:
        assert answer.next() == ["StreamError", "unexpected_response", 200, False]


def test_an_idempotency_key_of_the_callers_stands_for_one_run(proxy: Proxy, upstream: Upstream, node: Run) -> None:
    upstream.stream(chat({"content": "Once."}), *STOP[:-1])
    script = """
    const keyed = { ...options, headers: { "idempotency-key": "message 1" } };
    tell((await stream(input, keyed).result).text, (await stream(input, keyed).result).text);
    await stream({ ...input, message: "Else" }, keyed).result.catch(reason);
    """
    with node(script, REQUEST) as answer:
        assert answer.next() == ["Once."] * 2
        assert answer.next() == ["StreamError", "conflict", 409, False]
    assert upstream.request().wait().ended == "completed"


def test_cookies_go_along_where_the_caller_wants_that(node: Run) -> None:
    script = """
    const said = [];
    class Listening extends EventSource {
      constructor(url, init) { super(url); said.push(init.withCredentials); }
    }
    const asking = (url, init) => { said.push(init.credentials); return fetch(url, init); };
    for (const withCredentials of [true, undefined])
      await stream(input, { base, withCredentials, EventSource: Listening, fetch: asking }).result;
    tell(...said);
    """
    with node(script, {"message": "Hi", "model": "scripted/echo"}) as answer:
        assert answer.next() == ["include", True, "same-origin", False]


def test_without_an_eventsource_or_a_place_to_ask_nothing_is_asked(proxy: Proxy, node: Run) -> None:
    script = """
    for (const lacking of [{ base }, { EventSource }])
      try { stream(input, lacking); } catch ({ name, message }) { tell(name, message); }
    """
    with node(script, REQUEST) as answer:
        assert answer.next()[0] == "TypeError"
        assert answer.next() == ["TypeError", "Say as `base` where the service is."]
    assert proxy.records == []


# The types

TSCONFIG = {
    "strict": True,
    "noEmit": True,
    "exactOptionalPropertyTypes": True,
    "noUncheckedIndexedAccess": True,
    "target": "es2022",
    "lib": ["es2022", "dom", "dom.iterable"],
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
}
# What a request may call by another name, too; new code need not.
ALIASES = {"question", "system_prompt"}


def compiled(folder: Path, *files: Path) -> str:
    """Return what TypeScript complains of."""
    modules = {"sidestream": ROOT / "web" / "sidestream.d.ts", "eventsource": NPM / "node_modules" / "eventsource"}
    paths = {name: [str(path)] for name, path in modules.items()}
    config = {"compilerOptions": {**TSCONFIG, "paths": paths}, "files": [str(file) for file in files]}
    (folder / "tsconfig.json").write_text(json.dumps(config))
    tsc = NPM / "node_modules" / ".bin" / "tsc"
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run([tsc, "--project", folder], capture_output=True, text=True, timeout=DEADLINE, env=path)
    assert bool(done.returncode) == bool(done.stdout), done.stderr
    return done.stdout


def test_right_use_compiles_and_wrong_use_does_not(tmp_path: Path) -> None:
    assert compiled(tmp_path, ROOT / "tests" / "javascript" / "usage.ts") == ""


def subclasses(parent: type[Event]) -> Iterator[type[Event]]:
    for child in parent.__subclasses__():
        yield from subclasses(child) if child in (Delta, GraphEvent, Terminal) else [child]


def same(name: str, ours: str, theirs: Iterable[object]) -> str:
    """Write that a type's members are just these: an object of them has to have each and may have no other."""
    return f"export const {name}: Record<{ours}, 1> = {json.dumps(dict.fromkeys(map(str, theirs), 1))};\n"


def vocabulary() -> str:
    """Write as TypeScript what the service can say and be asked, every name of it."""
    events = {event.name: event for event in subclasses(Event)}
    codes = [code for fault in (RequestError, UpstreamError, ServiceError) for code in fault.codes]
    request = set(ChatRequest.__struct_fields__) - ALIASES
    lines = [
        'import type * as ours from "sidestream";\n',
        'type Data<Name> = Extract<ours.StreamEvent, { event: Name }>["data"];\n',
        "type Keys<Union> = Union extends unknown ? keyof Union : never;\n",
        same("events", 'ours.StreamEvent["event"]', events),
        *(same(f"of_{name}", f'keyof Data<"{name}">', kind.__struct_encode_fields__) for name, kind in events.items()),
        same("usage", "keyof ours.Usage", Usage.__struct_fields__),
        same("finishes", "ours.FinishReason", get_args(FinishReason)),
        same("cancels", "ours.CancelReason", get_args(CancelReason)),
        same("codes", "ours.ErrorCode", codes),
        same("request", "Keys<ours.ChatRequest>", request),
        same("message", "keyof ours.Message", Message.__struct_fields__),
        same("config", "keyof ours.RunnableConfig", RunnableConfig.__struct_fields__),
        same("modes", "ours.StreamMode", get_args(StreamMode)),
    ]
    return "".join(lines)


def test_the_types_have_every_name_the_service_has_and_no_other(tmp_path: Path) -> None:
    names = tmp_path / "names.ts"
    names.write_text(vocabulary())
    assert compiled(tmp_path, names) == ""
    names.write_text(vocabulary().replace('"disconnected"', '"left"').replace('"upstream_auth": 1, ', ""))
    assert len(compiled(tmp_path, names).splitlines()) == 2, "this would pass over anything"


def test_an_eventsource_is_told_every_name() -> None:
    """It hears no other."""
    source = (ROOT / "web" / "sidestream.js").read_text()
    (terminal,) = re.findall(r"const TERMINAL = (\[.*?\]);", source)
    (events,) = re.findall(r"const EVENTS = (\[[^\]]*?), \.\.\.TERMINAL\];", source)
    assert set(json.loads(terminal)) == {event.name for event in subclasses(Terminal)}
    assert {*json.loads(events + "]"), *json.loads(terminal)} == {event.name for event in subclasses(Event)}
