"""A word-level tokenizer made from environment text, small enough for a model of a hundred thousand parameters."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["EOS", "PAD", "UNK", "build_tokenizer"]

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
_NO_LIMIT = 10_000_000


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose vocabulary is every word and punctuation mark of ``texts``, most frequent first.

    A word includes the space before it (written as U+2581), and a punctuation mark or a line break is a token of its
    own. Decoding therefore reproduces any text of known words exactly, including spaces, as in ``put apple 1 in/on
    shelf 2``. Ids 0, 1, 2 are ``<pad>``, ``<eos>``, ``<unk>``; there is no beginning-of-sequence token and no chat
    template.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"\x{2581}?[^\w\s\x{2581}]|\n"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.WordLevelTrainer(vocab_size=_NO_LIMIT, special_tokens=[PAD, EOS, UNK], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )
