"""The tokens of a step as text: the prompt as it was sent, and the response with its log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gagpo.rollout.types import Message, Step
from openrlhf_gagpo.viewer.evaluated import evaluated
from openrlhf_gagpo.viewer.sources import Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["StepTokens", "Token", "step_tokens"]

_LEVELS = (-0.05, -0.5, -1.5, -3.0)
"""Log-probabilities below which a token counts as one level more surprising."""


@dataclass(frozen=True)
class Token:
    """One token of a response."""

    text: str
    log_prob: float | None

    @property
    def level(self) -> int:
        """How surprising it was to the sampler, from 0 to 4."""
        return 0 if self.log_prob is None else sum(self.log_prob < level for level in _LEVELS)


@dataclass(frozen=True)
class StepTokens:
    """A step as the model saw it."""

    prompt: str
    """"" if the policy read no token ids."""
    prompt_length: int
    messages: Sequence[Message]
    """What it read in their place; empty if it read nothing."""
    response: Sequence[Token]
    decoded: bool
    """Whether a tokenizer was found; without one, tokens are shown as their ids."""


def step_tokens(source: Source, step: Step) -> StepTokens:
    """Decode the tokens of a step with the tokenizer of its run or evaluation, if that is on this machine."""
    tokenizer = _tokenizer_of(source)

    def text(ids: Sequence[int]) -> str:
        if tokenizer is None:
            return " ".join(map(str, ids))
        decoded: str = tokenizer.decode(list(ids), skip_special_tokens=False)
        return decoded

    probabilities: list[float | None] = list(step.sampling_log_probs)
    probabilities += [None] * (len(step.response_ids) - len(probabilities))
    tokens = [Token(text([token]), p) for token, p in zip(step.response_ids, probabilities, strict=False)]
    return StepTokens(text(step.prompt_ids), len(step.prompt_ids), step.messages, tokens, tokenizer is not None)


def _tokenizer_of(source: Source) -> Tokenizer | None:
    for folder in _folders(source):
        file = folder / "tokenizer.json"
        if file.is_file():
            return _load(file, file.stat().st_mtime_ns)
    return None


def _folders(source: Source) -> Iterator[Path]:
    if source.evaluation is not None:
        options: Mapping[str, Any] = evaluated(source.evaluation).settings.get("policy_options") or {}
        names = (options.get(name) for name in ("tokenizer", "model"))
        yield from (Path(name) for name in names if isinstance(name, str) and name)
    run = source.run
    if run is None:
        return
    yield run.model_dir
    values: Mapping[str, Any] = run.config().get("values") or {}
    actor = values.get("actor")
    name = values.get("actor.model_name_or_path") or (actor or {}).get("model_name_or_path")
    if isinstance(name, str) and name:
        # A relative name was meant from the folder in which the run was started, which may be this one.
        yield Path(name)
        yield run.path.parent / name


@lru_cache(maxsize=4)
def _load(file: Path, changed: int) -> Tokenizer | None:
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(file))
    except Exception:
        # Whatever is wrong with the file or the package, the ids can still be shown.
        return None
