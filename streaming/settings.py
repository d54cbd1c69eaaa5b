"""The settings: `SIDESTREAM_<NAME>` in the environment, else `<name>` in a TOML file, else the default below.

The file is named by SIDESTREAM_CONFIG. Every field is checked before anything starts, so that every bad value can be
named in one message. Lists are comma-separated in the environment, tables are JSON, graphs and chains also
`name=module:attr,...`. Vendors' own variables (API keys, base URLs) belong to the providers that read them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import FieldInfo, replace

from .admission import Capacity
from .breaker import BreakerPolicy
from .failover import Retries
from .limits import Limits
from .logs import Format
from .request import WEEK, Fallbacks, ModelNames, ProviderSettings, Seconds

PREFIX = "SIDESTREAM_"
Bytes = Annotated[int, Meta(gt=0)]
Origin = Annotated[str, Meta(pattern=r"^https?://[^/?#\s*]+$")]
Host = Annotated[str, Meta(pattern=r"^(?:\*|(?:\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])$")]
Count = Annotated[int, Meta(ge=0)]
TARGET = re.compile(r"[\w.]+:\w+")
# A name, by which a key is told from others, and the key itself: what a header can hold, and no comma.
# Where a pattern says less than an example.
EXAMPLES = {
    "allowed_origins": "; an origin is `https://app.example`, without a path, not even `/`",
    "allowed_hosts": "; a name is `app.example`, without a scheme or a port",
}
API_KEY = re.compile(r"([A-Za-z0-9._-]{1,100}):([!-+\--~]+)")
Doc = Meta
LISTS = {"allowed_hosts", "allowed_origins", "api_keys"}
# The same by another name, in the environment.
SPELLINGS = {"graphs": "langgraph", "chains": "langchain"}


class Settings(Struct, frozen=True, kw_only=True):
    """What an operator can set. A request may shorten the three deadlines, never lengthen them."""

    model: Annotated[
        str, Doc(description="default model, `provider/model`, or alias; else the first provider that is ready")
    ] = ""
    models: Annotated[
        dict[str, ModelNames | Fallbacks],
        Doc(description="aliases: a name for models to ask one after the other until one answers"),
    ] = field(default_factory=dict)
    host: Annotated[str, Doc(description="address that the command `sidestream` listens on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535), Doc(description="its port; also `PORT`")] = 8000
    api_keys: Annotated[
        list[str], Doc(description="who may use this service, as `name:KEY`; runs belong to the name")
    ] = []
    api_keys_file: Annotated[str, Doc(description="the same in a file, one a line; read anew when it has changed")] = ""
    jwt_secret: Annotated[
        str, Meta(min_length=32), Doc(description="accepts JWTs signed with this (HS256 ...), 32 characters or more")
    ] = ""
    jwt_keys_file: Annotated[
        str,
        Doc(description="accepts JWTs signed with one of the keys in this JWKS file; read anew when it has changed"),
    ] = ""
    jwt_audience: Annotated[str, Doc(description="what their `aud` must be")] = ""
    jwt_issuer: Annotated[str, Doc(description="what their `iss` must be")] = ""
    jwt_cookie: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9._-]+$"), Doc(description="a cookie that may hold one, too")
    ] = ""
    public_metrics: Annotated[
        bool, Doc(description="`/metrics` and `/readyz?verbose` need no key, though others do")
    ] = False
    allow_upstream_keys: Annotated[
        bool, Doc(description="callers may bring a key of their own for the upstream, in `X-Upstream-Key`")
    ] = False
    allowed_hosts: Annotated[
        list[Host],
        Doc(
            description="names this service is reached by, `app.example`, `*.app.example` or `*`;"
            " else any, but only local ones over loopback where no key is needed"
        ),
    ] = []
    max_runs: Annotated[Count, Doc(description="most runs at once, 0 for any number; the others wait in line")] = 10_000
    max_runs_per_owner: Annotated[Count, Doc(description="most runs at once of one owner, 0 for any number")] = 0
    max_queue: Annotated[Count, Doc(description="most runs that wait in line; who comes then is refused")] = 1000
    max_queue_per_owner: Annotated[Count, Doc(description="most of one owner, 0 for any number")] = 0
    queue_timeout: Annotated[Seconds, Doc(description="longest a run waits in line, seconds")] = 60.0
    rate_limit: Annotated[
        Count, Doc(description="most requests for a run, of one owner in a minute, 0 for any number")
    ] = 0
    max_messages: Annotated[
        int, Meta(gt=0, le=10_000), Doc(description="most messages in a request")  # more would halt all other streams
    ] = 1000
    max_viewers: Annotated[int, Meta(gt=0), Doc(description="most viewers of a run")] = 10_000
    max_connections: Annotated[
        Count, Doc(description="most connections to the command's server, 0 for any number; who comes then gets 503")
    ] = 20_000
    header_timeout: Annotated[
        Seconds, Doc(description="longest the command's server waits for a request's head, seconds")
    ] = 20.0
    body_timeout: Annotated[Seconds, Doc(description="longest wait for a request's body, seconds")] = 30.0
    drain_timeout: Annotated[
        float,
        Meta(ge=0, le=WEEK),
        Doc(description="how long runs may go on once the service is told to stop, seconds"),
    ] = 25.0
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
    redis_url: Annotated[
        str,
        Doc(description="Redis by which replicas share their runs, as `redis://host:6379/0`; needs the extra `redis`"),
    ] = ""
    url_secret: Annotated[
        str,
        Meta(min_length=16),
        Doc(description="signs the URLs of runs, 16 characters or more; else each process has its own, at random"),
    ] = ""
    log_format: Annotated[
        Format, Doc(description="how to log, `text` or `json`: one line a run, and what goes wrong")
    ] = "text"
    tracing: Annotated[
        bool,
        Doc(description="one OpenTelemetry span a run, sent as the variables `OTEL_*` say; needs the extra `otel`"),
    ] = False
    trace_prompts: Annotated[bool, Doc(description="spans hold prompts and answers, too")] = False
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
    def limits(self) -> Limits:
        """The longest that a request may ask for."""
        return Limits(
            self.run_timeout,
            self.first_token_timeout,
            self.idle_timeout,
            self.max_run_bytes,
            self.max_linger,
            self.queue_timeout,
            self.max_viewers,
        )

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.max_runs, self.max_runs_per_owner, self.max_queue, self.max_queue_per_owner)

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
            problems.append(f"{source}: {exc}{EXAMPLES.get(name, '') if 'regex' in str(exc) else ''}")
    settings = Settings(**values)
    if settings.linger > settings.max_linger:
        if "linger" in values:
            told = f"{settings.linger:g} s is longer than max_linger, {settings.max_linger:g} s"
            problems.append(f"{PREFIX}LINGER: {told}")
        settings = replace(settings, linger=settings.max_linger)
    if not settings.jwt_secret and not settings.jwt_keys_file:
        idle = [name for name in ("jwt_audience", "jwt_issuer", "jwt_cookie") if name in values]
        problems += [f"{PREFIX}{name.upper()}: of no use without jwt_secret or jwt_keys_file" for name in idle]
    if settings.trace_prompts and not settings.tracing:
        problems.append(f"{PREFIX}TRACE_PROMPTS: of no use without tracing")
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
    value = msgspec.convert(raw, spec.type, strict=False)
    if spec.name == "api_keys":
        check_keys(value)
    return value


def check_keys(pairs: Sequence[str]) -> None:
    """Raise ValidationError where they are not all `name:KEY`, or one key has two names; it repeats none of them."""
    if bad := [str(place) for place, pair in enumerate(pairs, 1) if not API_KEY.fullmatch(pair)]:
        raise msgspec.ValidationError(f"Expected `name:KEY`, and no space or comma in it (number {', '.join(bad)})")
    if len({pair.partition(":")[2] for pair in pairs}) < len(pairs):
        raise msgspec.ValidationError("the same key is given twice")


def _parsed(text: str, name: str) -> Any:
    """Read what the environment holds as text, where it stands for a list or a table."""
    if name in LISTS:
        found = [one for part in text.split(",") if (one := part.strip())]
        if not found:  # which would leave open what somebody meant to close
            raise msgspec.ValidationError("there is nothing in it")
        return found
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
