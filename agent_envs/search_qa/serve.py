"""A server over the embedded index: ``POST /retrieve`` as ``retrieval.http`` asks it, and ``GET /health``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agent_envs import serving
from agent_envs.errors import EnvError
from agent_envs.search_qa.data import CORPUS_FILE, INDEX_FOLDER, data_root
from agent_envs.search_qa.retrieval import Hit, Remembering
from agent_envs.search_qa.retrieval.tantivy import TantivyRetriever, open_index

__all__ = ["make_app", "serve"]

_MOST_QUERIES = 10_000
_MOST_PASSAGES = 1_000
_MOST_BYTES = 1 << 24


def serve(ready: Callable[[str], None], data_dir: str, port: int, host: str = serving.LOOPBACK) -> None:
    """Serve the corpus in ``data_dir`` until Ctrl-C; its index is built first if there is none.

    Args:
        ready: called with the address once it listens.
        port: 0 takes any free one.

    Raises:
        EnvError: there is no corpus, a package is missing, or the address cannot be used.
    """
    root = data_root(data_dir)
    retriever = open_index(root / CORPUS_FILE, root / INDEX_FOLDER)
    try:
        serving.serve(make_app(retriever), host, port, lambda address: ready(f"{address}/retrieve"))
    except ModuleNotFoundError as error:
        raise EnvError("serving needs starlette and uvicorn: run pip install starlette uvicorn") from error


def make_app(retriever: TantivyRetriever) -> Any:
    """Return the ASGI application that answers with what ``retriever`` finds."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    remembering = Remembering(retriever)

    async def retrieve(request: Request) -> JSONResponse:
        try:
            queries, topk, scores = _asked(await request.body())
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        try:
            # Searches are short, and the engine is used by one thread.
            found = remembering.search(queries, topk)
        except EnvError as error:
            return JSONResponse({"error": str(error)}, status_code=500)
        return JSONResponse({"result": [[_item(hit, scores) for hit in hits] for hits in found]})

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "passages": len(retriever.corpus)})

    return Starlette(routes=[Route("/retrieve", retrieve, methods=["POST"]), Route("/health", health, methods=["GET"])])


def _asked(body: bytes) -> tuple[list[str], int, bool]:
    """Return queries, number of passages and whether scores are wanted. Raises ``ValueError`` with a sentence."""
    if len(body) > _MOST_BYTES:
        raise ValueError(f"the body has more than {_MOST_BYTES} bytes; send fewer queries at a time")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(asked, dict):
        raise ValueError("the body is not a JSON object")
    queries = asked.get("queries", asked.get("query"))
    if isinstance(queries, str):
        queries = [queries]
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise ValueError("'queries' must be a list of texts")
    if len(queries) > _MOST_QUERIES:
        raise ValueError(f"'queries' has more than {_MOST_QUERIES} texts; send fewer at a time")
    topk = asked.get("topk", 3)
    if topk is None:
        topk = 3
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= _MOST_PASSAGES:
        raise ValueError(f"'topk' must be a whole number from 1 to {_MOST_PASSAGES}")
    return queries, topk, bool(asked.get("return_scores", False))


def _item(hit: Hit, score: bool) -> dict[str, object]:
    document: dict[str, object] = {"id": hit.id, "contents": hit.contents}
    return {"document": document, "score": hit.score} if score else document
