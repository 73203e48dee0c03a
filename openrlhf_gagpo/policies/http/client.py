"""A client that asks an endpoint again after a failure that may pass, over httpx."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx

from openrlhf_gagpo.errors import PolicyFault, PolicyRefused
from openrlhf_gagpo.policies.http.replies import (
    BadReply,
    Refusal,
    completion_of,
    error_text,
    is_context_error,
    wait_asked,
)
from openrlhf_gagpo.rollout.types import Completion, Usage

__all__ = ["Client", "Persistence"]

_TRY_AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same request may succeed."""
_REFUSALS = {
    401: "set the environment variable {key_env} to a valid key",
    403: "the key in the environment variable {key_env} may not use it",
    404: "check --policy.base_url and --policy.model",
}
"""Statuses that every request would get, and what to do."""
_SHORTEST_KEY = 8
"""Characters from which a key is a secret; shorter ones fill the field for servers that want none."""


@cache
def _certificates() -> ssl.SSLContext:
    """Return the certificates that every connection trusts, which take a while to read."""
    return httpx.create_ssl_context()


@dataclass(frozen=True)
class Persistence:
    """How long a request may take, and how often it is sent again."""

    timeout: float
    """Seconds for one request, its whole reply included."""
    retries: int
    backoff: float
    """Seconds before the first repetition; doubled with each one."""
    max_wait: float
    """Longest wait before a repetition, in seconds."""


class Client:
    """Sends requests to one address. It belongs to the event loop in which it is used.

    The key goes nowhere but into the requests; text from the endpoint that repeats it is masked.

    Args:
        url: address of the requests.
        key: the endpoint's key, or "".
        key_env: environment variable of the key, for messages.
        concurrency: largest number of requests at a time.
    """

    def __init__(self, url: str, key: str, key_env: str, persistence: Persistence, concurrency: int) -> None:
        self._url = url
        self._key = key
        self._key_env = key_env
        self._persistence = persistence
        self._not_before = 0.0
        """Loop time before which no request is sent, because the endpoint asked to wait."""
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # The whole request is timed here: httpx would start anew with every piece of a slow reply.
            timeout=None,
            verify=_certificates(),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )

    async def complete(self, body: Mapping[str, Any]) -> Completion:
        """Return the endpoint's answer to ``body``.

        Raises:
            PolicyFault: there is no usable reply after all repetitions, or the endpoint refuses this request.
            PolicyRefused: the endpoint would refuse every request.
        """
        spent = Usage()
        for attempt in range(self._persistence.retries + 1):
            await self._wait()
            try:
                text, reason, usage = completion_of(await self._post(body))
            except Refusal as refusal:
                raise PolicyFault(refusal.text, spent.requests + 1, too_long=refusal.too_long) from None
            except BadReply as failure:
                spent += Usage(1) + failure.usage
                if attempt == self._persistence.retries:
                    raise PolicyFault(f"{failure.text}; sent {spent.requests} times", spent.requests) from None
                await self._back_off(failure, attempt)
            else:
                return Completion([], [], reason, self._masked(text), usage=spent + Usage(1) + usage)
        raise AssertionError("every attempt returns, raises or is followed by another")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _post(self, body: Mapping[str, Any]) -> str:
        """Return the text of a successful reply. Raises ``BadReply``, ``Refusal`` or ``PolicyRefused``."""
        try:
            async with asyncio.timeout(self._persistence.timeout):
                reply = await self._http.post(self._url, json=body)
        except TimeoutError:
            raise BadReply(f"the endpoint did not answer within {self._persistence.timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            cause = self._masked(str(error)) or type(error).__name__
            raise BadReply(f"the endpoint cannot be reached: {cause}") from None
        status, text = reply.status_code, reply.text
        if status == 200:
            return text
        # Masked after it was read, because JSON may spell the key in escapes.
        said = f"the endpoint answered HTTP {status}: {self._masked(error_text(text))}"
        if status in _REFUSALS:
            raise PolicyRefused(f"{said}; {_REFUSALS[status].format(key_env=self._key_env)}")
        if status in _TRY_AGAIN or status >= 500:
            raise BadReply(said, wait=wait_asked(reply.headers))
        raise Refusal(said, too_long=is_context_error(text))

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text

    async def _wait(self) -> None:
        """Wait until the endpoint wants requests again."""
        loop = asyncio.get_running_loop()
        while (left := self._not_before - loop.time()) > 0:
            await asyncio.sleep(left)

    async def _back_off(self, failure: BadReply, attempt: int) -> None:
        """Wait before repetition ``attempt`` + 1; if the endpoint said for how long, hold back all requests."""
        if failure.wait is not None:
            until = asyncio.get_running_loop().time() + min(failure.wait, self._persistence.max_wait)
            self._not_before = max(self._not_before, until)
            return
        longest = min(self._persistence.backoff * 2.0**attempt, self._persistence.max_wait)
        # Spread, so that episodes that failed together do not repeat their requests together.
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))
