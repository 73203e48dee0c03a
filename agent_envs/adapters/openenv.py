"""OpenEnv servers (protocol of openenv 0.10) as text environments, without that package."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, urlsplit

from agent_envs.adapters.numbered import PROMPT, Counts, NumberedEnv, calling_module, check_counts
from agent_envs.base import PromptTemplate, Reset, StepResult, TextEnv
from agent_envs.declarations import Needs
from agent_envs.errors import EnvError

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

__all__ = ["Answer", "from_openenv"]

Data = Mapping[str, Any]
"""One JSON object of the protocol."""


@dataclass(frozen=True)
class Answer:
    """What the server said last about the running episode."""

    observation: Data
    reward: float = 0.0
    done: bool = False
    metadata: Data = field(default_factory=dict)


def _text(answer: Answer) -> str:
    """Return the observation's ``text``, or all of it as JSON if it has none."""
    text = answer.observation.get("text")
    if isinstance(text, str):
        return text
    shown = {name: value for name, value in answer.observation.items() if name != "metadata"}
    return json.dumps(shown, ensure_ascii=False, sort_keys=True)


def _success(answer: Answer) -> bool:
    """Return the observation's ``success``, or whether the episode ended with a reward if it has none."""
    return bool(answer.observation.get("success", answer.done and answer.reward > 0))


def _possible(answer: Answer) -> Collection[str]:
    listed = answer.observation.get("admissible_actions", ())
    return tuple(map(str, listed)) if isinstance(listed, list) else ()


def _seeded(number: int, seed: int) -> Data:
    return {"seed": number}


@dataclass(frozen=True)
class _Words:
    """The arguments of ``from_openenv``."""

    tasks: Counts | None
    reset: Callable[[int, int], Data]
    action: Callable[[str], Data | None] | None
    text: Callable[[Answer], str]
    success: Callable[[Answer], bool]
    score: Callable[[Answer], float] | None
    state_key: Callable[[Answer], str] | None
    possible: Callable[[Answer], Collection[str]]
    instruction: str


def from_openenv(
    url: str = "",
    *,
    tasks: Mapping[str, int] | None = None,
    reset: Callable[[int, int], Data] = _seeded,
    action: Callable[[str], Data | None] | None = None,
    text: Callable[[Answer], str] = _text,
    success: Callable[[Answer], bool] = _success,
    score: Callable[[Answer], float] | None = None,
    state_key: Callable[[Answer], str] | None = None,
    possible: Callable[[Answer], Collection[str]] = _possible,
    instruction: str = "",
    prompt: PromptTemplate = PROMPT,
    max_steps: int = 50,
) -> type[TextEnv]:
    """Return a text environment that plays on an OpenEnv server; give it a name with ``agent_envs.register``.

    Episodes use the server's session, a WebSocket: over plain HTTP a server makes a new environment for every request.
    A server of ``gagpo env openenv`` needs no argument but its address. Every failure of the server is an ``EnvError``
    that ends the episode; the next one connects again.

    Args:
        url: default of the option of that name, such as "http://127.0.0.1:8000".
        tasks: split -> number of tasks; by default those that the server lists in its task API. Numbers go on from
            split to split.
        reset: returns what ``reset`` of the server gets, from the task's number and the seed of the episode. Not used
            if the server lists the tasks; it then gets ``split``, ``index`` and ``seed``.
        action: turns the agent's words into the server's action; None for words that it cannot read. By default the
            words are the only field that the server's schema requires of an action.
        text: words the observation for the agent.
        success: whether the task is solved.
        score: how well it is solved, in [0, 1]; by default the observation's ``score``, else 1 for success.
        state_key: equal for equal states; by default ``state_key`` of the metadata, else the text.
        possible: the actions that the agent can take now, to be listed; none if unknown.
        instruction: tells the agent what to do; by default the observation's ``task``.
        prompt: words the turns.
        max_steps: default of the option of that name.

    Raises:
        ValueError: ``tasks`` makes no sense.
    """
    if tasks is not None:
        check_counts(tasks, "the OpenEnv server")
    address, limit = url, max_steps
    words = _Words(
        None if tasks is None else dict(tasks), reset, action, text, success, score, state_key, possible, instruction
    )

    class OpenEnv(_OpenEnvEnv):
        splits = tuple(tasks or ())

        def __init__(self, url: str = address, max_steps: int = limit, timeout: float = 60.0) -> None:
            super().__init__(url, max_steps, timeout)

    OpenEnv.words = words
    OpenEnv.prompt = prompt
    OpenEnv.__module__, OpenEnv.__qualname__ = calling_module(), OpenEnv.__name__
    return OpenEnv


