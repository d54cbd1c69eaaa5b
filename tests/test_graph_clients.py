"""A graph by the clients that know nothing of graphs, each its own: what it says is an answer like any other."""

from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from . import test_litellm_clients as litellm
from .client import DEADLINE
from .conftest import Service
from .node import told
from .served_graphs import answer, held
from .upstream import HOLD, Upstream

pytest_plugins = ["tests.upstream", "tests.served_graphs"]
# An SDK whose stream breaks off leaves its socket to the collector, which may come in any test.
pytestmark = [pytest.mark.usefixtures("leftovers"), pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

GRAPH, SAID = "langgraph/speaking", "Hello there."
ASKED = '{ model: "langgraph/speaking", stream: true'
MESSAGES = 'messages: [{ role: "user", content: "Hi" }]'
OPENAI_JS = f"""
import OpenAI from "openai";
const client = new OpenAI({{ baseURL: process.argv[1] + "/v1", apiKey: "none", maxRetries: 0 }});
let text = "";
for await (const chunk of await client.chat.completions.create({ASKED}, {MESSAGES} }}))
  text += chunk.choices[0]?.delta.content ?? "";
tell(text);
text = "";
for await (const event of await client.responses.create({ASKED}, input: "Hi" }}))
  if (event.type === "response.output_text.delta") text += event.delta;
tell(text);
"""
ANTHROPIC_JS = f"""
import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({{ baseURL: process.argv[1], apiKey: "none", maxRetries: 0 }});
let text = "";
for await (const event of await client.messages.create({ASKED}, max_tokens: 9, {MESSAGES} }}))
  if (event.type === "content_block_delta") text += event.delta.text;
tell(text);
"""


def url_of(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


@pytest.mark.parametrize(("script", "times"), [(OPENAI_JS, 2), (ANTHROPIC_JS, 1)], ids=["openai", "anthropic"])
def test_the_vendors_clients_in_node_are_answered_by_a_graph(
    graphs: Service, upstream: Upstream, script: str, times: int
) -> None:
    for _ in range(times):
        upstream.stream(*answer("Hello", " there."))
    assert told(script, url_of(graphs)) == [[SAID]] * times


def clients(service: Service) -> list[Any]:
    options: dict[str, Any] = {"timeout": DEADLINE, "max_retries": 0}
    known = {"model": GRAPH, "base_url": f"{url_of(service)}/v1", "api_key": SecretStr("none"), **options}
    claude = ChatAnthropic(
        model_name=GRAPH, base_url=url_of(service), api_key=SecretStr("none"), max_tokens=9, **options
    )
    return [ChatOpenAI(**known), ChatOpenAI(**known, use_responses_api=True), claude]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["chat", "responses", "anthropic"])
def test_langchains_clients_are_answered_by_a_graph(graphs: Service, upstream: Upstream, which: int) -> None:
    client = clients(graphs)[which]
    upstream.stream(*answer("Hello", " there."))
    assert "".join(chunk.text for chunk in client.stream("Hi")) == SAID
    upstream.stream(*answer("Hello", " there."))
    assert client.invoke("Hi").text == SAID


VENDORS = """
for vendor in ("openai", "anthropic"):
    tell("".join(chunk.choices[0].delta.content or "" for chunk in ask(vendor, "langgraph/speaking", stream=True)))
for chunk in ask("anthropic", "langgraph/speaking", stream=True):
    if chunk.choices[0].delta.content:
        break
tell("gone")  # with its process: left alone, it keeps the connection it has for Anthropic, read or not
"""


def test_litellm_is_answered_by_a_graph_whose_model_stops_when_its_process_ends(
    graphs: Service, upstream: Upstream
) -> None:
    for _ in range(2):
        upstream.stream(*answer("Hello", " there."))
    upstream.play(*held(HOLD)[:-1])
    with litellm.running(graphs, litellm.SCRIPT + VENDORS) as lines:
        assert [lines(), lines(), lines()] == [[SAID], [SAID], ["gone"]]
    *_, stopped = (upstream.request() for _ in range(3))
    assert stopped.wait().ended == "aborted"
