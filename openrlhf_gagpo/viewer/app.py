"""The pages behind HTTP: read only, and for browsers on this machine."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openrlhf_gagpo.errors import GagpoError
from openrlhf_gagpo.viewer.pages import NotThere, Pages
from openrlhf_gagpo.viewer.render import STATIC
from openrlhf_gagpo.viewer.sources import Source
from openrlhf_gagpo.viewer.store import Store

__all__ = ["make_app"]

_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
"""A page of another site that points its own name at this machine is turned away."""
_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)


def make_app(store: Store) -> Starlette:
    """Return the application that shows ``store``."""
    pages = Pages(store)

    def overview(request: Request) -> str:
        return pages.overview(request.query_params, request.query_params.getlist("run"))

    def run(request: Request) -> str:
        return pages.run(_source(store, request), request.query_params)

    def episodes(request: Request) -> str:
        return pages.episodes(_source(store, request), request.query_params)

    def episode(request: Request) -> str:
        place = request.path_params
        return pages.episode(_source(store, request), place["part"], place["number"], request.query_params)

    def step(request: Request) -> str:
        place = request.path_params
        return pages.step(_source(store, request), place["part"], place["number"], place["index"])

    def group(request: Request) -> str:
        place = request.path_params
        return pages.group(_source(store, request), place["part"], place["name"], request.query_params)

    def stamp(request: Request) -> Response:
        return JSONResponse({"stamp": store.stamp(request.query_params.get("of", ""))})

    def missing(request: Request, error: Exception) -> Response:
        return HTMLResponse(_encoded(pages.problem("There is no such page; start from the list of runs.")), 404)

    def unusable(request: Request, error: Exception) -> Response:
        return HTMLResponse(_encoded(pages.problem(str(error))), 404 if isinstance(error, NotThere) else 500)

    episode_path = "/s/{key}/e/{part:int}/{number:int}"
    routes: list[BaseRoute] = [
        _page("/", overview),
        Route("/stamp", stamp),
        _page("/s/{key}", run),
        _page("/s/{key}/episodes", episodes),
        _page(episode_path, episode),
        _page(episode_path + "/{index:int}", step),
        _page("/s/{key}/g/{part:int}/{name:path}", group),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS), Middleware(_Guard)],
        exception_handlers={404: missing, GagpoError: unusable, OSError: unusable},
    )


class _Guard:
    """Adds the headers that keep a page from running or loading anything that is not ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, guarded)


def _page(path: str, make: Callable[[Request], str]) -> Route:
    # A plain function, which Starlette runs in a thread, since pages read files.
    def respond(request: Request) -> Response:
        return HTMLResponse(_encoded(make(request)))

    return Route(path, respond)


def _encoded(page: str) -> bytes:
    return page.encode("utf-8", "backslashreplace")


def _source(store: Store, request: Request) -> Source:
    source = store.source(request.path_params["key"])
    if source is None:
        raise NotThere(f"there is no run {request.path_params['key']!r} here; start from the list of runs")
    return source
