"""From a request to its run: who asks, how often they may, what is asked, and of which models.

    caller ──▶ spend ──▶ posted, or decoded by a wire ──▶ run_of ──▶ a run, for whoever follows it to begin

Each step raises RequestError where the request may not be made. What is done with the run is its wire's business.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace
from starlette.requests import HTTPConnection, Request

from providers.registry import Choice, Model, Providers
from streaming.breaker import Breaker, Breakers
from streaming.errors import RequestError
from streaming.failover import Candidate, Failover
from streaming.followed import Followed
from streaming.limits import Limits
from streaming.request import RunRequest
from streaming.runs import Runs
from streaming.settings import Settings
from wires.access import Access, Caller, upstream_key
from wires.body import read_json
from wires.chat import ChatRequest, decode_body
from wires.fold import Asked
from wires.origin import check_origin
from wires.quota import Quota
from wires.resource import Links, digest, idempotency_key, is_signed

# What says how to generate, and is no more than a hint: without it the answer is as good an answer.
HINTS = dict.fromkeys(("max_tokens", "temperature", "top_p", "seed"))


class Intake:
    """What becomes of requests until they are runs."""

    def __init__(
        self, settings: Settings, providers: Providers, access: Access, breakers: Breakers, runs: Runs
    ) -> None:
        self.links = Links(settings.url_secret, settings.keep)
        self.settings = settings
        self._providers = providers
        self._access = access
        self._breakers = breakers
        self.runs = runs
        self._quota = Quota(settings.rate_limit)

    def caller(self, request: HTTPConnection) -> Caller:
        """Return whose request it is, and what key they have brought."""
        check_origin(request.headers, self.settings.allowed_origins)
        owner = self._access.owner(request)
        return Caller(owner, upstream_key(request.headers, allowed=self.settings.allow_upstream_keys))

    async def spend(self, caller: Caller, request: Request | None = None) -> dict[str, str]:
        """Count a request for a run (of a socket: a turn), a bad one too; return the headers that tell what is left.

        Who asks for the same run again, by its Idempotency-Key, has nothing to pay, nor who wants a head alone.
        """
        if request and (request.method == "HEAD" or await self._is_again(request, caller)):
            return {}
        return self._quota.spend(caller.owner)

    async def _is_again(self, request: Request, caller: Caller) -> bool:
        return request.method == "POST" and await self.runs.knows(caller.owner, idempotency_key(request.headers))

    async def find(self, request: Request) -> Followed:
        """Return the run of a path: its owner's, or whosever it is where the URL is signed for it."""
        run_id, query = request.path_params["run_id"], request.query_params
        if not is_signed(query):
            return await self.runs.find(run_id, self.caller(request).owner)
        check_origin(request.headers, self.settings.allowed_origins)
        run = await self.runs.find(run_id, None)  # first: after a restart both are gone
        self.links.check(run_id, query)
        return run

    async def posted(
        self,
        request: Request,
        caller: Caller,
        provider: str | None = None,
        default: str | None = None,
        *,
        linger: float,
    ) -> Followed:
        """Make the run of a POST, or find that of its Idempotency-Key."""
        key = idempotency_key(request.headers)
        body = await self.body(request)
        return await self.run_of(decode_body(body), caller, provider, default, linger=linger, key=key, body=body)

    async def body(self, request: Request, *, as_text: bool = False) -> bytes:
        return await read_json(request, self.settings.max_body_bytes, self.settings.body_timeout, as_text=as_text)

    async def run_of(
        self,
        chat: ChatRequest,
        caller: Caller,
        provider: str | None = None,
        default: str | None = None,
        *,
        linger: float = 0,
        key: str = "",
        body: bytes = b"",
    ) -> Followed:
        """Make the run of a request; whoever follows it begins it.

        `provider` is that of the path. `default` is the model of a request that names none, in place of the service's.
        """
        choice = self._choose(chat, caller, provider, default)
        requests = [self._request(model, chat, caller) for model in choice.models]
        limits = chat.limits(self.settings.limits, linger)
        return await self._create(choice, requests, limits, caller, key=key, asked=digest(str(choice), body))

    async def run_asked(
        self,
        asked: Asked,
        caller: Caller,
        name: str | None = None,
        *,
        linger: float,
        key: str = "",
        body: bytes = b"",
    ) -> Followed:
        """Make the run of a request that came by another's wire. `name` is that of the path, which may be a model's.

        Its clients send what their API demands: of how to generate, chains and graphs pass over what is no more than a
        hint. An upstream of the same API gets the request as it came.
        """
        chat = asked.chat
        if name is not None and not self._providers.knows(name):
            chat, name = replace(chat, model=name), None
        choice = self._choose(chat, caller, name)
        requests = []
        for model in choice.models:
            request = asked.fit(self._request(model, chat, caller), self._providers.takes(model))
            if self._providers.has_effects(model.provider):
                request = replace(request, **HINTS)
            elif asked.verbatim is not None and asked.api == self._providers.api(model.provider):
                request = replace(request, verbatim=asked.verbatim, passed=asked.passed)
            requests.append(request)
        limits = chat.limits(self.settings.limits, linger)
        # A thread stands in the path, and what a run is to be told as is not in every body.
        same = digest(f"{choice} {asked.name} {asked.about}", body)
        known = {"key": key, "asked": same, "name": asked.name, "about": asked.about}
        return await self._create(choice, requests, limits, caller, **known)

    def _choose(
        self, chat: ChatRequest, caller: Caller, provider: str | None = None, default: str | None = None
    ) -> Choice:
        chat.check_size(self.settings.max_messages)
        choice = self._providers.choose(chat.model or default, provider)
        if caller.upstream_key and len({model.provider for model in choice.models}) > 1:
            text = "An upstream's key is for one provider; ask for models of one."
            raise RequestError("invalid_request", text, field="X-Upstream-Key")
        return choice

    def _request(self, model: Model, chat: ChatRequest, caller: Caller) -> RunRequest:
        return chat.to_run(model.model, caller.upstream_key, caller.owner)

    async def _create(
        self, choice: Choice, requests: Sequence[RunRequest], limits: Limits, caller: Caller, **known: Any
    ) -> Followed:
        candidates = [self._candidate(*pair, caller) for pair in zip(choice.models, requests, strict=True)]
        failover = Failover(candidates, choice.on, self.settings.retries)
        return await self.runs.create(failover, limits, owner=caller.owner, **known)

    def _candidate(self, model: Model, request: RunRequest, caller: Caller) -> Candidate:
        return Candidate(
            model.provider,
            self._providers.prepare(model.provider, request),
            partial(self._providers.load, model.provider),
            # What becomes of a caller's own key says nothing of how the model fares for others.
            Breaker() if caller.upstream_key else self._breakers.of(str(model)),
            self._providers.has_effects(model.provider),
        )
