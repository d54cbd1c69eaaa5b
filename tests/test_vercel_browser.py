"""The Vercel AI SDK in Chromium: its `useChat` in React, as the example has it; and a page of another origin.

The pages are bundled by esbuild, which npm ships (see the Makefile), and of another origin than the service.
"""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Page

from .client import DEADLINE
from .conftest import ROOT, Service, Start
from .node import told
from .recorded import chat
from .upstream import HOLD, Head, Upstream, environ, warm

pytest_plugins = ["tests.upstream", "tests.browser"]

BUNDLE = """
const [, contents, loader] = process.argv, define = { "process.env.NODE_ENV": '"production"' };
const stdin = { contents, loader, resolveDir: process.cwd() };
const options = { stdin, define, bundle: true, write: false, minify: true, format: "esm", jsx: "automatic" };
const { outputFiles } = await (await import("esbuild")).build(options);
tell(outputFiles[0].text);
"""
WORKFLOW = """
import { WorkflowChatTransport } from "@ai-sdk/workflow/client";
const api = new URLSearchParams(location.search).get("url") + "/ui/chat";
const transport = new WorkflowChatTransport({ api });
const messages = [{ id: "u", role: "user", parts: [{ type: "text", text: "Hi" }] }];
const body = { model: "scripted/echo" };
const told = await transport.sendMessages({ chatId: "one", trigger: "submit-message", messages, body });
let text = "";
for await (const chunk of told) if (chunk.type === "text-delta") text += chunk.delta;
document.querySelector("#root").textContent = text;
"""


def bundled(source: str, loader: str) -> str:
    """Make a script for browsers of a module's source."""
    ((script,),) = told(BUNDLE, source, loader)
    return str(script)


class Pages(BaseHTTPRequestHandler):
    """A page each that runs a script; browsers let none of a public address ask one of this machine."""

    scripts: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        script = self.scripts.get(self.path)
        page = '<!doctype html><meta charset="utf-8"><div id="root"></div><script type="module">'
        page += f'import "{urlsplit(self.path).path}.js"</script>'
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript" if script else "text/html")
        self.end_headers()
        self.wfile.write((script or page).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """Serve the pages; return their origin."""
    Pages.scripts["/react.js"] = bundled((ROOT / "examples" / "vercel_chat.tsx").read_text(), "tsx")
    Pages.scripts["/workflow.js"] = bundled(WORKFLOW, "js")
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, name="pages")
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(DEADLINE)


@pytest.fixture(scope="module")
def allowing(start_service: Start, upstream_server: Upstream, pages: str) -> Service:
    """A service that these pages may use, whose OpenAI is the scripted upstream."""
    return warm(start_service(**environ(upstream_server), SIDESTREAM_ALLOWED_ORIGINS=pages), upstream_server)


Visit = Callable[..., None]


@pytest.fixture
def visit(tab: Page, pages: str, allowing: Service) -> Visit:
    """Open a page, which is told where the service is."""
    here = f"http://127.0.0.1:{allowing.port}"
    return lambda page, **query: tab.goto(f"{pages}/{page}?{urlencode({'url': here, **query})}")


def ask(tab: Page, text: str) -> None:
    tab.locator("input").fill(text)
    tab.get_by_text("Send").click()


def test_the_react_example_chats_with_the_embedded_model(tab: Page, visit: Visit) -> None:
    visit("react")
    ask(tab, "What is the capital of France?")
    tab.locator("p.assistant", has_text="Paris").wait_for()
    tab.get_by_text("Send").wait_for()
    assert tab.locator("p.user").all_inner_texts() == ["What is the capital of France?"]


def test_the_react_example_stops_the_upstream(tab: Page, visit: Visit, upstream: Upstream) -> None:
    upstream.play(Head(), chat({"content": "One"}), HOLD)
    visit("react", model="openai/gpt-4o-mini")
    ask(tab, "Count")
    tab.locator("p.assistant", has_text="One").wait_for()
    tab.get_by_text("Stop").click()
    tab.get_by_text("Send").wait_for()
    assert upstream.request().wait().ended == "aborted"
    assert tab.locator("p.user").all_inner_texts() == ["Count"]  # to stop is not to send


def test_the_react_example_shows_what_is_wrong(tab: Page, visit: Visit) -> None:
    visit("react", model="scripted/none")
    ask(tab, "Hi")
    alert = tab.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text().startswith("scripted has no 'none'")


def test_a_workflows_transport_reads_its_runs_id_across_origins(tab: Page, visit: Visit) -> None:
    visit("workflow")
    tab.locator("#root", has_text="Hi").wait_for()