class _OpenEnvEnv(NumberedEnv):
    needs = Needs(packages=("httpx", "websockets"), extra="openenv")
    words: ClassVar[_Words]

    def __init__(self, url: str, max_steps: int, timeout: float) -> None:
        super().__init__(max_steps)
        self._server = _Server(url, timeout)
        self._listed = self._server.counts() if self.words.tasks is None else self.words.tasks
        self.splits = tuple(self._listed)
        self._field: str | None = None
        self._answer = Answer({})

    def close(self) -> None:
        self._server.close()

    def _counts(self) -> Counts:
        return self._listed

    def _start(self, split: str, place: int, number: int, seed: int) -> Reset:
        if self.words.tasks is None:
            answer = self._server.ask("reset", {"split": split, "index": place, "seed": seed})
        else:
            answer = self._server.ask("reset", self.words.reset(number, seed))
        self._answer = answer
        text = self.words.text(answer)
        return Reset(
            observation=text,
            state_key=self._state_key(answer, text),
            task=self.words.instruction or str(answer.observation.get("task") or ""),
            admissible_actions=tuple(self.words.possible(answer)),
            category=str(answer.metadata.get("category") or ""),
        )

    def _act(self, action: str) -> StepResult:
        data = self.words.action(action) if self.words.action is not None else {self._only_field(): action}
        if data is None:
            return self._result(self._answer, 0.0, admissible=False)
        answer = self._answer = self._server.ask("step", data)
        return self._result(answer, answer.reward, bool(answer.observation.get("admissible", True)))

    def _result(self, answer: Answer, reward: float, admissible: bool) -> StepResult:
        text = self.words.text(answer)
        success = bool(self.words.success(answer))
        truncated = answer.done and answer.observation.get("truncated") is True
        return StepResult(
            observation=text,
            state_key=self._state_key(answer, text),
            reward=reward,
            terminated=answer.done and not truncated,
            truncated=truncated,
            admissible=admissible,
            success=success,
            score=self._score(answer, success),
            admissible_actions=tuple(self.words.possible(answer)),
        )

    def _score(self, answer: Answer, success: bool) -> float:
        if self.words.score is not None:
            return float(self.words.score(answer))
        given = answer.observation.get("score")
        return float(given) if isinstance(given, int | float) else float(success)

    def _state_key(self, answer: Answer, text: str) -> str:
        if self.words.state_key is not None:
            return self.words.state_key(answer)
        return str(answer.metadata.get("state_key") or text)

    def _only_field(self) -> str:
        """Return the one field that the server requires of an action. Raises ``EnvError``."""
        if self._field is None:
            schema = self._server.get("schema").get("action")
            required = schema.get("required") if isinstance(schema, Mapping) else None
            if not isinstance(required, list) or len(required) != 1:
                raise EnvError(
                    f"{self.name}: an action of {self._server.url} has the required fields {required!r}, not one; give "
                    "from_openenv a function action that turns the agent's words into an action."
                )
            self._field = str(required[0])
        return self._field


