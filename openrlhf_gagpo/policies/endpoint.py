"""Any OpenAI-compatible endpoint, over httpx.

Which of the two kinds of request is sent follows from what makes the prompt:

* ``policy.tokenizer`` is given: the prompt is rendered and encoded here, as in training, and ``/v1/completions`` gets
  its token ids;
* the chat template is "none": ``/v1/completions`` gets the plain text;
* otherwise ``/v1/chat/completions`` gets the messages, and the endpoint applies its own chat template.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.options import declare
from openrlhf_gagpo.policies.folder import MODEL_HELP, load_tokenizer
from openrlhf_gagpo.policies.registry import PolicyOptions, PolicySetting, PolicySource, register
from openrlhf_gagpo.rollout.types import Completion, Policy, Prompt, PromptForm, SamplingParams

if TYPE_CHECKING:
    from openrlhf_gagpo.policies.http.client import Client
    from openrlhf_gagpo.rollout.watched import WatchedSession

__all__ = ["EndpointOptions", "EndpointPolicy"]


@dataclass(frozen=True)
class EndpointOptions(PolicyOptions):
    """Options of an endpoint."""

    operational = frozenset({"key_env", "timeout", "retries", "backoff", "max_wait"})

    base_url: str | None = declare(None, "address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    model: str | None = declare(None, MODEL_HELP)
    key_env: str = declare("OPENAI_API_KEY", "environment variable that holds the endpoint's key, if it wants one")
    tokenizer: str | None = declare(
        None, "folder of the model's tokenizer: prompts are rendered and fitted here and sent as token ids"
    )
    extra: str = declare("", "JSON object with further fields of every request; null removes a field")
    timeout: float = declare(120.0, "seconds that one request may take, its whole reply included", range=(0.001, 1e6))
    retries: int = declare(5, "times that a failed request is sent again", range=(0, 1000))
    backoff: float = declare(1.0, "seconds before the first repetition; doubled with each one", range=(0, 1e6))
    max_wait: float = declare(60.0, "longest wait before a repetition, in seconds", range=(0, 1e6))
    send_seed: bool = declare(True, "send each turn's seed, where turns are sampled")

    def fields(self) -> Mapping[str, Any]:
        """Return ``extra`` as a mapping. Raises ``ConfigError`` if it is not one."""
        try:
            fields = json.loads(self.extra) if self.extra else {}
        except json.JSONDecodeError as error:
            raise ConfigError(f"--policy.extra is not valid JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ConfigError(f"--policy.extra wants a JSON object, not {self.extra!r}")
        return fields


@register("endpoint", EndpointOptions, implied_by=("base_url", "model"))
class EndpointPolicy(PolicySource):
    """Asks the endpoint, and asks again after a failure that may pass. The key is read from the environment only."""

    def __init__(self, options: EndpointOptions, setting: PolicySetting) -> None:
        super().__init__(options, setting)
        if not options.base_url or not options.model:
            raise ConfigError("an endpoint needs --policy.base_url and --policy.model; set both")
        self._base_url = _checked(options.base_url)
        self._extra = options.fields()
        self._key = _key(options.key_env)
        if options.tokenizer:
            self.tokenizer = load_tokenizer(options.tokenizer, "policy.tokenizer")
        self._client: Client | None = None

    @property
    def label(self) -> str:
        return str(self.options.model)

    def facts(self) -> dict[str, object]:
        return {"request": self._path.removeprefix("/")}

    @property
    def _form(self) -> PromptForm:
        if self.options.tokenizer:
            return "tokens"
        return "text" if self.setting.chat_template == "none" else "messages"

    @property
    def _path(self) -> str:
        return "/chat/completions" if self._form == "messages" else "/completions"

    async def start(self, episodes: int, concurrency: int) -> None:
        try:
            from openrlhf_gagpo.policies.http.client import Client, Persistence
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"an endpoint needs the package {error.name}, which is not installed; install openrlhf-gagpo[api]"
            ) from None
        options = self.options
        self._client = Client(
            self._base_url + self._path,
            self._key,
            options.key_env,
            Persistence(options.timeout, options.retries, options.backoff, options.max_wait),
            concurrency,
        )

    def seat(self, session: WatchedSession) -> Policy:
        return self

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """Answer ``prompt``, with the errors of ``Client.complete``."""
        if self._client is None:
            raise RuntimeError("the policy has not been started")
        completion = await self._client.complete(self._body(prompt, params))
        return replace(completion, prompt_form=self._form)

    def _body(self, prompt: Prompt, params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.options.model,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        if self.options.send_seed and params.seed is not None and params.temperature > 0:
            body["seed"] = params.seed
        name = "messages" if self._form == "messages" else "prompt"
        body[name] = {"tokens": prompt.token_ids, "text": prompt.text, "messages": prompt.messages}[self._form]
        return {name: value for name, value in {**body, **self._extra}.items() if value is not None}


def _checked(url: str) -> str:
    """Return the address without its last slash. Raises ``ConfigError`` if it is none, or if it holds a secret."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ConfigError("--policy.base_url is not an address; it looks like http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "--policy.base_url must be an address alone, since it is recorded; put a key into the environment variable "
            "that --policy.key_env names"
        )
    return url.rstrip("/")


def _key(variable: str) -> str:
    """Return the key of the environment, or "". Raises ``ConfigError`` for one that no header can carry."""
    if not variable.isidentifier():
        # Not repeated in the message, because it may be the key itself.
        raise ConfigError("--policy.key_env wants the name of an environment variable, such as OPENAI_API_KEY")
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the key in the environment variable {variable} has characters no key has; set it again")
    return key
