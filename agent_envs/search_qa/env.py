"""Questions that are answered with the help of a search engine, as a ``TextEnv``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from agent_envs.base import Expert, Recording, Reset, StepResult, TextEnv
from agent_envs.declarations import Needs
from agent_envs.errors import EnvError, UnknownTask
from agent_envs.registry import register
from agent_envs.search_qa.actions import (
    METRICS,
    TAGS,
    Action,
    exact_match,
    normalise,
    read_action,
    show_passages,
    title_and_text,
    word_f1,
)
from agent_envs.search_qa.corpus import Corpus
from agent_envs.search_qa.data import (
    CORPUS_FILE,
    GENERATOR,
    INDEX_FOLDER,
    SERVICE,
    URL_VARIABLE,
    data_root,
    find_files,
    level_play,
)
from agent_envs.search_qa.expert import expert_action
from agent_envs.search_qa.levels import SPLITS
from agent_envs.search_qa.mentions import MENTIONS_FILE, load_mentions
from agent_envs.search_qa.prompt import SEARCH_QA_PROMPT
from agent_envs.search_qa.questions import Question, load_questions, question_files
from agent_envs.search_qa.retrieval import Hit, Remembering, Retriever
from agent_envs.search_qa.symbols import Symbols

__all__ = ["SearchQAEnv"]

NOT_UNDERSTOOD = "Not understood: either search for something or answer."
NOTHING_FOUND = "No passage found."


@dataclass
class _Episode:
    question: Question
    symbols: Symbols | None
    recording: Recording
    ids: dict[str, None] = field(default_factory=dict)
    """Passages that were retrieved, in the order in which they were met."""
    queries: list[str] = field(default_factory=list)
    """In their normal form."""
    met: dict[str, None] = field(default_factory=dict)
    """Names that question and results mention, in the order in which they were met."""
    observation: str = ""

    def show(self, text: str) -> str:
        """Return ``text`` as the player sees it."""
        return text if self.symbols is None else self.symbols.show(text)

    def hide(self, text: str) -> str:
        """Return the player's ``text`` as search and metrics read it."""
        return text if self.symbols is None else self.symbols.hide(text)


_KEYS: Mapping[str, Callable[[_Episode], Iterable[str]]] = MappingProxyType(
    {
        "passages": lambda episode: sorted(episode.ids),
        "observation": lambda episode: (episode.observation,),
        "queries": lambda episode: episode.queries,
    }
)
"""What makes up the state key, by the option of that name."""
_NO_INFO: Mapping[str, Any] = MappingProxyType({})