class _Server:
    """One server: its task API over HTTP, and one session, which is opened when it is first needed."""

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}; give the address of an OpenEnv server, as http://127.0.0.1:8000.")
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout!r}; it must be a number of seconds above 0.")
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._local = _loopback(parts.hostname)
        self._connection: ClientConnection | None = None

    def counts(self) -> Counts:
        """Return the number of tasks of each split that the server lists. Raises ``EnvError``."""
        names = self._listed(self.get("list_environments"))
        if not names:
            raise EnvError(f"{self.url} names no environment; is it an OpenEnv server?")
        env = quote(str(names[0]), safe="")
        splits = [split.get("name") for split in self._listed(self.get(f"{env}/splits")) if isinstance(split, Mapping)]
        counts = {str(split): self.get(f"{env}/num_tasks", {"split": split}).get("num_tasks") for split in splits}
        if not counts or not all(isinstance(count, int) for count in counts.values()):
            raise EnvError(f"{self.url} lists no tasks; give from_openenv the argument tasks.")
        return {split: count for split, count in counts.items() if isinstance(count, int)}

    def get(self, path: str, body: Data | None = None) -> Any:
        """Return the JSON at ``path``; a POST request with ``body`` if there is one. Raises ``EnvError``."""
        import httpx

        address = f"{self.url}/{path}"
        try:
            # A proxy of the environment is not for servers on this machine; without TLS, certificates are not read.
            tls = self.url.startswith("https")
            with httpx.Client(timeout=self._timeout, trust_env=not self._local, verify=tls) as client:
                reply = client.get(address) if body is None else client.post(address, json=body)
        except httpx.HTTPError as error:
            raise EnvError(
                f"the OpenEnv server {self.url} cannot be reached ({_why(error)}); is it running?"
            ) from error
        if reply.status_code == 501:
            raise EnvError(f"{self.url} lists no tasks; give from_openenv the argument tasks.")
        if not reply.is_success:
            raise EnvError(f"the OpenEnv server answered {address} with status {reply.status_code}.")
        try:
            return reply.json()
        except ValueError as error:
            raise EnvError(f"the OpenEnv server answered {address} with something else than JSON.") from error

    def ask(self, kind: str, data: Data) -> Answer:
        """Return the answer of the session to a message. Raises ``EnvError`` and ends the session."""
        try:
            return self._asked(kind, data)
        except BaseException:
            # The next answer would belong to this message.
            self.close()
            raise

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _asked(self, kind: str, data: Data) -> Answer:
        from websockets.exceptions import WebSocketException

        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.send(json.dumps({"type": kind, "data": dict(data)}))
            said = self._connection.recv(timeout=self._timeout)
        except TimeoutError as error:
            raise EnvError(f"the OpenEnv server {self.url} gave no answer in {self._timeout:g} s.") from error
        except (OSError, WebSocketException) as error:
            raise EnvError(f"the session with the OpenEnv server {self.url} failed ({_why(error)}).") from error
        return self._read(said)

    def _connect(self) -> ClientConnection:
        from websockets.sync.client import connect

        return connect(
            f"ws{self.url.removeprefix('http')}/ws",
            open_timeout=self._timeout,
            max_size=None,
            # A server may be busy with one step for as long as the time-out allows.
            ping_interval=None,
            **({"proxy": None} if self._local else {}),
        )

    def _read(self, said: str | bytes) -> Answer:
        wrong = f"the OpenEnv server {self.url} sent something else than an observation: {said[:80]!r}."
        try:
            message = json.loads(said)
        except ValueError as error:
            raise EnvError(wrong) from error
        data = message.get("data") if isinstance(message, dict) else None
        if not isinstance(data, dict):
            raise EnvError(wrong)
        if message.get("type") == "error":
            raise EnvError(f"the OpenEnv server {self.url} refused: {str(data.get('message')).rstrip('.')}.")
        observation, reward, done = data.get("observation"), data.get("reward"), data.get("done", False)
        if message.get("type") != "observation" or not isinstance(observation, dict):
            raise EnvError(wrong)
        if not isinstance(reward, int | float | None) or not isinstance(done, bool):
            raise EnvError(wrong)
        # Servers may have it in both places.
        metadata = data.get("metadata") or observation.get("metadata")
        return Answer(observation, float(reward or 0.0), done, metadata if isinstance(metadata, dict) else {})

    def _listed(self, answer: object) -> list[object]:
        if not isinstance(answer, list):
            raise EnvError(f"{self.url} answered with {str(answer)[:80]!r} instead of a list; is it an OpenEnv server?")
        return answer


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _why(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
