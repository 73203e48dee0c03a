"""An endpoint as a policy: what is sent, and what each kind of failure costs."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from openrlhf_gagpo import policies
from openrlhf_gagpo.errors import ConfigError, PolicyFault, PolicyRefused
from openrlhf_gagpo.policies.http.replies import wait_asked
from openrlhf_gagpo.rollout.types import Completion, Prompt, SamplingParams, Usage
from support.scripted_endpoint import Endpoint, Reply, chat, completion, serve

KEY = "sk-secret-0123456789"
PROMPT = Prompt([], "Situation: here", [{"role": "user", "content": "Situation: here"}])


def source(endpoint_url: str, *, chat_template: Any = "auto", **options: Any) -> policies.PolicySource:
    entry = policies.get("endpoint")
    given = {"model": "m", "backoff": 0.01, "retries": 2, "timeout": 5.0, "base_url": endpoint_url, **options}
    return entry.make(entry.options_cls(**given), policies.PolicySetting(True, True, chat_template, 2048, 0))


def ask(policy: Any, count: int = 1, params: SamplingParams | None = None, concurrency: int = 8) -> list[Any]:
    """Completions or errors of ``count`` requests at a time."""

    async def run() -> list[Any]:
        await policy.start(count, concurrency)
        try:
            wanted = params or SamplingParams(16, 0.5, seed=7)
            return await asyncio.gather(
                *(policy.generate(PROMPT, wanted) for _ in range(count)), return_exceptions=True
            )
        finally:
            await policy.aclose()

    return asyncio.run(run())


def play(replies: Sequence[Reply], **options: Any) -> tuple[Any, Endpoint]:
    """What one request yields when the endpoint sends these replies in turn, the last one for ever."""
    with serve(lambda number, body: replies[min(number, len(replies) - 1)]) as endpoint:
        (answer,) = ask(source(endpoint.url, **options))
    return answer, endpoint


def test_a_chat_request_holds_messages_and_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    answer, endpoint = play([chat("<action>go</action>")])
    assert answer == Completion([], [], "stop", "<action>go</action>", prompt_form="messages", usage=Usage(1, 10, 5))
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.keys == [f"Bearer {KEY}"]
    assert endpoint.bodies == [
        {"model": "m", "max_tokens": 16, "temperature": 0.5, "top_p": 1.0, "seed": 7, "messages": PROMPT.messages}
    ]


def test_without_a_chat_template_the_plain_text_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(lambda number, body: completion(" go", "length")) as endpoint:
        (answer,) = ask(source(endpoint.url, chat_template="none"), params=SamplingParams(16, 0.0, seed=7))
    assert (answer.text, answer.finish_reason, answer.prompt_form) == (" go", "length", "text")
    assert endpoint.paths == ["/v1/completions"]
    assert endpoint.keys == [None]
    # Greedy decoding has no seed.
    assert endpoint.bodies == [
        {"model": "m", "max_tokens": 16, "temperature": 0.0, "top_p": 1.0, "prompt": "Situation: here"}
    ]


def test_further_fields_are_added_and_null_removes_one() -> None:
    extra = '{"max_tokens": null, "max_completion_tokens": 16, "reasoning": {"effort": "low"}}'
    _, endpoint = play([chat("x")], extra=extra, send_seed=False)
    (body,) = endpoint.bodies
    assert "max_tokens" not in body
    assert "seed" not in body
    assert (body["max_completion_tokens"], body["reasoning"]) == (16, {"effort": "low"})


BAD = {
    "500": Reply("boom", 500),
    "503 without a body": Reply("", 503),
    "429": Reply('{"error": {"message": "slow down"}}', 429),
    "truncated JSON": Reply('{"choices": [{"message": {"content": "go'),
    "not an object": Reply("[1, 2]"),
    "no choices": Reply("{}"),
    "empty choices": Reply('{"choices": []}'),
    "choices of the wrong type": Reply('{"choices": {"0": 1}}'),
    "a choice of the wrong type": Reply('{"choices": ["go"]}'),
    "content of the wrong type": Reply('{"choices": [{"message": {"content": 5}}]}'),
    "no content": chat(None),
    "not text": Reply(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD.keys())
def test_a_failure_that_passes_costs_one_request(reply: Reply) -> None:
    answer, endpoint = play([reply, chat("go")])
    assert answer.text == "go"
    # A reply without text is paid for all the same.
    assert answer.usage == (Usage(2, 20, 10) if reply is BAD["no content"] else Usage(2, 10, 5))
    assert len(endpoint.bodies) == 2
    assert endpoint.bodies[0] == endpoint.bodies[1]


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD.keys())
def test_a_failure_that_stays_costs_one_episode_after_a_bounded_number_of_requests(reply: Reply) -> None:
    answer, endpoint = play([reply])
    assert isinstance(answer, PolicyFault)
    assert (answer.requests, len(endpoint.bodies)) == (3, 3)
    assert not answer.too_long


def test_hidden_reasoning_that_used_up_the_limit_is_an_empty_response() -> None:
    answer, endpoint = play([chat(None, "length")])
    assert (answer.text, answer.finish_reason, len(endpoint.bodies)) == ("", "length", 1)


def test_waits_as_long_as_the_endpoint_asks_and_holds_the_others_back_too() -> None:
    with serve(lambda number, body: Reply("", 429, {"Retry-After": "0.5"}) if number == 0 else chat("go")) as endpoint:
        policy = source(endpoint.url)

        async def run() -> list[Any]:
            await policy.start(2, 8)
            first = asyncio.create_task(policy.generate(PROMPT, SamplingParams(4)))  # type: ignore[attr-defined]
            while not policy._client._not_before:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
            second = policy.generate(PROMPT, SamplingParams(4))  # type: ignore[attr-defined]
            answers = await asyncio.gather(first, second)
            await policy.aclose()
            return answers

        answers = asyncio.run(run())
    assert [answer.text for answer in answers] == ["go", "go"]
    assert len(endpoint.times) == 3
    assert min(endpoint.times[1:]) - endpoint.times[0] >= 0.45


def test_never_waits_longer_than_allowed() -> None:
    answer, endpoint = play([Reply("", 429, {"Retry-After": "100000"}), chat("go")], max_wait=0.05)
    assert answer.text == "go"
    assert endpoint.times[1] - endpoint.times[0] < 4


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3.0), ("0", 0.0), ("-5", 0.0), ("", None), ("soon", None), ("nan", None), ("inf", None), ("1e300", None)],
)
def test_retry_after_in_seconds(value: str, expected: float | None) -> None:
    assert wait_asked({"retry-after": value} if value else {}) == expected


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    asked = wait_asked({"retry-after": later})
    assert asked is not None
    assert 25 < asked <= 30


@pytest.mark.parametrize(
    "slow", [Reply("{}", delay=1.5), Reply(chat("go").body, drip=0.1)], ids=["no answer", "byte by byte"]
)
def test_a_slow_reply_costs_the_timeout(slow: Reply) -> None:
    answer, endpoint = play([slow, chat("go")], timeout=0.3)
    assert answer.text == "go"
    assert 0.25 < endpoint.times[1] - endpoint.times[0] < 1.4


def test_an_endpoint_that_is_not_there_is_a_fault() -> None:
    with serve(lambda number, body: chat("go")) as endpoint:
        url = endpoint.url
    (answer,) = ask(source(url))
    assert isinstance(answer, PolicyFault)
    assert "cannot be reached" in str(answer)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_endpoint_refuses_is_not_repeated(status: int) -> None:
    answer, endpoint = play([Reply('{"error": {"message": "bad field"}}', status)])
    assert isinstance(answer, PolicyFault)
    assert str(answer) == f"the endpoint answered HTTP {status}: bad field"
    assert (answer.requests, len(endpoint.bodies)) == (1, 1)


@pytest.mark.parametrize(
    "body",
    [
        '{"error": {"code": "context_length_exceeded", "message": "too long"}}',
        '{"error": {"message": "This model\'s maximum context length is 64 tokens."}}',
    ],
)
def test_a_prompt_beyond_the_models_context_is_told_apart(body: str) -> None:
    answer, _ = play([Reply(body, 400)])
    assert isinstance(answer, PolicyFault)
    assert answer.too_long


@pytest.mark.parametrize(("status", "advice"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "base_url")])
def test_a_refusal_of_every_request_ends_the_evaluation(status: int, advice: str) -> None:
    answer, endpoint = play([Reply("no", status)])
    assert isinstance(answer, PolicyRefused)
    assert advice in str(answer)
    assert len(endpoint.bodies) == 1


def test_sends_no_more_requests_at_a_time_than_allowed() -> None:
    with serve(lambda number, body: Reply(chat("go").body, delay=0.02)) as endpoint:
        answers = ask(source(endpoint.url), count=12, concurrency=3)
    assert [answer.text for answer in answers] == ["go"] * 12
    assert endpoint.most_at_once <= 3


def echo(number: int, body: dict[str, Any]) -> Reply:
    """Repeats the key in every way."""
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    return [
        Reply(f"who is {KEY}", 500),
        Reply(f'{{"error": {{"message": "key {escaped} is odd"}}}}', 429),
        chat(f"<action>say {KEY}</action>"),
    ][min(number, 2)]


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_the_key_appears_nowhere(
    retries: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(echo) as endpoint, caplog.at_level(logging.DEBUG):
        policy = source(endpoint.url, retries=retries)
        (answer,) = ask(policy)
    assert endpoint.keys == [f"Bearer {KEY}"] * (retries + 1)
    said = traceback.format_exception(answer) if isinstance(answer, Exception) else [answer.text]
    seen = [*said, caplog.text, repr(policy), repr(policy.facts()), policy.label, repr(policy.options)]
    assert not any(KEY in text for text in seen)
    assert "[key]" in "".join(said)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": "localhost:8000"}, "--policy.base_url is not an address"),
        ({"base_url": "http://:80/v1"}, "--policy.base_url is not an address"),
        ({"base_url": "http://host:port/v1"}, "--policy.base_url is not an address"),
        ({"base_url": f"http://user:{KEY}@host/v1"}, "must be an address alone"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "must be an address alone"),
        ({"key_env": KEY}, "wants the name of an environment variable"),
        ({"base_url": None}, "needs --policy.base_url and --policy.model"),
        ({"model": None}, "needs --policy.base_url and --policy.model"),
        ({"extra": "{"}, "not valid JSON"),
        ({"extra": "[1]"}, "wants a JSON object"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], words: str) -> None:
    given = {"endpoint_url": "http://127.0.0.1/v1"} | options
    with pytest.raises(ConfigError) as caught:
        source(**given)
    assert words in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_key_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00e9\n2")
    with pytest.raises(ConfigError) as caught:
        source("http://127.0.0.1/v1")
    assert "OPENAI_API_KEY" in str(caught.value)
    assert "\u00e9" not in str(caught.value)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "openrlhf_gagpo.policies.http.client", raising=False)
    start: Callable[[], Any] = lambda: asyncio.run(source("http://127.0.0.1/v1").start(1, 1))  # noqa: E731
    with pytest.raises(ConfigError, match=r"needs the package httpx.*openrlhf-gagpo\[api\]"):
        start()


def test_replies_are_what_the_tests_believe() -> None:
    assert json.loads(chat("x").body)["choices"][0]["message"]["content"] == "x"
