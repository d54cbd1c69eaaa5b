"""The settings: environment over file over default, and every bad value of all sources named in one message."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service import create_service
from streaming.errors import SettingsError
from streaming.request import Fallbacks, ProviderSettings
from streaming.settings import Settings, load

from .client import DEADLINE
from .conftest import FOREIGN, ROOT

DEFAULTS: dict[str, Any] = {
    "model": "",
    "models": {},
    "host": "127.0.0.1",
    "port": 8000,
    "api_keys": [],
    "api_keys_file": "",
    "jwt_secret": "",
    "jwt_keys_file": "",
    "jwt_audience": "",
    "jwt_issuer": "",
    "jwt_cookie": "",
    "public_metrics": False,
    "allow_upstream_keys": False,
    "allowed_hosts": [],
    "max_runs": 10_000,
    "max_runs_per_owner": 0,
    "max_queue": 1000,
    "max_queue_per_owner": 0,
    "queue_timeout": 60.0,
    "rate_limit": 0,
    "max_messages": 1000,
    "max_viewers": 10_000,
    "max_connections": 20_000,
    "header_timeout": 20.0,
    "body_timeout": 30.0,
    "drain_timeout": 25.0,
    "run_timeout": 600.0,
    "first_token_timeout": 120.0,
    "idle_timeout": 60.0,
    "max_retries": 2,
    "retry_delay": 0.5,
    "max_retry_after": 10.0,
    "breaker_share": 0.5,
    "breaker_attempts": 5,
    "breaker_window": 30.0,
    "breaker_pause": 10.0,
    "max_run_bytes": 16_777_216,
    "max_body_bytes": 16_777_216,
    "ping_interval": 15.0,
    "send_timeout": 60.0,
    "linger": 15.0,
    "max_linger": 300.0,
    "keep": 60.0,
    "keep_bytes": 67_108_864,
    "redis_url": "",
    "url_secret": "",
    "log_format": "text",
    "tracing": False,
    "trace_prompts": False,
    "retry_ms": 3000,
    "allowed_origins": [],
    "providers": {},
    "langgraph": {},
    "langchain": {},
    "threads": 32,
}


def changed(**fields: Any) -> Settings:
    return Settings(**{**DEFAULTS, **fields})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "sidestream.toml"


def test_without_any_setting_the_defaults_count() -> None:
    assert load({}) == (changed(), [])


def test_every_setting_has_a_description_for_who_lists_them() -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    assert list(fields) == list(DEFAULTS)
    described = {name for name, kind in fields.items() if msgspec.inspect.type_info(kind).extra_json_schema}
    assert described == set(fields)


ENVIRONMENT = [
    ("MODEL", "openai/gpt", {"model": "openai/gpt"}),
    ("MODEL", "null", {"model": "null"}),
    ("RUN_TIMEOUT", "5", {"run_timeout": 5.0}),
    ("FIRST_TOKEN_TIMEOUT", "0.5", {"first_token_timeout": 0.5}),
    ("IDLE_TIMEOUT", "1e3", {"idle_timeout": 1000.0}),
    ("MODELS", '{"fast": ["a/b", "c"]}', {"models": {"fast": ["a/b", "c"]}}),
    (
        "MODELS",
        '{"long": {"models": ["a"], "on": ["context_length"]}}',
        {"models": {"long": Fallbacks(["a"], ["context_length"])}},
    ),
    ("MAX_RETRIES", "0", {"max_retries": 0}),
    ("RETRY_DELAY", "0.1", {"retry_delay": 0.1}),
    ("MAX_RETRY_AFTER", "0", {"max_retry_after": 0.0}),
    ("BREAKER_SHARE", "1", {"breaker_share": 1.0}),
    ("BREAKER_ATTEMPTS", "1", {"breaker_attempts": 1}),
    ("BREAKER_WINDOW", "60", {"breaker_window": 60.0}),
    ("BREAKER_PAUSE", "0.5", {"breaker_pause": 0.5}),
    ("MAX_RUN_BYTES", "1", {"max_run_bytes": 1}),
    ("MAX_BODY_BYTES", "1000", {"max_body_bytes": 1000}),
    ("PING_INTERVAL", "0", {"ping_interval": 0.0}),
    ("SEND_TIMEOUT", "2.5", {"send_timeout": 2.5}),
    ("LINGER", "300", {"linger": 300.0}),
    ("MAX_LINGER", "15", {"max_linger": 15.0}),
    ("KEEP", "0", {"keep": 0.0}),
    ("KEEP_BYTES", "0", {"keep_bytes": 0}),
    ("URL_SECRET", "0123456789abcdef", {"url_secret": "0123456789abcdef"}),
    ("RETRY_MS", "0", {"retry_ms": 0}),
    ("ALLOWED_ORIGINS", "https://a.example", {"allowed_origins": ["https://a.example"]}),
    (
        "ALLOWED_ORIGINS",
        " https://a.example , https://b.example,, ",
        {"allowed_origins": ["https://a.example", "https://b.example"]},
    ),
    (
        "PROVIDERS",
        '{"x": {"use": "openai", "models": ["m"]}}',
        {"providers": {"x": ProviderSettings("openai", models=["m"])}},
    ),
    ("API_KEYS", "web:abc, cron:d:e/f+=", {"api_keys": ["web:abc", "cron:d:e/f+="]}),
    ("API_KEYS", "web:abc,web:def", {"api_keys": ["web:abc", "web:def"]}),
    ("API_KEYS_FILE", "/run/keys", {"api_keys_file": "/run/keys"}),
    ("JWT_SECRET", "0" * 32, {"jwt_secret": "0" * 32}),
    ("JWT_KEYS_FILE", "/run/jwks", {"jwt_keys_file": "/run/jwks"}),
    ("PUBLIC_METRICS", "true", {"public_metrics": True}),
    ("ALLOW_UPSTREAM_KEYS", "1", {"allow_upstream_keys": True}),
    ("ALLOWED_HOSTS", "app.example, *.b.example,[::1]", {"allowed_hosts": ["app.example", "*.b.example", "[::1]"]}),
    ("ALLOWED_HOSTS", "*", {"allowed_hosts": ["*"]}),
    ("HOST", "0.0.0.0", {"host": "0.0.0.0"}),
    ("PORT", "0", {"port": 0}),
    ("MAX_RUNS", "0", {"max_runs": 0}),
    ("MAX_QUEUE", "0", {"max_queue": 0}),
    ("DRAIN_TIMEOUT", "0", {"drain_timeout": 0.0}),
    ("LOG_FORMAT", "json", {"log_format": "json"}),
    ("TRACING", "true", {"tracing": True}),
    ("GRAPHS", "agent=my_app.graph:graph", {"langgraph": {"agent": "my_app.graph:graph"}}),
    ("GRAPHS", " a = m:g , b=m.n:h,, ", {"langgraph": {"a": "m:g", "b": "m.n:h"}}),
    ("GRAPHS", '{"a": "m:g", "b": "m:h"}', {"langgraph": {"a": "m:g", "b": "m:h"}}),
    ("GRAPHS", "{}", {}),
    ("GRAPHS", " , ", {}),
    ("CHAINS", "writer=my_app.chains:writer", {"langchain": {"writer": "my_app.chains:writer"}}),
    ("CHAINS", '{"a": "m:g"}', {"langchain": {"a": "m:g"}}),
    ("LANGGRAPH", "a=m:g", {"langgraph": {"a": "m:g"}}),
    ("THREADS", "1", {"threads": 1}),
    ("THREADS", "1000", {"threads": 1000}),
    ("MODEL", "", {}),
    ("RUN_TIMEOUT", "", {}),
    ("GRAPHS", "", {}),
]


@pytest.mark.parametrize(("name", "value", "fields"), ENVIRONMENT)
def test_a_variable_sets_its_field(name: str, value: str, fields: dict[str, Any]) -> None:
    assert load({f"SIDESTREAM_{name}": value, "UNRELATED": "x", "SIDESTREAMX": "y"}) == (changed(**fields), [])


def test_a_file_sets_fields_and_the_environment_wins_over_it(config: Path) -> None:
    config.write_text(
        """
        model = "openai/é"
        run_timeout = 5
        idle_timeout = 2.5
        allowed_origins = ["https://a.example"]
        [providers.mine]
        use = "openai"
        base_url = "http://127.0.0.1:1/v1"
        options = {a = 1}
        [providers.scripted]
        enabled = false
        """,
        encoding="utf-8",
    )
    settings, problems = load({"SIDESTREAM_CONFIG": str(config), "SIDESTREAM_RUN_TIMEOUT": "7"})
    mine = ProviderSettings("openai", "http://127.0.0.1:1/v1", options={"a": 1})
    assert (settings, problems) == (
        changed(
            model="openai/é",
            run_timeout=7.0,
            idle_timeout=2.5,
            allowed_origins=["https://a.example"],
            providers={"mine": mine, "scripted": ProviderSettings(enabled=False)},
        ),
        [],
    )


@pytest.mark.parametrize(
    ("environ", "linger", "problems"),
    [
        ({"LINGER": "301"}, 300.0, ["SIDESTREAM_LINGER: 301 s is longer than max_linger, 300 s"]),
        ({"MAX_LINGER": "5"}, 5.0, []),
        ({"MAX_LINGER": "5", "LINGER": "4"}, 4.0, []),
        ({"MAX_LINGER": "5", "LINGER": "6"}, 5.0, ["SIDESTREAM_LINGER: 6 s is longer than max_linger, 5 s"]),
    ],
)
def test_a_run_lingers_no_longer_by_default_than_it_may_at_most(
    environ: dict[str, str], linger: float, problems: list[str]
) -> None:
    settings, found = load({f"SIDESTREAM_{name}": value for name, value in environ.items()})
    assert (settings.linger, found) == (linger, problems)


@pytest.mark.parametrize("name", ["AUDIENCE", "ISSUER", "COOKIE"])
def test_what_is_expected_of_tokens_wants_a_key_to_check_them_by(name: str) -> None:
    environ = {f"SIDESTREAM_JWT_{name}": "x"}
    problem = f"SIDESTREAM_JWT_{name}: of no use without jwt_secret or jwt_keys_file"
    assert load(environ) == (changed(**{f"jwt_{name.lower()}": "x"}), [problem])
    assert load({**environ, "SIDESTREAM_JWT_SECRET": "0" * 32})[1] == []


def test_prompts_are_traced_only_where_runs_are() -> None:
    environ = {"SIDESTREAM_TRACE_PROMPTS": "true"}
    problem = "SIDESTREAM_TRACE_PROMPTS: of no use without tracing"
    assert load(environ) == (changed(trace_prompts=True), [problem])
    assert load({**environ, "SIDESTREAM_TRACING": "1"}) == (changed(trace_prompts=True, tracing=True), [])


BAD = [
    ("RUN_TIMEOUT", "0", "Expected `float` > 0.0"),
    ("RUN_TIMEOUT", "-1", "Expected `float` > 0.0"),
    ("RUN_TIMEOUT", "nan", "Expected `float` > 0.0"),
    ("RUN_TIMEOUT", "inf", "Expected `float` <= 604800.0"),
    ("RUN_TIMEOUT", "604801", "Expected `float` <= 604800.0"),
    ("RUN_TIMEOUT", "soon", "Expected `float`, got `str`"),
    ("FIRST_TOKEN_TIMEOUT", "0", "Expected `float` > 0.0"),
    ("IDLE_TIMEOUT", "-inf", "Expected `float` > 0.0"),
    ("SEND_TIMEOUT", "nan", "Expected `float` > 0.0"),
    ("PING_INTERVAL", "-0.1", "Expected `float` >= 0.0"),
    ("PING_INTERVAL", "nan", "Expected `float` >= 0.0"),
    ("LINGER", "0", "Expected `float` > 0.0"),
    ("MAX_LINGER", "0", "Expected `float` > 0.0"),
    ("KEEP", "nan", "Expected `float` >= 0.0"),
    ("KEEP_BYTES", "-1", "Expected `int` >= 0"),
    ("URL_SECRET", "0123456789abcde", "Expected `str` of length >= 16"),
    ("URL_SECRET", "null", "Expected `str` of length >= 16"),
    ("RETRY_MS", "-1", "Expected `int` >= 0"),
    ("RETRY_MS", "1.5", "Expected `int`, got `str`"),
    ("MAX_RUN_BYTES", "0", "Expected `int` >= 1"),
    ("MAX_BODY_BYTES", "1k", "Expected `int`, got `str`"),
    ("MODELS", "[]", "Expected `object`, got `array`"),
    ("MODELS", '{"fast": "a"}', "fast: Expected `object | array`, got `str`"),
    ("MODELS", '{"fast": []}', "fast: Expected `array` of length >= 1"),
    ("MODELS", '{"fast": [""]}', "fast: Expected `str` of length >= 1 - at `$[0]`"),
    ("MODELS", '{"fast": {"on": []}}', "fast: Object missing required field `models`"),
    ("MODELS", '{"fast": {"models": ["a"], "on": ["503"]}}', "fast: Invalid enum value '503' - at `$.on[0]`"),
    ("MAX_RETRIES", "-1", "Expected `int` >= 0"),
    ("MAX_RETRIES", "21", "Expected `int` <= 20"),
    ("RETRY_DELAY", "0", "Expected `float` > 0.0"),
    ("MAX_RETRY_AFTER", "nan", "Expected `float` >= 0.0"),
    ("BREAKER_SHARE", "0", "Expected `float` > 0.0"),
    ("BREAKER_SHARE", "1.1", "Expected `float` <= 1.0"),
    ("BREAKER_ATTEMPTS", "0", "Expected `int` >= 1"),
    ("BREAKER_WINDOW", "0", "Expected `float` > 0.0"),
    ("BREAKER_PAUSE", "0", "Expected `float` > 0.0"),
    ("PROVIDERS", "{", "Input data was truncated"),
    ("PROVIDERS", "[]", "Expected `object`, got `array`"),
    ("PROVIDERS", '{"x": {"url": 1}}', "x: Object contains unknown field `url`"),
    ("GRAPHS", "agent", "Expected `name=module:attr`, got `agent`"),
    ("GRAPHS", "a=m:g,b", "Expected `name=module:attr`, got `b`"),
    ("CHAINS", "[]", "Expected `name=module:attr`, got `[]`"),
    ("CHAINS", "null", "Expected `name=module:attr`, got `null`"),
    ("GRAPHS", "{", "Input data was truncated"),
    ("GRAPHS", '{"a": 5}', "a: Expected `module:attr`, got `5`"),
    ("API_KEYS", " , ", "there is nothing in it"),
    ("ALLOWED_HOSTS", ",", "there is nothing in it"),
    ("API_KEYS", "secret", "Expected `name:KEY`, and no space or comma in it (number 1)"),
    ("API_KEYS", "web:abc,secret,:x,y:", "Expected `name:KEY`, and no space or comma in it (number 2, 3, 4)"),
    ("API_KEYS", "a b:c", "Expected `name:KEY`, and no space or comma in it (number 1)"),
    ("API_KEYS", "web:secret,cron:secret", "the same key is given twice"),
    ("JWT_SECRET", "short", "Expected `str` of length >= 32"),
    ("LOG_FORMAT", "xml", "Invalid enum value 'xml'"),
    ("PORT", "65536", "Expected `int` <= 65535"),
    ("MAX_RUNS", "-1", "Expected `int` >= 0"),
    ("MAX_MESSAGES", "0", "Expected `int` >= 1"),
    ("MAX_MESSAGES", "10001", "Expected `int` <= 10000"),
    ("DRAIN_TIMEOUT", "-1", "Expected `float` >= 0.0"),
    ("THREADS", "0", "Expected `int` >= 1"),
    ("THREADS", "-1", "Expected `int` >= 1"),
    ("THREADS", "1001", "Expected `int` <= 1000"),
    ("THREADS", "1.5", "Expected `int`, got `str`"),
    ("THREADS", "many", "Expected `int`, got `str`"),
    ("NO_SUCH", "1", "no such setting"),
    ("", "1", "no such setting"),
]


@pytest.mark.parametrize(("name", "value", "problem"), BAD)
def test_a_bad_variable_is_named_with_what_is_wrong(name: str, value: str, problem: str) -> None:
    assert load({f"SIDESTREAM_{name}": value}) == (changed(), [f"SIDESTREAM_{name}: {problem}"])


@pytest.mark.parametrize("target", ["", "m", "m:", ":g", "m:g:h", "m:g.h", "m-n:g", "b=m:g", "m/n.py:g", "m g"])
@pytest.mark.parametrize("name", ["GRAPHS", "CHAINS"])
def test_what_is_no_module_and_attribute_is_no_graph_and_no_chain(name: str, target: str) -> None:
    settings, [problem] = load({f"SIDESTREAM_{name}": f"a={target}"})
    assert settings == changed()
    assert problem == f"SIDESTREAM_{name}: a: Expected `module:attr`, got `{target}`"


def test_one_name_is_one_graph() -> None:
    assert load({"SIDESTREAM_GRAPHS": "a=m:g, a=m:h"}) == (changed(), ["SIDESTREAM_GRAPHS: a: given twice"])


def test_no_interval_is_endless(config: Path) -> None:
    """Pings are switched off by 0; `inf` is a slip, as it is for every other time."""
    config.write_text("ping_interval = inf")
    for environ in ({"SIDESTREAM_PING_INTERVAL": "inf"}, {"SIDESTREAM_CONFIG": str(config)}):
        settings, problems = load(environ)
        assert (settings, len(problems)) == (changed(), 1)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("run_timeout = nan", "{}: run_timeout: Expected `float` > 0.0"),
        ("retry_ms = -1", "{}: retry_ms: Expected `int` >= 0"),
        ("max_run_bytes = true", "{}: max_run_bytes: Expected `int`, got `bool`"),
        ("model = 5", "{}: model: Expected `str`, got `int`"),
        ("allowed_origins = [1]", "{}: allowed_origins: Expected `str`, got `int` - at `$[0]`"),
        ("modle = 'x'", "{}: modle: no such setting"),
        ("providers.x.enabled = 7", "{}: providers: x: Expected `bool`, got `int` - at `$.enabled`"),
        ("langgraph.a = 5", "{}: langgraph: a: Expected `module:attr`, got `5`"),
        ("langgraph.a.b = 'm:g'", "{}: langgraph: a: Expected `module:attr`, got `{{'b': 'm:g'}}`"),
        ("langchain = ['m:g']", "{}: langchain: Expected `object`, got `array`"),
        ("graphs.a = 'm:g'", "{}: graphs: no such setting"),
        ("threads = 0", "{}: threads: Expected `int` >= 1"),
        ("= 5", "SIDESTREAM_CONFIG {}: Invalid statement (at line 1, column 1)"),
    ],
)
def test_a_bad_line_of_the_file_is_named_with_what_is_wrong(config: Path, line: str, problem: str) -> None:
    config.write_text(line)
    assert load({"SIDESTREAM_CONFIG": str(config)}) == (changed(), [problem.format(config)])


def test_graphs_and_chains_of_a_file_are_tables_and_those_of_the_environment_take_their_place(config: Path) -> None:
    config.write_text('threads = 2\n[langgraph]\na = "m:g"\nb = "m:h"\n[langchain]\nc = "m:i"\n')
    file = {"SIDESTREAM_CONFIG": str(config)}
    both = {"langgraph": {"a": "m:g", "b": "m:h"}, "langchain": {"c": "m:i"}, "threads": 2}
    assert load(file) == (changed(**both), [])
    assert load({**file, "SIDESTREAM_GRAPHS": "d=m:j"}) == (changed(**{**both, "langgraph": {"d": "m:j"}}), [])
    assert load({**file, "SIDESTREAM_CHAINS": "{}"}) == (changed(**{**both, "langchain": {}}), [])


def test_graphs_and_chains_are_the_options_of_their_providers_whose_tables_count_beside_them(config: Path) -> None:
    config.write_text(
        '[langgraph]\na = "m:g"\n[providers.langgraph]\nenabled = false\n[providers.mine]\nuse = "openai"\n'
    )
    settings, problems = load({"SIDESTREAM_CONFIG": str(config), "SIDESTREAM_CHAINS": "b=m:h"})
    assert problems == []
    assert settings.tables == {
        "mine": ProviderSettings("openai"),
        "langgraph": ProviderSettings(enabled=False, options={"a": "m:g"}),
        "langchain": ProviderSettings(options={"b": "m:h"}),
    }
    assert Settings().tables == {}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, latin = tmp_path / "missing.toml", tmp_path / "latin.toml"
    latin.write_bytes(b'model = "\xe9"')
    assert load({"SIDESTREAM_CONFIG": str(missing)})[1] == [f"SIDESTREAM_CONFIG {missing}: No such file or directory"]
    assert load({"SIDESTREAM_CONFIG": str(tmp_path)})[1] == [f"SIDESTREAM_CONFIG {tmp_path}: Is a directory"]
    [problem] = load({"SIDESTREAM_CONFIG": str(latin)})[1]
    assert problem.startswith(f"SIDESTREAM_CONFIG {latin}: 'utf-8' codec can't decode")


def test_all_bad_values_of_all_sources_are_named_together_and_the_good_ones_count(config: Path) -> None:
    config.write_text("run_timeout = 0\nidle_timeout = 2\nnonsense = 1")
    environ = {"SIDESTREAM_CONFIG": str(config), "SIDESTREAM_RETRY_MS": "x", "SIDESTREAM_MODEL": "m"}
    assert load(environ) == (
        changed(idle_timeout=2.0, model="m"),
        [
            f"{config}: run_timeout: Expected `float` > 0.0",
            f"{config}: nonsense: no such setting",
            "SIDESTREAM_RETRY_MS: Expected `int`, got `str`",
        ],
    )


def test_bad_settings_and_bad_providers_come_in_one_message() -> None:
    environ = {
        "SIDESTREAM_RETRY_MS": "x",
        "SIDESTREAM_MODEL": "nobody/x",
        "SIDESTREAM_PROVIDERS": '{"mine": {"use": "nothing"}, "local": {"enabled": false}}',
    }
    with pytest.raises(SettingsError) as raised:
        create_service(environ)
    assert str(raised.value) == (
        "Bad settings:\n"
        "  SIDESTREAM_RETRY_MS: Expected `int`, got `str`\n"
        "  providers.mine: `use` must be one of openai, openai_responses, anthropic, local, langgraph, langchain, "
        "scripted, or module:attr\n"
        "  model: There is no provider 'nobody'. Ready: scripted."
    )


def test_every_file_that_is_bad_is_named() -> None:
    files = dict.fromkeys(("SIDESTREAM_API_KEYS_FILE", "SIDESTREAM_JWT_KEYS_FILE"), "/nonexistent")
    with pytest.raises(SettingsError) as raised:
        create_service({**files, "SIDESTREAM_ALLOWED_ORIGINS": "https://app.example/"})
    assert [problem.partition(": ")[0] for problem in raised.value.problems] == [
        "SIDESTREAM_ALLOWED_ORIGINS",
        "api_keys_file",
        "jwt_keys_file",
    ]
    assert raised.value.problems[0].endswith("an origin is `https://app.example`, without a path, not even `/`")


def test_bad_settings_alone_are_told_too() -> None:
    with pytest.raises(SettingsError, match="SIDESTREAM_RETRY_MS"):
        create_service({"SIDESTREAM_RETRY_MS": "x"})


def test_no_secret_is_repeated_when_a_value_is_bad(config: Path) -> None:
    config.write_text('[providers.openai]\napi_key = "sk-hunter2hunter2"\nbase_url = 5\n')
    environ = {
        "SIDESTREAM_CONFIG": str(config),
        "SIDESTREAM_PROVIDERS": '{"x": {"api_key": ["sk-hunter2hunter2"]}}',
    }
    problems = load(environ)[1]
    assert len(problems) == 2
    assert "hunter2" not in "".join(problems)


def test_a_server_with_bad_settings_ends_at_once_with_that_message_and_no_traceback() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environ = {**clean, "SIDESTREAM_RETRY_MS": "x", "SIDESTREAM_NO_SUCH": "1"}
    line = [sys.executable, "-m", "uvicorn", "service:app", "--port", "0"]
    ended = subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=DEADLINE)
    message = "Bad settings:\n  SIDESTREAM_NO_SUCH: no such setting\n  SIDESTREAM_RETRY_MS: Expected `int`, got `str`\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", message)
