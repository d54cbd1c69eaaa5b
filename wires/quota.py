"""How often one may ask: so many requests a minute of each owner, refilled evenly, all of them at once if need be.

The generic cell rate algorithm: of each owner one time is kept, at which its quota is whole again. Told by the headers
of draft-ietf-httpapi-ratelimit-headers.
"""

import math
import time
from collections.abc import Callable

from streaming.errors import RequestError

WINDOW = 60.0
SWEEP = 1000  # owners


class Quota:
    """Of `requests` a minute, 0 for any number."""

    def __init__(self, requests: int, now: Callable[[], float] = time.monotonic) -> None:
        self._requests = requests
        self._now = now
        self._whole: dict[str, float] = {}
        self._sweep_at = SWEEP

    def spend(self, owner: str) -> dict[str, str]:
        """Take one request from the owner's quota; return the headers that tell what is left of it.

        Raises RequestError rate_limited, with the same headers, where nothing is.
        """
        if not self._requests:
            return {}
        now, each = self._now(), WINDOW / self._requests
        whole = max(self._whole.get(owner, now), now) + each
        left = math.floor((now + WINDOW - whole) / each + 1e-6)
        if left < 0:
            wait = math.ceil(whole - now - WINDOW)
            text = f"More than {self._requests} requests a minute."
            headers = {**self._headers(0, whole - each - now), "Retry-After": str(max(wait, 1))}
            raise RequestError("rate_limited", text, headers=headers, limit="rate_limit")
        self._whole[owner] = whole
        if len(self._whole) > self._sweep_at:
            self._sweep(now)
        return self._headers(left, whole - now)

    def _headers(self, left: int, seconds: float) -> dict[str, str]:
        policy = f'"requests";q={self._requests};w={WINDOW:.0f}'
        return {"RateLimit-Policy": policy, "RateLimit": f'"requests";r={left};t={math.ceil(seconds)}'}

    def _sweep(self, now: float) -> None:
        """Forget those whose quota is whole."""
        self._whole = {owner: whole for owner, whole in self._whole.items() if whole > now}
        self._sweep_at = 2 * len(self._whole) + SWEEP
