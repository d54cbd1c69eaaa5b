"""The settings: `SIDESTREAM_<NAME>` in the environment, else `<name>` in a TOML file, else the default below.

The file is named by SIDESTREAM_CONFIG. Every field is checked before anything starts, so that every bad value can be
named in one message. Lists are comma-separated in the environment, tables are JSON, graphs and chains also
`name=module:attr,...`. Vendors' own variables (API keys, base URLs) belong to the providers that read them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import FieldInfo, replace

from .breaker import BreakerPolicy
from .failover import Retries
from .request import WEEK, Fallbacks, ModelNames, ProviderSettings, Seconds

PREFIX = "SIDESTREAM_"
Bytes = Annotated[int, Meta(gt=0)]
Origin = Annotated[str, Meta(pattern=r"^https?://[^/?#\s*]+$")]
TARGET = re.compile(r"[\w.]+:\w+")
Doc = Meta
# The same by another name, in the environment.
SPELLINGS = {"graphs": "langgraph", "chains": "langchain"}


class Settings(Struct, frozen=True, kw_only=True):
    """What an operator can set. A request may shorten the three deadlines, never lengthen them."""

    model: Annotated[str, Doc(description="default model, `provider/model`; else the first provider that is ready")] = (
        ""
    )
    models: Annotated[
        dict[str, ModelNames | Fallbacks],
        Doc(description="aliases: a name for models to ask one after the other until one answers"),
    ] = field(default_factory=dict)
    run_timeout: Annotated[Seconds, Doc(description="longest a run may take, seconds")] = 600.0
    first_token_timeout: Annotated[Seconds, Doc(description="longest wait for the first content, seconds")] = 120.0
    idle_timeout: Annotated[Seconds, Doc(description="longest silence between contents, seconds")] = 60.0
    max_retries: Annotated[
        int, Meta(ge=0, le=20), Doc(description="how often a model that said nothing yet is asked again")
    ] = 2
    retry_delay: Annotated[
        Seconds,
        Doc(description="wait before it is asked again, seconds: twice as long each time, half of it at random"),
    ] = 0.5
    max_retry_after: Annotated[
        float,
        Meta(ge=0, le=WEEK),
        Doc(description="longest `Retry-After` of an upstream that is waited for, seconds"),
    ] = 10.0
    breaker_share: Annotated[
        float,
        Meta(gt=0, le=1),
        Doc(description="share of failed attempts from which on another model is asked first, if there is one"),
    ] = 0.5
    breaker_attempts: Annotated[int, Meta(ge=1), Doc(description="of at least so many attempts")] = 5
    breaker_window: Annotated[Seconds, Doc(description="within so many seconds")] = 30.0
    breaker_pause: Annotated[Seconds, Doc(description="for so many seconds; then one attempt tries it")] = 10.0
    max_run_bytes: Annotated[Bytes, Doc(description="largest answer kept, bytes; past it the run ends")] = 16 * 2**20
    max_body_bytes: Annotated[Bytes, Doc(description="largest request body, bytes")] = 16 * 2**20
    ping_interval: Annotated[
        float,
        Meta(ge=0, le=WEEK),
        Doc(description="seconds of silence after which an open stream gets a ping, 0 for none"),
    ] = 15.0
    send_timeout: Annotated[Seconds, Doc(description="a viewer that takes nothing for so long is let go, seconds")] = (
        60.0
    )
    linger: Annotated[
        Seconds,
        Doc(description="how long a run of `POST /runs` goes on without a viewer, if it asks for no other, seconds"),
    ] = 15.0
    max_linger: Annotated[Seconds, Doc(description="longest `linger` a request may ask for, seconds")] = 300.0
    keep: Annotated[
        float,
        Meta(ge=0, le=WEEK),
        Doc(description="how long a run that is over is kept, to be resumed or read, seconds"),
    ] = 60.0
    keep_bytes: Annotated[
        int, Meta(ge=0), Doc(description="how much is kept of runs that are over, bytes; the oldest go first")
    ] = 64 * 2**20
    url_secret: Annotated[
        str,
        Meta(min_length=16),
        Doc(description="signs the URLs of runs, 16 characters or more; else each process has its own, at random"),
    ] = ""
    retry_ms: Annotated[
        int, Meta(ge=0), Doc(description="how long an EventSource waits before it reconnects, milliseconds")
    ] = 3000
    allowed_origins: Annotated[
        list[Origin], Doc(description="other sites whose pages may use this service, as `https://app.example`")
    ] = []
    providers: Annotated[
        dict[str, ProviderSettings], Doc(description="more providers, or other models for the built-in ones")
    ] = field(default_factory=dict)
    langgraph: Annotated[
        dict[str, str], Doc(description='graphs by name, `agent = "my_app.graph:graph"`; also `SIDESTREAM_GRAPHS`')
    ] = field(default_factory=dict)
    langchain: Annotated[dict[str, str], Doc(description="chains by name, as graphs are; also `SIDESTREAM_CHAINS`")] = (
        field(default_factory=dict)
    )
    threads: Annotated[
        int, Meta(ge=1, le=1000), Doc(description="threads for what is synchronous in chains and graphs")
    ] = 32

    @property
    def tables(self) -> dict[str, ProviderSettings]:
        """The providers' tables; those of graphs and chains hold where each is, by name."""
        tables = dict(self.providers)
        for kind, targets in (("langgraph", self.langgraph), ("langchain", self.langchain)):
            if targets:
                tables[kind] = replace(tables.get(kind, ProviderSettings()), options=targets)
        return tables

    @property
    def retries(self) -> Retries:
        return Retries(self.max_retries, self.retry_delay, self.max_retry_after)

    @property
    def breaker(self) -> BreakerPolicy:
        return BreakerPolicy(self.breaker_share, self.breaker_attempts, self.breaker_window, self.breaker_pause)


