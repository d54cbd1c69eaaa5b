"""OpenAI's own SDK for JavaScript, in Node, against a real service: both APIs, unmodified but for their base URL."""

import json
from typing import Any

import pytest

from .conftest import Service
from .node import Node
from .node import told as told_by_node
from .recorded import OPENAI, OPENAI_RESPONSES, RESPONSE_OPENING, chat_end, chat_usage, function_call, response
from .recorded import call as call_chunk
from .served_graphs import answer
from .upstream import END, HOLD, PAUSE, Head, Upstream

pytest_plugins = ["tests.upstream"]

SDK = """
import OpenAI from 'openai';
const openai = new OpenAI({ baseURL: `http://127.0.0.1:${process.argv[1]}/v1`, apiKey: 'none', maxRetries: 0 });
const asked = JSON.parse(process.argv[2] ?? 'null');
const raised = async (work) => {
  try { await work(); } catch (error) {
    return [error.constructor.name, error.status ?? null, error.code ?? null, error.requestID?.length ?? 0];
  }
};
"""
HI = [{"role": "user", "content": "Say hello."}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
PARTS = ('{"city":', '"Paris"}')


def told(service: Service, script: str, asked: Any = None) -> list[Any]:
    return told_by_node(SDK + script, str(service.port), json.dumps(asked))


def script(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"model": "scripted/custom", "sidestream": {"provider_options": {"script": steps}}}


def test_text_comes_in_pieces_and_whole_by_both_apis(relay: Service) -> None:
    out = told(
        relay,
        """
        const { messages, input, ...common } = asked, deltas = [];
        const chunks = await openai.chat.completions.create({ messages, ...common, stream: true });
        for await (const chunk of chunks) deltas.push(chunk.choices[0]?.delta?.content ?? '');
        const chat = await openai.chat.completions.create({ messages, ...common });
        tell(deltas.join(''), deltas.length > 5, chat.choices[0].message.content === deltas.join(''));
        const runner = openai.chat.completions.stream({ messages, ...common });
        tell(await runner.finalContent());
        const stream = openai.responses.stream({ input, ...common }), kinds = [];
        let text = '';
        stream.on('response.output_text.delta', (event) => { text = event.snapshot; });
        for await (const event of stream) kinds.push(event.type);
        const final = await stream.finalResponse(), whole = await openai.responses.create({ input, ...common });
        tell(text, final.output_text === text, whole.output_text === text, final.status, kinds.at(0), kinds.at(-1));
        """,
        {
            "model": "local/smollm2",
            "messages": HI,
            "input": "Say hello.",
            "temperature": 0,
            "sidestream": {"max_tokens": 9},
        },
    )
    (text, many, same), helped, (said, *others) = out
    assert (len(text) > 10, many, same, helped) == (True, True, True, [text])
    assert len(said) > 10
    assert others == [True, True, "incomplete", "response.created", "response.incomplete"]


def test_reasoning_and_tools_are_put_together_by_both_helpers(relay: Service) -> None:
    steps = [{"call": {"id": f"call_{n}", "tool": "weather", "args": {"city": city}}} for n, city in enumerate("AB")]
    out = told(
        relay,
        """
        const { chat, responses } = asked;
        const message = await openai.chat.completions.stream(chat).finalMessage();
        const calls = message.tool_calls.map((call) => [call.id, call.function.arguments]);
        tell(message.content, message.reasoning_content, calls);
        const final = await openai.responses.stream(responses).finalResponse();
        tell(final.output_text, final.output.map((item) => item.summary?.[0].text ?? item.arguments ?? item.type));
        """,
        {
            "chat": {"messages": HI, **script({"think": "Hm."}, {"say": "Well."}, *steps)},
            "responses": {"input": "Hi", **script({"think": "Hm."}, {"say": "Well."}, *steps)},
        },
    )
    calls = ['{"city":"A"}', '{"city":"B"}']
    assert out == [
        ["Well.", "Hm.", [["call_0", calls[0]], ["call_1", calls[1]]]],
        ["Well.", ["Hm.", "message", *calls]],
    ]


def test_tools_are_run_by_the_clients_own_runner(relay: Service, upstream: Upstream) -> None:
    asks = (call_chunk(0, "", "call_1", "weather"), *(call_chunk(0, part) for part in PARTS))
    upstream.stream(*asks, *chat_end("tool_calls", chat_usage(14, 8)))
    upstream.stream(*answer("It is sunny", " in Paris."))
    upstream.stream(*RESPONSE_OPENING, *function_call(0, "weather", "call_1", *PARTS), response("response.completed"))
    upstream.stream(*OPENAI_RESPONSES.opening, OPENAI_RESPONSES.token("Sunny."), *OPENAI_RESPONSES.ending)
    out = told(
        relay,
        """
        const { messages, parameters } = asked, asks = [];
        const weather = { name: 'weather', parameters, parse: JSON.parse, description: 'Tells the weather.',
                          function: ({ city }) => { asks.push(city); return `Sunny in ${city}.`; } };
        const runner = openai.chat.completions.runTools(
          { model: 'openai/gpt-4o-mini', messages, stream: true, tools: [{ type: 'function', function: weather }] });
        tell(await runner.finalContent(), asks);
        const tools = [{ type: 'function', name: 'weather', parameters }];
        const common = { model: 'openai_responses/gpt-4o-mini', tools };
        const { output } = await openai.responses.stream({ input: messages, ...common }).finalResponse();
        const [{ call_id, arguments: args }] = output;
        const answered = { type: 'function_call_output', call_id, output: weather.function(JSON.parse(args)) };
        const last = await openai.responses.create({ input: [...messages, ...output, answered], ...common });
        tell(last.output_text, asks);
        """,
        {"messages": HI, "parameters": PARAMETERS},
    )
    assert out == [["It is sunny in Paris.", ["Paris"]], ["Sunny.", ["Paris", "Paris"]]]
    _, second, _, fourth = (upstream.request().body for _ in range(4))
    assert second["messages"][-1] == {"role": "tool", "tool_call_id": "call_1", "content": "Sunny in Paris."}
    assert fourth["input"][-1]["output"] == "Sunny in Paris."


def test_errors_are_of_the_clients_classes_before_and_after_the_first_word(relay: Service) -> None:
    out = told(
        relay,
        """
        const { messages, codes } = asked;
        const all = async (stream) => { for await (const _ of await stream); };
        for (const steps of codes) {
          const sidestream = { provider_options: { script: steps } };
          const common = { model: 'scripted/custom', stream: true, sidestream };
          tell(await raised(() => all(openai.chat.completions.create({ messages, ...common }))),
               await raised(() => all(openai.responses.create({ input: 'Hi', ...common }))),
               await raised(() => openai.responses.stream({ input: 'Hi', ...common }).finalResponse()));
        }
        tell(await raised(() => openai.responses.retrieve('resp_none')),
             await raised(() => openai.models.retrieve('no/such')),
             await raised(() => openai.responses.create({ input: 'Hi', background: true })));
        """,
        {
            "messages": HI,
            "codes": [
                [{"fail": "upstream_rejected"}],
                [{"fail": "upstream_rate_limited"}],
                [{"fail": "upstream_unavailable"}],
                [{"say": "Here"}, {"fail": "upstream_rate_limited"}],
            ],
        },
    )
    assert out == [
        [["BadRequestError", 400, "upstream_rejected", 32]] * 3,
        [["RateLimitError", 429, "rate_limit_exceeded", 32]] * 3,
        [["InternalServerError", 502, "upstream_unavailable", 32]] * 3,
        [["APIError", None, "rate_limit_exceeded", 32]] * 3,
        [
            ["NotFoundError", 404, "not_found", 0],
            ["NotFoundError", 404, "model_not_found", 0],
            ["BadRequestError", 400, "invalid_request", 0],
        ],
    ]


@pytest.mark.parametrize(
    ("api", "model", "dialect"),
    [("chat", "openai/gpt-4o-mini", OPENAI), ("responses", "openai_responses/gpt-4o-mini", OPENAI_RESPONSES)],
)
def test_who_stops_reading_stops_the_upstream(
    relay: Service, upstream: Upstream, api: str, model: str, dialect: Any
) -> None:
    upstream.play(Head(), *dialect.opening, dialect.token("Here"), HOLD)
    out = told(
        relay,
        """
        const { api, ...common } = asked, { messages, input } = asked;
        const stream = api === 'chat' ? await openai.chat.completions.create({ ...common, stream: true })
                                      : await openai.responses.create({ ...common, stream: true });
        for await (const event of stream) if (event.delta || event.choices?.[0].delta.content) break;
        tell('gone');
        """,
        {"api": api, "model": model, **({"messages": HI} if api == "chat" else {"input": "Hi"})},
    )
    assert out == [["gone"]]
    assert upstream.request().wait().ended == "aborted"


def test_who_comes_back_gets_what_he_has_not_seen(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), PAUSE, OPENAI.token(" I am."), *OPENAI.ending, END)
    lingering = """
    const seen = [], texts = [];
    const see = (event) => { seen.push(event.sequence_number); texts.push(event.delta ?? ''); return event; };
    for await (const event of await openai.responses.create({ ...asked, stream: true }))
      if (see(event).response) asked.id = event.response.id; else if (event.delta) break;
    const rest = await openai.responses.retrieve(asked.id, { stream: true, starting_after: seen.at(-1) });
    tell('back');
    for await (const event of rest) see(event);
    tell(seen, texts.join(''));
    const replayed = await openai.responses.stream({ response_id: asked.id, starting_after: 5 }).finalResponse();
    tell(replayed.output_text, (await openai.responses.retrieve(asked.id)).output_text);
    """
    asked = {"model": "openai/gpt-4o-mini", "input": "Hi", "sidestream": {"linger": 30}}
    with Node(SDK + lingering, str(relay.port), json.dumps(asked)) as node:
        assert node.next() == ["back"]
        upstream.request().release()
        seen, text = node.next()
        assert (seen, text) == ([*range(len(seen))], "Here I am.")
        assert node.next() == ["Here I am.", "Here I am."]


def test_a_response_is_stopped_by_its_id(relay: Service, upstream: Upstream) -> None:
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD)
    out = told(
        relay,
        """
        const stream = await openai.responses.create({ ...asked, stream: true });
        const failed = await raised(async () => {
          for await (const event of stream) if (event.delta) tell((await openai.responses.cancel(asked.id)).status);
            else asked.id ??= event.response?.id;
        });
        tell(failed, (await openai.responses.retrieve(asked.id)).status);
        """,
        {"model": "openai/gpt-4o-mini", "input": "Hi"},
    )
    assert out == [["cancelled"], [["APIError", None, "cancelled", 32], "cancelled"]]
    assert upstream.request().wait().ended == "aborted"


def test_models_are_listed_and_found(relay: Service) -> None:
    out = told(
        relay,
        """
        const ids = [];
        for await (const model of openai.models.list()) ids.push(model.id);
        tell(ids.includes('scripted/hello'), (await openai.models.retrieve('scripted/hello')).owned_by);
        """,
    )
    assert out == [[True, "scripted"]]
