"""The pool's end of one worker's socket, which sends requests in batches, matches replies to them and times both."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_envs.errors import EnvFault, UnknownTask
from agent_envs.workers.wire import FAULT, OK, READ_SIZE, WAITING, FrameReader, frame

if TYPE_CHECKING:
    from agent_envs.workers.pool import Session

__all__ = ["Call", "Channel"]


class Call(NamedTuple):
    """A request that the worker has not answered."""

    operation: str
    instance: int
    timeout: float
    """Seconds it may take once the worker has started on it."""
    future: asyncio.Future[Any]


class Channel:
    """One worker as the pool sees it.

    A worker takes its requests in order, so only the oldest unanswered one keeps it busy and only that one can hold it
    up. ``on_late(channel, call)`` is then called; it closes the channel or postpones the limit. Requests that wait for
    something outside of the worker hold up nothing, and have each its own time; ``on_overdue(channel, call)`` is called
    for one that exceeds it.
    """

    def __init__(
        self,
        number: int,
        connection: socket.socket,
        on_late: Callable[[Channel, Call], None],
        on_overdue: Callable[[Channel, Call], None],
    ) -> None:
        self.number = number
        self.sessions: set[Session] = set()
        self.idle: list[int] = []
        """Instances that no session uses."""
        self._connection = connection
        self._on_late = on_late
        self._on_overdue = on_overdue
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._calls: dict[int, Call] = {}
        self._waiting: dict[int, tuple[Call, asyncio.TimerHandle]] = {}
        """Requests that wait, by number, with the timers that call them overdue."""
        self._call_count = 0
        self._running_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._outbox = bytearray()
        self._sending = False
        """Whether a call of ``_send`` is scheduled."""
        self._blocked = False
        """Whether that call waits for room in the socket."""
        self._loop.add_reader(connection, self._receive)

    def call(self, operation: str, instance: int, arguments: tuple[Any, ...], timeout: float) -> asyncio.Future[Any]:
        """Send a request. The future raises ``EnvFault`` if the instance is lost, ``UnknownTask`` if it is usable."""
        future: asyncio.Future[Any] = self._loop.create_future()
        now = self._loop.time()
        if not self._calls:
            self._running_since = now
        self._call_count += 1
        self._calls[self._call_count] = Call(operation, instance, timeout, future)
        request = pickle.dumps((operation, instance, *arguments), pickle.HIGHEST_PROTOCOL)
        self._outbox += frame(self._call_count, OK, request)
        if not self._sending:
            # Sent once per turn of the event loop, so that all requests of that turn go out in one write.
            self._sending = True
            self._loop.call_soon(self._send)
        if self._timer is not None and self._timer.when() > now + timeout:
            # The timer is set for a request that may take longer than this one.
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._watch()
        return future

    def drop(self, instance: int, timeout: float) -> None:
        """Have an instance closed and its waiting step given up."""
        # Nobody waits for the reply; a worker that dies meanwhile has dropped the instance too.
        dropped = self.call("drop", instance, (), timeout)
        dropped.add_done_callback(lambda future: future.cancelled() or future.exception())

    def postpone(self) -> None:
        """Begin the time of the running request only now, because the worker has not started on it."""
        self._running_since = self._loop.time()
        self._watch()

    def close(self, fault: EnvFault) -> None:
        """Read the replies that have already arrived, then fail every unanswered call with ``fault``."""
        self._receive()
        self._hang_up()
        self._connection.close()
        if self._timer is not None:
            self._timer.cancel()
        calls = [*self._calls.values(), *(call for call, _ in self._waiting.values())]
        for _, timer in self._waiting.values():
            timer.cancel()
        self._calls, self._waiting = {}, {}
        for call in calls:
            if not call.future.done():
                call.future.set_exception(fault.again())

    def _send(self) -> None:
        if self._connection.fileno() < 0:
            return
        try:
            sent = self._connection.send(self._outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The worker died; the calls end when the fork server reports it.
            sent = len(self._outbox)
        del self._outbox[:sent]
        self._sending = bool(self._outbox)
        if self._sending and not self._blocked:
            self._loop.add_writer(self._connection, self._send)
        elif self._blocked and not self._sending:
            self._loop.remove_writer(self._connection)
        self._blocked = self._sending

    def _receive(self) -> None:
        while True:
            try:
                data = self._connection.recv(READ_SIZE)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._hang_up()
                return
            for number, kind, payload in self._reader.feed(data):
                if number in self._waiting:
                    call, timer = self._waiting.pop(number)
                    timer.cancel()
                    self._settle(call.future, kind, payload)
                    continue
                call = self._calls.pop(number)
                self._running_since = self._loop.time()
                if kind == WAITING:
                    timer = self._loop.call_later(call.timeout, self._check_waiting, number)
                    self._waiting[number] = call, timer
                else:
                    self._settle(call.future, kind, payload)
            if len(data) < READ_SIZE:
                return

    def _hang_up(self) -> None:
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)

    def _settle(self, future: asyncio.Future[Any], kind: int, payload: bytes) -> None:
        if future.done():
            return  # The caller was cancelled.
        try:
            content = pickle.loads(payload)
        except Exception as error:
            future.set_exception(EnvFault(f"an environment's result cannot be read outside its worker: {error!r}"))
            return
        if kind == OK:
            future.set_result(content)
        elif kind == FAULT:
            future.set_exception(EnvFault(*content))
        else:
            future.set_exception(UnknownTask(content))

    def _watch(self) -> None:
        """Check the time again when the running request is due, or sooner if a queued one has less time."""
        due = self._running_since + next(iter(self._calls.values())).timeout
        shortest = self._loop.time() + min(call.timeout for call in self._calls.values())
        self._timer = self._loop.call_at(min(due, shortest), self._check_clock)

    def _check_waiting(self, number: int) -> None:
        # As below, an event loop that was busy elsewhere reads first.
        self._receive()
        if number in self._waiting:
            self._on_overdue(self, self._waiting[number][0])

    def _check_clock(self) -> None:
        self._timer = None
        # Replies are read first, so that an event loop that was busy elsewhere is not mistaken for a hanging worker.
        self._receive()
        if not self._calls:
            return
        running = next(iter(self._calls.values()))
        if self._loop.time() < self._running_since + running.timeout:
            self._watch()
        else:
            self._on_late(self, running)