def load(environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Read the settings. Beside them comes a list of every bad value and every name that is no setting."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    fields = {f.name: f for f in msgspec.structs.fields(Settings)}
    for source, name, raw in [*_from_file(environ, problems), *_from_environment(environ)]:
        if name not in fields:
            problems.append(f"{source}: no such setting")
            continue
        try:
            values[name] = _convert(raw, fields[name])
        except (msgspec.ValidationError, msgspec.DecodeError) as exc:
            problems.append(f"{source}: {exc}")
    settings = Settings(**values)
    if settings.linger > settings.max_linger:
        if "linger" in values:
            told = f"{settings.linger:g} s is longer than max_linger, {settings.max_linger:g} s"
            problems.append(f"{PREFIX}LINGER: {told}")
        settings = replace(settings, linger=settings.max_linger)
    return settings, problems


def _convert(raw: Any, spec: FieldInfo) -> Any:
    if isinstance(raw, str):
        raw = _parsed(raw, spec.name)
    if isinstance(raw, dict) and spec.name == "providers":
        return {name: _named(name, table, ProviderSettings) for name, table in raw.items()}
    if isinstance(raw, dict) and spec.name == "models":
        return {name: _named(name, models, ModelNames | Fallbacks) for name, models in raw.items()}
    if isinstance(raw, dict) and spec.name in SPELLINGS.values():
        for name, target in raw.items():
            if not isinstance(target, str) or not TARGET.fullmatch(target):
                raise msgspec.ValidationError(f"{name}: Expected `module:attr`, got `{target}`")
    return msgspec.convert(raw, spec.type, strict=False)


def _parsed(text: str, name: str) -> Any:
    """Read what the environment holds as text, where it stands for a list or a table."""
    if name == "allowed_origins":
        return [origin for part in text.split(",") if (origin := part.strip())]
    if name in SPELLINGS.values() and not text.lstrip().startswith("{"):
        return _pairs(text)
    return msgspec.json.decode(text) if name in ("models", "providers", *SPELLINGS.values()) else text


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, target = map(str.strip, part.partition("="))
        if not equals:
            raise msgspec.ValidationError(f"Expected `name=module:attr`, got `{part}`")
        if name in pairs:
            raise msgspec.ValidationError(f"{name}: given twice")
        pairs[name] = target
    return pairs


def _named(name: str, table: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(table, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise msgspec.ValidationError(f"{name}: {exc}") from exc


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    return [
        (key, SPELLINGS.get(name := key.removeprefix(PREFIX).lower(), name), value)
        for key, value in sorted(environ.items())
        if key.startswith(PREFIX) and key != PREFIX + "CONFIG" and value != ""
    ]


def _from_file(environ: Mapping[str, str], problems: list[str]) -> list[tuple[str, str, Any]]:
    path = environ.get(PREFIX + "CONFIG")
    if not path:
        return []
    try:
        import tomllib  # here, since most start without a file

        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        problems.append(f"{PREFIX}CONFIG {path}: {exc.strerror if isinstance(exc, OSError) else exc}")
        return []
    return [(f"{path}: {name}", name, value) for name, value in table.items()]