@register("search_qa")
class SearchQAEnv(TextEnv):
    """Answering of questions with a search engine, on official or generated data.

    An action is ``<search>words</search>`` or ``<answer>words</answer>``, or ``search words`` or ``answer words``. A
    search shows up to ``topk`` passages; an answer ends the episode. Success is an exact match, the score is F1, and
    the reward is ``success_reward`` times the metric that ``reward`` names; an episode cut off at ``max_steps`` earns
    nothing. ``seed`` of ``reset`` changes only which symbols stand for which names.

    ``topk``, ``max_steps`` and ``names`` default to what the level of generated data asks for, else to 3, 4 and shown.

    Args:
        data_dir: folder with questions and corpus; default the variable ``SEARCH_QA_DATA``.
        retriever: tantivy, an index of the folder's corpus inside this process, or http, a server.
        url: address of the server; default the variable ``SEARCH_QA_URL``, which keeps a password in it out of records.
        query_field: queries, or query for a server that takes one text a request.
        timeout: seconds that one request to the server may take.
        topk: passages that a search shows.
        max_steps: steps after which an episode is truncated, the answer included.
        reward: em, f1 or cover.
        success_reward: reward of an answer whose metric is 1.
        state_key: passages (the set of passages retrieved so far), observation, or queries.
        names: shown, or symbols to show each name in generated data as one of 40 symbols.
        passage_words: words of a passage's text that are shown.
        max_observation_chars: longest observation.
        sources: benchmarks whose questions are kept, as a list or with commas between; default all.
        train_tasks: questions of the split train, the first of it; default all. ``valid_tasks`` and ``test_tasks`` too.

    Raises:
        EnvError: data is missing or broken, or an option is out of range.
    """

    splits = SPLITS
    prompt = SEARCH_QA_PROMPT
    action_tags = TAGS
    can_snapshot = True
    needs = Needs(("tantivy", "httpx"), extra="search")
    generator = GENERATOR
    service = SERVICE

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        retriever: Literal["tantivy", "http"] = "tantivy",
        url: str | None = None,
        query_field: Literal["queries", "query"] = "queries",
        timeout: float = 30.0,
        topk: int | None = None,
        max_steps: int | None = None,
        reward: Literal["em", "f1", "cover"] = "em",
        success_reward: float = 1.0,
        state_key: Literal["passages", "observation", "queries"] = "passages",
        names: Literal["shown", "symbols"] | None = None,
        passage_words: int = 100,
        max_observation_chars: int = 2400,
        sources: str | Sequence[str] = (),
        train_tasks: int | None = None,
        valid_tasks: int | None = None,
        test_tasks: int | None = None,
    ) -> None:
        self._root = data_root(data_dir)
        play = level_play(self._root)
        topk = _chosen(topk, play.get("topk"), 3)
        max_steps = _chosen(max_steps, play.get("max_steps"), 4)
        names = names or ("symbols" if play.get("names") == "symbols" else "shown")
        _check_choice("retriever", retriever, ("tantivy", "http"))
        _check_choice("query_field", query_field, ("queries", "query"))
        _check_choice("reward", reward, tuple(METRICS))
        _check_choice("state_key", state_key, ("passages", "observation", "queries"))
        _check_choice("names", names, ("shown", "symbols"))
        _check_positive("topk", topk)
        _check_positive("max_steps", max_steps)
        _check_positive("timeout", timeout)
        _check_positive("passage_words", passage_words)
        _check_positive("max_observation_chars", max_observation_chars)
        self._topk, self.max_steps = topk, max_steps
        self._metric, self._success_reward = METRICS[reward], success_reward
        self._state_key = state_key
        self._words, self._chars = passage_words, max_observation_chars
        listed = sources.split(",") if isinstance(sources, str) else sources
        self._sources = tuple(source.strip() for source in listed if source.strip())
        self._limits = {"train": train_tasks, "valid": valid_tasks, "test": test_tasks}
        if any(limit is not None and limit < 0 for limit in self._limits.values()):
            raise EnvError("a number of tasks of question answering is below 0; leave it out for all of them.")
        self._stamp = _stamp(self._root)
        generated = names == "symbols" or (self._root / MENTIONS_FILE).is_file()
        self._mentions = load_mentions(self._root) if generated else None
        self._symbols = names == "symbols"
        self._episode: _Episode | None = None
        self._retriever: Retriever
        self._corpus: Corpus | None = None
        if retriever == "http":
            url = url or os.environ.get(URL_VARIABLE, "")
            if not url:
                raise EnvError(
                    "retriever=http of question answering needs the address of a server; give it as url, or in the "
                    f"variable {URL_VARIABLE}"
                )
            # Imported here, because a player with an index needs no client.
            from agent_envs.search_qa.retrieval.http import shown_url

            self.waits = True
            self._retriever = _server(url, timeout, query_field)
            facts: dict[str, object] = {"url": shown_url(url)}
        else:
            self._retriever, self._corpus, facts = _embedded(self._root, self._stamp)
        counts = {split: len(self.tasks(split)) for split in SPLITS if question_files(self._root, split)}
        self.record = {"retriever": retriever, **facts, "topk": topk, "names": names, "questions": counts}

    @classmethod
    def find_data(cls, **options: Any) -> Iterable[str]:
        return find_files(options.get("data_dir"), embedded=options.get("retriever", "tantivy") == "tantivy")

    @classmethod
    def preload(cls, **options: Any) -> None:
        """Read the questions and map corpus and index, for a process that worker processes are forked from.

        Raises ``EnvError`` as making an instance does.
        """
        cls(**options).close()

    def tasks(self, split: str) -> Sequence[str]:
        if split not in SPLITS:
            raise UnknownTask(f"question answering has no split {split!r}; it has: {', '.join(SPLITS)}.")
        return list(_questions(self._root, split, self._sources, self._stamp))[: self._limits[split]]

    def reset(self, task: str, seed: int) -> Reset:
        question = self._question(task)
        symbols = Symbols.for_question(question, self._mentions, seed) if self._symbols and self._mentions else None
        episode = self._episode = _Episode(question, symbols, Recording(task, seed))
        self._meet(question.question)
        return Reset(
            observation="",
            state_key=self._key(episode),
            task=episode.show(question.question),
            admissible_actions=self._suggestions(episode),
            category=question.category,
            # Several names of one thing may have the same symbol.
            info={"answers": list(dict.fromkeys(map(episode.show, question.answers)))},
        )

    def step(self, action: str) -> StepResult:
        read = self._read(action)
        asked = read is not None and read.kind == "search"
        found = self._retriever.search([read.words], self._topk)[0] if read and asked else []
        return self._take(action, read, found)

    async def astep(self, action: str) -> StepResult:
        read = self._read(action)
        asked = read is not None and read.kind == "search"
        found = (await self._retriever.asearch([read.words], self._topk))[0] if read and asked else []
        return self._take(action, read, found)

    def expert(self) -> Expert | None:
        """Knows which passages a generated question needs; there is none for official data.

        Where the data does not say what to search for, it is the passage's title, which needs the corpus.
        """
        question = self._episode.question if self._episode is not None else None
        known = question is not None and question.gold_ids and (question.queries or self._corpus is not None)
        return self._expert_action if known else None

    def snapshot(self) -> object:
        """Return the way to the state, since symbols are given out on it."""
        return self._running().recording

    def restore(self, state: object) -> None:
        if not isinstance(state, Recording):
            raise EnvError("this is not a snapshot of question answering; take one with snapshot.")
        state.play(self)

    def describe_tasks(self, tasks: Mapping[str, Sequence[str]]) -> Iterable[str]:
        passages = f"{len(self._corpus)} passages; " if self._corpus is not None else ""
        yield f"{passages}questions: {', '.join(f'{split} {len(ids)}' for split, ids in tasks.items())}"

    def close(self) -> None:
        self._episode = None

    def _read(self, action: str) -> Action | None:
        return read_action(self._running().hide(action))

    def _take(self, action: str, read: Action | None, found: Sequence[Hit]) -> StepResult:
        """Carry out an action that was read, with what its search found."""
        episode = self._running()
        episode.recording = episode.recording.then(action)
        truncated = len(episode.recording.actions) >= self.max_steps
        if read is None:
            episode.observation = NOT_UNDERSTOOD
            return self._result(episode, truncated=truncated, admissible=False)
        if read.kind == "answer":
            return self._answered(episode, read.words)
        episode.queries.append(normalise(read.words))
        episode.ids.update(dict.fromkeys(hit.id for hit in found))
        text = show_passages([hit.contents for hit in found], self._words, self._chars) or NOTHING_FOUND
        self._meet(text)
        episode.observation = episode.show(text)
        return self._result(episode, truncated=truncated, info={"query": read.words, "ids": [hit.id for hit in found]})

    def _answered(self, episode: _Episode, answer: str) -> StepResult:
        self._episode = None
        golden = episode.question.answers
        return StepResult(
            observation="",
            # Not the key of the state that the answer was given in, so that no end looks like a wasted step.
            state_key=f"{self._key(episode)}\nanswered {normalise(answer)}",
            reward=self._success_reward * self._metric(answer, golden),
            terminated=True,
            truncated=False,
            success=exact_match(answer, golden) == 1.0,
            score=word_f1(answer, golden),
            info={"answer": answer},
        )

    def _result(
        self, episode: _Episode, *, truncated: bool, admissible: bool = True, info: Mapping[str, Any] = _NO_INFO
    ) -> StepResult:
        if truncated:
            self._episode = None
        return StepResult(
            observation=episode.observation,
            state_key=self._key(episode),
            reward=0.0,
            terminated=False,
            truncated=truncated,
            admissible=admissible,
            admissible_actions=self._suggestions(episode),
            info=dict(info),
        )

    def _key(self, episode: _Episode) -> str:
        return "\n".join(_KEYS[self._state_key](episode))

    def _meet(self, text: str) -> None:
        if self._mentions is not None:
            self._running().met.update(dict.fromkeys(self._mentions.find(text)))

    def _suggestions(self, episode: _Episode) -> tuple[str, ...]:
        """Return a search for each entity that was met, and each name that was met as the answer."""
        if self._mentions is None:
            return ()
        searches = (f"search {episode.show(name)}" for name in episode.met if self._mentions.is_entity(name))
        return (*searches, *(f"answer {episode.show(name)}" for name in episode.met))

    def _expert_action(self) -> str:
        episode = self._running()
        return episode.show(expert_action(episode.question, tuple(episode.ids), self._title))

    def _title(self, name: str) -> str:
        if self._corpus is None:
            raise EnvError(f"question answering: the title of passage {name!r} is not known without a corpus.")
        return title_and_text(self._corpus.find(name).contents)[0]

    def _running(self) -> _Episode:
        if self._episode is None:
            raise EnvError("question answering: no episode is running; call reset first.")
        return self._episode

    def _question(self, task: str) -> Question:
        split = task.partition("-")[0]
        limit = self._limits.get(split)
        found = _questions(self._root, split, self._sources, self._stamp) if split in SPLITS else {}
        question = found.get(task)
        if question is None or (limit is not None and task not in self.tasks(split)):
            raise UnknownTask(f"question answering has no task {task!r}; tasks() lists those it has.")
        return question


