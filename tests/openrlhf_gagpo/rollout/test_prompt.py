from __future__ import annotations

import hashlib
from typing import Any

import jinja2
import pytest

from agent_envs.base import PromptTemplate
from openrlhf_gagpo.errors import PromptTemplateError, PromptTooLong
from openrlhf_gagpo.rollout.prompt import HistoryEntry, PromptBuilder

TEMPLATE = PromptTemplate(
    system="Play.{% if think %} Think first.{% endif %}",
    turn=(
        "{{ task }}\n"
        "{% for item in history %}\n"
        "{{ item.step }}: {{ item.observation }} > {{ item.action }}\n"
        "{% endfor %}\n"
        "now {{ step }}: {{ observation }}\n"
        "{% if admissible_actions %}\n"
        "can: {{ admissible_actions | join(', ') }}\n"
        "{% endif %}"
    ),
)
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class WordTokenizer:
    """One id per whitespace-separated word; counts its encodings."""

    def __init__(self, chat_template: str | None = None) -> None:
        self.chat_template = chat_template
        self.encodings = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        self.encodings += 1
        return [len(word) for word in text.split()]

    def apply_chat_template(self, messages: list[dict[str, str]], *, tokenize: bool, **variables: Any) -> str:
        assert not tokenize

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        return jinja2.Template(self.chat_template).render(messages=messages, raise_exception=refuse, **variables)


def builder(tokenizer: Any = None, template: PromptTemplate = TEMPLATE, **changes: Any) -> PromptBuilder:
    options: dict[str, Any] = {
        "history_length": 3,
        "think": True,
        "action_tags": True,
        "list_actions": True,
        "chat_template": "auto",
        "max_prompt_tokens": 1000,
    }
    return PromptBuilder(template, tokenizer or WordTokenizer(), **{**options, **changes})


def history(count: int) -> list[HistoryEntry]:
    return [HistoryEntry(i, f"room{i}", f"go{i}") for i in range(count)]


def test_plain_text() -> None:
    built = builder().build("Find it.", history(5), "a door", ("open", "wait"), 5)
    assert built.text == (
        "Play. Think first.\n\nFind it.\n"
        "2: room2 > go2\n3: room3 > go3\n4: room4 > go4\nnow 5: a door\ncan: open, wait\n"
    )
    assert built.token_ids == [len(word) for word in built.text.split()]
    assert built.history_dropped == 0


def test_no_history_and_hidden_actions() -> None:
    built = builder(history_length=0, list_actions=False, think=False).build("T", history(5), "a door", ("open",), 5)
    assert built.text == "Play.\n\nT\nnow 5: a door\n"


def test_chat_template_with_system_role() -> None:
    built = builder(WordTokenizer(CHAT)).build("T", [], "o", (), 0)
    assert built.text == "[system]Play. Think first.[end][user]T\nnow 0: o\n[end][assistant]"


@pytest.mark.parametrize(
    "chat",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT,
        CHAT.replace(
            "[{{ m.role }}]{{ m.content }}[end]", "{% if m.role == 'user' %}[user]{{ m.content }}[end]{% endif %}"
        ),
    ],
    ids=["refuses", "ignores"],
)
def test_chat_template_without_system_role_gets_it_in_the_user_message(chat: str) -> None:
    built = builder(WordTokenizer(chat)).build("T", [], "o", (), 0)
    assert built.text == "[user]Play. Think first.\n\nT\nnow 0: o\n[end][assistant]"


def test_chat_template_none_ignores_the_tokenizers() -> None:
    assert builder(WordTokenizer(CHAT), chat_template="none").build("T", [], "o", (), 0).text.startswith("Play.")


def test_thinking_choice_reaches_the_chat_template() -> None:
    chat = CHAT + "{% if enable_thinking %}<think>{% endif %}"
    assert builder(WordTokenizer(chat)).build("T", [], "o", (), 0).text.endswith("[assistant]<think>")
    assert builder(WordTokenizer(chat), think=False).build("T", [], "o", (), 0).text.endswith("[assistant]")


@pytest.mark.parametrize("limit", range(7, 60))
def test_as_little_history_as_needed_is_dropped_oldest_first(limit: int) -> None:
    # 7 words without history ("Play." "Think" "first." "T" "now" "9:" "o"), 4 for each entry.
    tokenizer = WordTokenizer()
    fitting = builder(tokenizer, history_length=10, max_prompt_tokens=limit)
    built = fitting.build("T", history(10), "o", (), 9)
    kept = min(10, (limit - 7) // 4)
    assert built.history_dropped == 10 - kept
    assert len(built.token_ids) == 7 + 4 * kept
    assert [f"go{i}" in built.text for i in range(10)] == [i >= 10 - kept for i in range(10)]
    assert tokenizer.encodings <= 5


@pytest.mark.parametrize("count", [0, 1, 6])
def test_too_long_without_history(count: int) -> None:
    with pytest.raises(PromptTooLong, match="7 tokens without any history but only 6") as caught:
        builder(history_length=10, max_prompt_tokens=6).build("T", history(count), "o", (), 0)
    assert (caught.value.tokens, caught.value.limit) == (7, 6)


def test_a_fitting_prompt_is_encoded_once() -> None:
    tokenizer = WordTokenizer()
    builder(tokenizer).build("T", history(9), "o", (), 0)
    assert tokenizer.encodings == 1


def test_observations_are_not_rendered() -> None:
    assert "{{ 1 + 1 }} & <b>" in builder().build("T", [], "{{ 1 + 1 }} & <b>", (), 0).text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (PromptTemplate(turn="\n{% if %}"), "turn prompt template, line 2"),
        (PromptTemplate(turn="{{ goal }}"), "'goal' is undefined"),
        (PromptTemplate(turn="{% for item in history %}{{ item.thought }}{% endfor %}"), "no attribute 'thought'"),
        (PromptTemplate(turn="x", system="{{ task }}"), "system prompt template.*'task' is undefined"),
        (PromptTemplate(turn="{{ ''.__class__.__mro__ }}"), "unsafe"),
    ],
)
def test_bad_templates_are_reported_at_once(template: PromptTemplate, message: str) -> None:
    with pytest.raises(PromptTemplateError, match=message):
        builder(template=template)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history_length": -1}, "history_length is -1"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0"),
        ({"chat_template": "always"}, "chat_template is 'always'"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        builder(**change)


def test_resolved_names_everything_that_words_the_prompt() -> None:
    resolved = builder(WordTokenizer(CHAT)).resolved()
    assert TEMPLATE.turn in resolved.text
    assert TEMPLATE.system in resolved.text
    assert CHAT in resolved.text
    assert resolved.sha256 == hashlib.sha256(resolved.text.encode()).hexdigest()
    assert resolved == builder(WordTokenizer(CHAT)).resolved()
    others = [builder(), builder(WordTokenizer(CHAT), think=False), builder(WordTokenizer(CHAT), history_length=4)]
    assert len({resolved.sha256, *(other.resolved().sha256 for other in others)}) == 4


def test_real_tokenizer_adds_no_special_tokens_of_its_own() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(["[unk]", "<s>", "user", "T", "now", "0", ":", "door", "end"])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[unk]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[unk]", bos_token="<s>")
    template = PromptTemplate(turn=TEMPLATE.turn)
    assert builder(tokenizer, template).build("T", [], "door", (), 0).token_ids == [3, 4, 5, 6, 7]
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }} end{% endfor %}"
    assert builder(tokenizer, template).build("T", [], "door", (), 0).token_ids == [1, 2, 3, 4, 5, 6, 7, 8]
