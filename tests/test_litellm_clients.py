"""LiteLLM as a client, in an environment of its own (see the Makefile): as if the service were OpenAI, or Anthropic."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .client import DEADLINE
from .conftest import Service
from .recorded import OPENAI
from .upstream import HOLD, Head, Upstream

pytest_plugins = ["tests.upstream"]

PYTHON = Path(sys.prefix) / "litellm" / "bin" / "python"
# It would fetch a list of prices otherwise, and tell of itself.
ALONE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "PATH": os.environ["PATH"]}
SCRIPT = """
import json, sys
import litellm
from litellm import completion

url, vendors, stops = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
messages = [{"role": "user", "content": "Say hello."}]
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]


def ask(vendor, model, *steps, **options):
    base = f"{url}/v1" if vendor == "openai" else url
    if steps:
        options["sidestream"] = {"provider_options": {"script": steps}}
    options = {"messages": messages, "api_base": base, "api_key": "none", "max_retries": 0, "timeout": 20, **options}
    return completion(model=f"{vendor}/{model}", **options)


def tell(*values):
    print(json.dumps(values), flush=True)


for vendor in vendors:
    chunks = list(ask(vendor, "local/smollm2", stream=True, max_tokens=12, temperature=0))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    whole = ask(vendor, "local/smollm2", max_tokens=12, temperature=0)
    tell(len([text for text in texts if text]) > 3, "".join(texts) == whole.choices[0].message.content,
         whole.usage.total_tokens > 12)
    steps = {"call": {"tool": "weather", "args": {"city": "Paris"}}}, {"finish": "tool_calls"}
    chunks = list(ask(vendor, "scripted/custom", *steps, stream=True, tools=tools))
    message = litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message
    answered = [{"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in message.tool_calls]
    echoed = ask(vendor, "scripted/echo", messages=[*messages, message.model_dump(), *answered], tools=tools)
    tell([call.function.arguments for call in message.tool_calls], chunks[-1].choices[0].finish_reason,
         echoed.choices[0].message.content)
    for steps in ([{"fail": "upstream_rate_limited"}], [{"say": "Here I am"}, {"fail": "upstream_unavailable"}]):
        said = ""
        try:
            for chunk in ask(vendor, "scripted/custom", *steps, stream=True):
                said += chunk.choices[0].delta.content or ""
        except Exception as exc:
            tell(said, type(exc).__name__)
for model in stops:
    for chunk in ask("openai", model, stream=True):
        if chunk.choices[0].delta.content:
            break
    chunk = None
    tell("gone")
"""


@contextmanager
def running(service: Service, script: str) -> Iterator[Callable[[], Any]]:
    """Run a script that asks nobody by itself, and yield what returns the next that it tells; its end is in peace."""
    command = [PYTHON, "-c", script, f"http://127.0.0.1:{service.port}", "[]", "[]"]
    with subprocess.Popen(command, env=ALONE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        alarm = threading.Timer(3 * DEADLINE, process.kill)
        alarm.start()
        assert process.stdout
        yield lambda: json.loads(process.stdout.readline())
        process.communicate()
        alarm.cancel()
        assert process.returncode == 0


def told(service: Service, vendors: list[str], stops: list[str]) -> list[Any]:
    command = [PYTHON, "-c", SCRIPT, f"http://127.0.0.1:{service.port}", json.dumps(vendors), json.dumps(stops)]
    done = subprocess.run(command, env=ALONE, capture_output=True, text=True, timeout=3 * DEADLINE, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_it_takes_us_for_openai_and_for_anthropic(relay: Service, upstream: Upstream) -> None:
    """A real model's words, a round of tools, errors before and after the first word, and a stop."""
    upstream.play(Head(), *OPENAI.opening, OPENAI.token("Here"), HOLD)
    of_each = [
        [True, True, True],
        [['{"city":"Paris"}'], "tool_calls", "Sunny."],
        ["", "RateLimitError"],
        ["Here I am", "MidStreamFallbackError"],
    ]
    assert told(relay, ["openai", "anthropic"], ["openai/gpt-4o-mini"]) == [*of_each, *of_each, ["gone"]]
    assert upstream.request().wait().ended == "aborted"