def _stamp(root: Path) -> tuple[int, ...]:
    """Return when the files were written, so that replaced ones are read anew."""
    files = [path for split in SPLITS for path, _ in question_files(root, split)]
    return tuple(path.stat().st_mtime_ns for path in (root / CORPUS_FILE, *files) if path.is_file())


@lru_cache(maxsize=16)
def _questions(root: Path, split: str, sources: tuple[str, ...], stamp: tuple[int, ...]) -> Mapping[str, Question]:
    """Return the questions of a split by task id, in the order of its files."""
    return {f"{split}-{question.id}": question for question in load_questions(root, split, sources)}


@lru_cache(maxsize=4)
def _server(url: str, timeout: float, query_field: str) -> Remembering:
    """Return the client of a server, the same for all instances of a process."""
    from agent_envs.search_qa.retrieval.http import HttpRetriever

    return Remembering(HttpRetriever(url, timeout, query_field))


@lru_cache(maxsize=4)
def _embedded(root: Path, stamp: tuple[int, ...]) -> tuple[Remembering, Corpus, dict[str, object]]:
    """Return the index of a folder, the same for all instances of a process, its corpus, and what a run records."""
    # Imported here, because a player who asks a server needs no engine.
    from agent_envs.search_qa.retrieval.tantivy import open_index

    opened = open_index(root / CORPUS_FILE, root / INDEX_FOLDER)
    return Remembering(opened), opened.corpus, dict(opened.notes)


def _chosen(given: int | None, level: object, default: int) -> int:
    """Return an option's value: as given, as generated data asks for, or by default."""
    return given if given is not None else level if isinstance(level, int) else default


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise EnvError(f"{name} of question answering must be {' or '.join(allowed)}, not {value!r}.")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise EnvError(f"{name} of question answering must be above 0, not {value!r}.")
