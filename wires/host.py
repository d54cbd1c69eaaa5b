"""By which names the service is reached: a site whose name is made to resolve to this machine is none of ours.

Such a site (DNS rebinding) is of the same origin as we are to a browser, but it has to be called by its name. So where
nobody needs a key, over loopback only names count that no site of the internet can have: addresses, names without a
dot, and those below `localhost` (RFC 6761, 6.3). With a list of names those on it count, whatever the way.
"""

import ipaddress
import logging
import re
from collections.abc import Collection

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from streaming.errors import RequestError

from .problem import told
from .transport import OnRefusal

PROBES = {"/healthz", "/readyz"}  # which come by whatever address a machine has
# A name or an address, and a port (RFC 9110, 7.2), in small letters. No user, no path: a browser sends none either.
HOST = re.compile(r"(\[[0-9a-z:.%-]+\]|[0-9a-z._-]*)(?::[0-9]*)?")
NOBODY = "."  # a name that is neither local nor on any list
logger = logging.getLogger("sidestream")


class Hosts:
    """Middleware that refuses a request for another host. `is_open`: nobody needs a key."""

    def __init__(self, app: ASGIApp, allowed: Collection[str], on_refusal: OnRefusal, *, is_open: bool) -> None:
        self._app = app
        self._on_refusal = on_refusal
        self._allowed = [name.lower() for name in allowed]
        self._is_open = is_open
        self._warned = not is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._serves(scope):
            await self._app(scope, receive, send)
            return
        fault = RequestError("forbidden", "This is not the host that is asked for (SIDESTREAM_ALLOWED_HOSTS).")
        self._on_refusal(fault)
        refusal = told(scope, fault)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(refusal)
        else:
            await refusal(scope, receive, send)

    def _serves(self, scope: Scope) -> bool:
        server = (scope.get("server") or ("",))[0]
        over_loopback = _is_loopback(server)
        if not (self._warned or over_loopback or _address(server) is None):
            self._warned = True
            logger.warning("whoever reaches %s may use this service, without a key (SIDESTREAM_API_KEYS)", server)
        if not self._allowed and not (self._is_open and over_loopback):
            return True
        if _is_probe(scope) or "*" in self._allowed:
            return True
        names = [_name(host) for host in HTTPConnection(scope).headers.getlist("host")] or [""]
        return all(self._is_allowed(name) if self._allowed else _is_local(name) for name in names)

    def _is_allowed(self, name: str) -> bool:
        return any(
            name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])) for allowed in self._allowed
        )


def _is_probe(scope: Scope) -> bool:
    """Whether a probe asks, and for no more than a probe does: `/readyz?verbose` names the models."""
    return path_below_root(scope) in PROBES and not scope["query_string"]


def path_below_root(scope: Scope) -> str:
    """Return the path of a request without that below which the app is served."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _name(host: str) -> str:
    """Return the name in a Host header, without its port; NOBODY where it is no host."""
    found = HOST.fullmatch(host.lower())
    return found[1].removesuffix(".") if found else NOBODY


def _is_local(name: str) -> bool:
    return "." not in name or name.endswith(".localhost") or _address(name) is not None


def _is_loopback(server: str) -> bool:
    address = _address(server)
    if isinstance(address, ipaddress.IPv6Address):  # a socket may take both kinds (RFC 4291, 2.5.5.2)
        address = address.ipv4_mapped or address
    return address is not None and address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
