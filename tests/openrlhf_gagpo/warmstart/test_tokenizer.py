"""The word-level tokenizer: exact round trips, unknown words, and loading the way training and vLLM do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.warmstart.tokenizer import build_tokenizer

ACTIONS = [
    "go north",
    "put apple 1 in/on shelf 2",
    "examine cabinet 13",
    "click[buy now]",
    "it's  two spaces",
    "open é-box.",
]
PROMPT = "you 0 0 hold none . red key south 1\nActions:\n\n- go north\n- click[buy now]\n> "


@pytest.mark.parametrize("text", [*ACTIONS, PROMPT])
def test_decoding_gives_the_text_back_exactly(text: str) -> None:
    tokenizer = build_tokenizer([*ACTIONS, PROMPT])
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


_WORDS = st.lists(st.text(alphabet="abcä0123456789/.,[]'-:", min_size=1, max_size=6), min_size=1, max_size=8)


@given(_WORDS)
def test_any_single_spaced_action_survives(words: list[str]) -> None:
    action = " ".join(words)
    tokenizer = build_tokenizer([action])
    assert tokenizer.decode(tokenizer.encode(action, add_special_tokens=False)) == action


@given(_WORDS)
def test_an_empty_tokenizer_splits_into_as_many_tokens(words: list[str]) -> None:
    text = " ".join(words)
    assert len(build_tokenizer([]).encode(text)) == len(build_tokenizer([text]).encode(text))


def test_ids_are_words_and_punctuation_and_stable() -> None:
    tokenizer = build_tokenizer(["go north .", "go south ."])
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]
    assert tokenizer.bos_token is None
    assert tokenizer.chat_template is None
    assert len(tokenizer) == 3 + 4
    assert build_tokenizer(["go north .", "go south ."]).get_vocab() == tokenizer.get_vocab()
    assert tokenizer.encode("go east .", add_special_tokens=False)[1] == tokenizer.unk_token_id


def test_a_qwen2_configuration_beside_it_would_replace_the_tokenizer(tmp_path: Path) -> None:
    """Why the model is a Qwen3: should this fail one day, transformers has stopped forcing Qwen2's tokenizer class."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen3Config

    tokenizer = build_tokenizer(["go north"])
    ids = tokenizer.encode("go north")
    for config, kept in ((Qwen2Config(), False), (Qwen3Config(), True)):
        folder = tmp_path / config.model_type
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        assert (AutoTokenizer.from_pretrained(folder).encode("go north") == ids) is kept
