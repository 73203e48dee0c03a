"""A client of retrieval servers that speak the protocol of Search-R1 (Jin et al., arXiv 2503.09516).

``POST {"queries": [..], "topk": k, "return_scores": true}`` is answered by ``{"result": [[{"document": {"id": ..,
"contents": ..}, "score": ..}, ..], ..]}``, with one list per query.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import sys
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import httpx

from agent_envs.errors import EnvError
from agent_envs.search_qa.retrieval import Hit, best_first

__all__ = ["HttpRetriever", "shown_url"]

_PATH = "/retrieve"
_WAITS_S = (1.0, 2.0, 4.0)
"""Seconds before each repetition of a request whose failure may pass."""
_SHOWN = 200
"""Characters of a reply that an error quotes."""


class HttpRetriever:
    """Asks a server for passages.

    Both methods send their requests from one thread per process, so that all instances of an environment share its
    connections, whatever event loop they are used in.

    Args:
        url: address of the server; without a path, ``/retrieve`` is asked. It may hold a name and a password.
        timeout: seconds for one request, its whole reply included.
        query_field: "queries" to send a list, "query" for servers that take one text a request.

    Raises:
        EnvError: the address is none.
    """

    def __init__(self, url: str, timeout: float = 30.0, query_field: str = "queries") -> None:
        try:
            address = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            # Not quoted, as it may hold a password.
            raise EnvError("url of the retriever is not an address; give http://HOST:PORT/retrieve") from error
        if address.scheme not in ("http", "https") or not address.host:
            raise EnvError("url of the retriever must begin with http:// or https:// and name a host")
        self._url = address.copy_with(path=_PATH) if address.path == "/" else address
        self._shown = shown_url(url)
        self._timeout = timeout
        self._one_text = query_field == "query"

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        return asyncio.run_coroutine_threadsafe(self._search(queries, topk), _line(os.getpid()).loop).result()

    async def asearch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        asked = asyncio.run_coroutine_threadsafe(self._search(queries, topk), _line(os.getpid()).loop)
        return await asyncio.wrap_future(asked)

    async def _search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        if not self._one_text:
            return await self._ask(list(queries), len(queries), topk)
        lists = [await self._ask(query, 1, topk) for query in queries]
        return [hits for found in lists for hits in found]

    async def _ask(self, asked: str | list[str], count: int, topk: int) -> list[list[Hit]]:
        body = {"query" if self._one_text else "queries": asked, "topk": topk, "return_scores": True}
        # Escapes keep any text within ASCII, lone surrogates included.
        text = await self._post(json.dumps(body))
        try:
            return _lists(text, count, topk)
        except ValueError as error:
            raise EnvError(f"the retriever {self._shown} answered {error}: {_start(text)}") from None

    async def _post(self, body: str) -> str:
        """Return the text of a good reply. Raises ``EnvError`` after the last repetition."""
        waits = iter(_WAITS_S)
        while True:
            status = 0
            try:
                async with asyncio.timeout(self._timeout):
                    reply = await self._client().post(
                        self._url, content=body, headers={"Content-Type": "application/json"}
                    )
                if reply.status_code == 200:
                    return reply.text
                status, failure = reply.status_code, f"answered HTTP {reply.status_code}: {_start(reply.text)}"
            except TimeoutError:
                failure = f"did not answer within {self._timeout:g} s"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = f"cannot be reached: {_start(str(error)) or type(error).__name__}"
            wait = next(waits, None)
            if wait is None or 0 < status < 500:
                raise EnvError(f"the retriever {self._shown} {failure}")
            await asyncio.sleep(wait)

    def _client(self) -> httpx.AsyncClient:
        # A proxy of the machine would look for a loopback address on itself.
        return _line(os.getpid()).client(self._url.scheme == "https", proxies=not _is_loopback(self._url.host))


class _Line:
    """The thread of a process that sends its requests."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._clients: dict[tuple[bool, bool], httpx.AsyncClient] = {}
        threading.Thread(target=self.loop.run_forever, name="retriever", daemon=True).start()

    def client(self, encrypted: bool, proxies: bool) -> httpx.AsyncClient:
        """Return the client for such addresses, the same each time. Call it in the thread."""
        if (encrypted, proxies) not in self._clients:
            self._clients[encrypted, proxies] = httpx.AsyncClient(
                # Each request is timed as a whole: httpx would start anew with every piece of a slow reply.
                timeout=None,
                # Certificates take a while to read.
                verify=encrypted or proxies,
                trust_env=proxies,
                limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
            )
        return self._clients[encrypted, proxies]


@cache
def _line(process: int) -> _Line:
    """Return the line of this process; one that was made before a fork has no thread in the child."""
    return _Line()


def shown_url(url: str) -> str:
    """Return an address without name, password, query and fragment, for messages and records."""
    return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _lists(text: str, count: int, topk: int) -> list[list[Hit]]:
    """Read a reply to ``count`` queries. Raises ``ValueError`` that says what it is instead."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("something that is not JSON") from None
    lists = body.get("result") if isinstance(body, dict) else None
    if not isinstance(lists, list) or not all(isinstance(found, list) for found in lists):
        raise ValueError("without lists of passages under 'result'")
    if len(lists) != count:
        raise ValueError(f"{len(lists)} lists of passages to {count} queries")
    # Items without a score count as sorted.
    return [best_first(_hit(item, -place) for place, item in enumerate(found[:topk])) for found in lists]


def _hit(item: Any, fallback: float) -> Hit:
    if not isinstance(item, dict):
        raise ValueError("a passage that is not an object")
    document = item.get("document", item)
    if not isinstance(document, dict):
        raise ValueError("a document that is not an object")
    contents = document.get("contents")
    if contents is None and isinstance(document.get("text"), str):
        contents = f'"{document.get("title", "")}"\n{document["text"]}'
    if not isinstance(contents, str):
        raise ValueError("a passage without contents")
    score = item.get("score", fallback)
    # An integer may be too large for a float; no comparison holds for NaN.
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= sys.float_info.max:
        raise ValueError("a score that is not a finite number")
    contents = contents.encode("utf-8", "replace").decode()
    name = document.get("id")
    if name is None:
        name = hashlib.sha256(contents.encode()).hexdigest()[:16]
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError("an id that is neither text nor a number")
    return Hit(str(name), float(score), contents)


def _start(text: str) -> str:
    return " ".join(text.split())[:_SHOWN].rstrip(".")
