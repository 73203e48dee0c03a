"""An OpenAI-compatible endpoint in a thread, which answers as a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Endpoint", "Reply", "chat", "completion", "serve"]


@dataclass
class Reply:
    """What the endpoint sends back."""

    body: str | bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before anything is sent."""
    drip: float = 0.0
    """Seconds between single bytes of the body."""


def chat(text: str | None, finish_reason: str = "stop", prompt: int = 10, answer: int = 5) -> Reply:
    """A proper reply to a chat request."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Reply(json.dumps({"choices": [choice], "usage": _usage(prompt, answer)}))


def completion(text: str, finish_reason: str = "stop", prompt: int = 10, answer: int = 5) -> Reply:
    """A proper reply to a completion request."""
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return Reply(json.dumps({"choices": [choice], "usage": _usage(prompt, answer)}))


def _usage(prompt: int, answer: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class Endpoint:
    """The requests that came, and the address."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.most_at_once = 0


@contextmanager
def serve(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Endpoint]:
    """Serve ``answer(number of the request, from 0; its body)`` until the block ends."""
    lock = threading.Lock()
    running = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(endpoint.bodies)
                endpoint.bodies.append(body)
                endpoint.paths.append(self.path)
                endpoint.keys.append(self.headers.get("Authorization"))
                endpoint.times.append(time.monotonic())
                running += 1
                endpoint.most_at_once = max(endpoint.most_at_once, running)
            try:
                self._send(answer(number, body))
            except OSError:
                self.close_connection = True  # the client has given up
            finally:
                with lock:
                    running -= 1

        def _send(self, reply: Reply) -> None:
            time.sleep(reply.delay)
            body = reply.body.encode() if isinstance(reply.body, str) else reply.body
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for piece in [bytes([byte]) for byte in body] if reply.drip else [body]:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(reply.drip)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
