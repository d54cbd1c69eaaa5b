"""The files of deploy/, as far as they can be judged without what runs them: they agree with the service."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from starlette.routing import Route

from service import app_of, create_service
from streaming.settings import PREFIX, Settings
from wires.server import options

from .conftest import ROOT

DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEFAULTS = Settings()
SETTINGS = {PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings)} | {f"{PREFIX}CONFIG"}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Return each instruction of a Dockerfile and what follows it."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, " ".join(rest.split())


DOCKERFILE = list(instructions((DEPLOY / "Dockerfile").read_text()))
LAST_STAGE = DOCKERFILE[max(number for number, (name, _) in enumerate(DOCKERFILE) if name == "FROM") :]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SECRET, DEPLOYMENT, SERVICE = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
POD = DEPLOYMENT["spec"]["template"]["spec"]
(SIDECAR,) = POD["initContainers"]
(APP,) = POD["containers"]


def said(name: str) -> list[str]:
    return [rest for instruction, rest in LAST_STAGE if instruction == name]


def ignored(path: str) -> bool:
    """Tell whether the build does not get to see this file: the last pattern that fits decides."""
    found = False
    for pattern in (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n"):
        bare = pattern.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        tops = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        places = parts if "**/" in pattern else [top for top in tops if top.count("/") == bare.count("/")]
        if bare and not pattern.startswith("#") and any(fnmatch(place, bare) for place in places):
            found = not pattern.startswith("!")
    return found


def test_the_build_sees_all_that_the_wheel_is_made_of_and_no_more() -> None:
    parts = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    needed = [path for part in parts for path in [ROOT / part, *(ROOT / part).rglob("*")] if path.is_file()]
    needed += [
        ROOT / name for name in ("pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"])
    ]
    names = [str(path.relative_to(ROOT)) for path in needed if "__pycache__" not in path.parts]
    assert len(names) > 40
    assert [name for name in names if ignored(name)] == []
    foreign = [".git/config", ".env", ".venv/bin/pip", "tests/conftest.py", "deploy/secrets/api_keys", "bench/run.py"]
    assert [name for name in foreign if not ignored(name)] == []


def test_what_is_copied_is_there() -> None:
    copied = [shlex.split(rest) for name, rest in DOCKERFILE if name == "COPY"]
    stages = [rest.split()[-1] for name, rest in DOCKERFILE if name == "FROM" and " AS " in rest]
    assert len(copied) == 2
    for *how, source, _ in copied:
        if how:
            assert [option.removeprefix("--from=") for option in how] == stages
        else:
            assert (ROOT / source).exists()


def test_the_extras_it_speaks_of_are_extras() -> None:
    text = (DEPLOY / "Dockerfile").read_text() + (DEPLOY / "compose.yaml").read_text()
    named = re.findall(r"EXTRAS[=:] *(?:\"\" *# *)?([a-z,]+)", text) + re.findall(r"\*,([a-z]+),\*", text)
    assert len(named) == 4
    assert {extra for names in named for extra in names.split(",")} <= set(PROJECT["project"]["optional-dependencies"])


def test_the_model_is_that_of_make() -> None:
    (model,) = re.findall(r"^MODEL := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert ("ARG", f'MODEL="{model}"') in DOCKERFILE


def test_the_image_is_of_a_python_that_is_supported() -> None:
    (version,) = [rest.removeprefix("PYTHON=") for name, rest in DOCKERFILE if (name, rest[:6]) == ("ARG", "PYTHON")]
    assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]


def test_the_image_runs_the_command_itself_as_nobody_in_particular() -> None:
    (entrypoint,), (user,), (port,) = said("ENTRYPOINT"), said("USER"), said("EXPOSE")
    assert json.loads(entrypoint) == list(PROJECT["project"]["scripts"])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert int(port) == DEFAULTS.port
    assert said("STOPSIGNAL") == ["SIGTERM"]
    assert f"{PREFIX}HOST=0.0.0.0" in said("ENV")[0]


def test_its_bytecode_counts_whatever_the_time_of_its_source() -> None:
    (build,) = [rest for name, rest in DOCKERFILE if name == "RUN" and "venv" in rest]
    assert "--no-compile" in build
    assert "compileall -q -j 0 --invalidation-mode unchecked-hash" in build


def test_its_health_is_what_the_service_says_of_itself() -> None:
    (check,) = said("HEALTHCHECK")
    python, option, code = json.loads(check.partition(" CMD ")[2])
    assert (python, option) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "/healthz" in routes()
    assert "'/healthz'" in code
    assert str(DEFAULTS.port) in code


def routes() -> set[str]:
    return {route.path for route in app_of(create_service({})).routes if isinstance(route, Route)}


@pytest.mark.parametrize("path", sorted(path.name for path in DEPLOY.glob("[!.]*") if path.is_file()))
def test_the_settings_it_speaks_of_are_settings(path: str) -> None:
    text = (DEPLOY / path).read_text()
    assert set(re.findall(rf"{PREFIX}[A-Z_]+", text)) - SETTINGS - {f"{PREFIX}URL"} == set()  # which is the app's


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_compose_shuts_the_service_in() -> None:
    service = COMPOSE["services"]["sidestream"]
    assert "ports" not in service
    assert service["networks"] == ["app"]
    for locked in COMPOSE["services"].values():
        assert (locked["read_only"], locked["cap_drop"]) == (True, ["ALL"])
        assert locked["security_opt"] == ["no-new-privileges:true"]
    assert service["expose"] == [str(DEFAULTS.port)]
    assert seconds(service["stop_grace_period"]) > DEFAULTS.drain_timeout


def test_compose_builds_the_image_and_mounts_the_keys_where_they_are_looked_for() -> None:
    service = COMPOSE["services"]["sidestream"]
    context = DEPLOY / service["build"]["context"]
    assert (context / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    (secret,) = service["secrets"]
    assert service["environment"][f"{PREFIX}API_KEYS_FILE"] == f"/run/secrets/{secret}"
    assert secret in COMPOSE["secrets"]


def test_composes_app_is_nginx_with_the_file_beside_it() -> None:
    app, text = COMPOSE["services"]["app"], (DEPLOY / "nginx.conf").read_text()
    (mounted,) = [DEPLOY / volume.partition(":")[0] for volume in app["volumes"]]
    assert mounted.samefile(DEPLOY / "nginx.conf")
    replaced = re.findall(r"s([/|])(.+?)\1.+?\1", app["command"][-1])
    assert len(replaced) == 2
    assert [text.count(old) for _, old in replaced] == [1, 1]
    assert "listen 80;" in text
    assert app["ports"] == ["127.0.0.1:8080:80"]


PROBES = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


@pytest.mark.parametrize("probe", PROBES)
def test_kubernetes_asks_where_the_service_answers(probe: str) -> None:
    (port,) = SIDECAR["ports"]
    assert port["containerPort"] == DEFAULTS.port
    assert SIDECAR[probe]["httpGet"] == {"path": PROBES[probe], "port": port["name"]}
    assert PROBES[probe] in routes()


def test_kubernetes_leaves_time_to_drain() -> None:
    drain = float(value_of("DRAIN_TIMEOUT"))
    sleeps = [container["lifecycle"]["preStop"]["sleep"]["seconds"] for container in (SIDECAR, APP)]
    assert drain == DEFAULTS.drain_timeout
    assert POD["terminationGracePeriodSeconds"] > max(sleeps) + drain + 10


def value_of(setting: str) -> str:
    (value,) = [variable["value"] for variable in SIDECAR["env"] if variable["name"] == PREFIX + setting]
    return str(value)


def test_kubernetes_shuts_the_service_in() -> None:
    assert SIDECAR["restartPolicy"] == "Always"
    pod = POD["securityContext"]
    (user,) = said("USER")
    assert (pod["runAsNonRoot"], f"{pod['runAsUser']}:{pod['runAsGroup']}") == (True, user)
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not POD["automountServiceAccountToken"]
    for container in (SIDECAR, APP):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} == container["resources"].keys()


def test_kubernetes_mounts_the_keys_where_they_are_looked_for() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in SIDECAR["volumeMounts"]}
    keys, _ = POD["volumes"]
    (item,) = keys["secret"]["items"]
    assert keys["secret"]["secretName"] == SECRET["metadata"]["name"]
    assert Path(mounts[keys["name"]]) / item["path"] == Path(value_of("API_KEYS_FILE"))
    named = {item["key"], *(ref["key"] for ref in secrets())}
    assert named == SECRET["stringData"].keys()
    url_secret = SECRET["stringData"]["url_secret"]
    assert create_service({f"{PREFIX}URL_SECRET": url_secret}).settings.url_secret == url_secret


def secrets() -> list[dict[str, Any]]:
    return [variable["valueFrom"]["secretKeyRef"] for variable in SIDECAR["env"] if "valueFrom" in variable]


def test_the_service_leads_to_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == labels == DEPLOYMENT["spec"]["selector"]["matchLabels"]
    names = [port["name"] for container in (APP, SIDECAR) for port in container["ports"]]
    assert [port["targetPort"] for port in SERVICE["spec"]["ports"]] == names


TIMEOUTS = {
    "nginx.conf": r"proxy_(?:read|send)_timeout (\d+)s",
    "Caddyfile": r"(?:read|write)_timeout (\d+)s",
    "haproxy.cfg": r"timeout (?:client|server|tunnel) (\d+)s",
}


@pytest.mark.parametrize("path", TIMEOUTS)
def test_a_proxy_waits_for_some_pings(path: str) -> None:
    timeouts = re.findall(TIMEOUTS[path], (DEPLOY / path).read_text())
    assert len(timeouts) >= 2
    assert all(float(timeout) >= 3 * DEFAULTS.ping_interval for timeout in timeouts)


@pytest.mark.parametrize(
    ("path", "pattern"), [("nginx.conf", r"keepalive_timeout (\d+)s"), ("Caddyfile", r"keepalive (\d+)s")]
)
def test_a_proxy_closes_an_idle_connection_before_the_service_does(path: str, pattern: str) -> None:
    (idle,) = re.findall(pattern, (DEPLOY / path).read_text())
    assert float(idle) < options(DEFAULTS)["timeout_keep_alive"]


@pytest.mark.parametrize(("path", "pattern"), [("nginx.conf", r"client_max_body_size (\d+)m;")])
def test_a_proxy_takes_what_the_service_takes(path: str, pattern: str) -> None:
    (most,) = re.findall(pattern, (DEPLOY / path).read_text())
    assert int(most) * 2**20 == DEFAULTS.max_body_bytes
