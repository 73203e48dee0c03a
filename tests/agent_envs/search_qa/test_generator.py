"""Search QA: generated worlds repeat, can be solved, give nothing away, and keep their splits apart."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from agent_envs.errors import EnvError
from agent_envs.search_qa.checks import check
from agent_envs.search_qa.drawing import draw_questions, words_of
from agent_envs.search_qa.expert import expert_action
from agent_envs.search_qa.generator import generate
from agent_envs.search_qa.levels import LEVELS, SPLITS, Shape
from agent_envs.search_qa.mentions import load_mentions
from agent_envs.search_qa.passages import Passage, make_passages
from agent_envs.search_qa.questions import Question, load_questions
from agent_envs.search_qa.world import YEARS, World, make_world
from support.paths import REPOSITORY
from support.plain_bm25 import plain_engine, plain_search

LEVEL = replace(LEVELS["small"], scale=120, tasks=(100, 20, 40))
HARD = replace(
    LEVELS["hard"],
    scale=150,
    tasks=(30, 9, 18),
    distract=1.0,
    shapes=tuple(s for s in LEVELS["hard"].shapes if s.hops < 4),
)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def corpus_of(folder):
    rows = map(json.loads, (folder / "corpus.jsonl").read_text().splitlines())
    return {row["id"]: row["contents"] for row in rows}


def title(text):
    return text.partition("\n")[0].strip('"')


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A generated folder for each level."""
    made = {}
    for name, level in (("small", LEVEL), ("hard", HARD)):
        made[name] = tmp_path_factory.mktemp(name)
        generate(made[name], level, 3, engine=plain_engine)
    return made


@pytest.mark.parametrize("name", ["small", "hard"])
def test_the_expert_solves_every_task_of_every_split_with_a_step_per_article(folders, name):
    level, corpus = {"small": LEVEL, "hard": HARD}[name], corpus_of(folders[name])
    search, titles = plain_search(corpus), {number: title(text) for number, text in corpus.items()}.__getitem__
    for split, count in zip(SPLITS, level.tasks, strict=True):
        questions = load_questions(folders[name], split)
        assert len(questions) == count
        assert [question.id for question in questions] == [str(number) for number in range(count)]
        for question in questions:
            retrieved: list[str] = []
            searches = 0
            while (action := expert_action(question, retrieved, titles)).startswith("search "):
                retrieved += search([action.removeprefix("search ")], level.topk)[0]
                searches += 1
                assert searches <= len(question.gold_ids)
            assert action == f"answer {question.answers[0]}"
            assert len(question.gold_ids) == Shape.of(question.category).hops < level.max_steps


@pytest.mark.parametrize("name", ["small", "hard"])
def test_the_articles_say_the_answer_and_the_question_does_not(folders, name):
    corpus, mentions = corpus_of(folders[name]), load_mentions(folders[name])
    for split in SPLITS:
        for question in load_questions(folders[name], split):
            texts = [corpus[number] for number in question.gold_ids]
            given = set(mentions.find(question.question))
            assert given
            assert question.answers[0] not in given
            assert not set(words_of(question.answers[0])) & set(words_of(question.question)) - {"of"}
            assert question.path[-1] == question.answers[0]
            assert len(set(question.path)) == len(question.path)
            read: set[str] = set()
            for place, text in enumerate(texts):
                # The bridge of an intersection is found by what the question names.
                bridge = place == 0 and question.category.startswith("intersection")
                assert bridge or title(text) in read | given
                read.update(mentions.find(text))
            assert question.answers[0] in read


def test_every_kind_of_question_is_there_and_no_answer_is_a_good_guess(folders):
    questions = load_questions(folders["small"], "train")
    assert {question.category for question in questions} == {shape.category for shape in LEVEL.shapes}
    answers = [question.answers for question in questions]
    assert max(map(answers.count, answers)) <= 3
    manifest = json.loads((folders["small"] / "manifest.json").read_text())
    assert manifest["measured"]["expert_success"] == 1.0
    assert manifest["measured"]["question_as_query"]["chain-1"] > 0.7
    assert manifest["measured"]["question_as_query_deep"] == 0.0
    assert manifest["play"] == {"topk": 3, "names": "shown", "max_steps": 5}
    assert manifest["counts"]["questions"] == dict(zip(SPLITS, LEVEL.tasks, strict=True))
    assert set(manifest["sha256"]) == set(contents(folders["small"])) - {"manifest.json"}


def test_no_article_of_a_split_mentions_an_entity_of_another(folders):
    world = make_world(LEVEL, 3)
    mentions, corpus = load_mentions(folders["small"]), corpus_of(folders["small"])
    for text in corpus.values():
        homes = {world.entities[name].split for name in mentions.find(text) if mentions.is_entity(name)}
        assert len(homes) == 1
    for split in SPLITS:
        for question in load_questions(folders["small"], split):
            named = [name for name in (*question.path, *mentions.find(question.question)) if mentions.is_entity(name)]
            assert {world.entities[name].split for name in named} == {split}


def test_training_questions_do_not_change_when_the_test_entities_are_gone():
    world = make_world(LEVEL, 3)
    kept = {name: entity for name, entity in world.entities.items() if entity.split != "test"}
    smaller = World(
        kept,
        {name: facts for name, facts in world.facts.items() if name in kept},
        {name: terms for name, terms in world.mayors.items() if name in kept},
    )
    passages = {name: Passage(name, "", name) for name in world.entities} | {"none": Passage("none", "")}
    level = replace(LEVEL, tasks=(150, 0, 0))
    titles = {tuple(words_of(name)): name for name in passages}

    def search(queries, topk):
        return [[titles[words]] if (words := tuple(words_of(query))) in titles else ["none"] for query in queries]

    drawn = [draw_questions(part, level, 3, passages, search) for part in (world, smaller)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", LEVELS)
def test_the_step_limit_of_a_level_leaves_a_step_or_two(name):
    level = LEVELS[name]
    assert level.max_steps - (max(shape.hops for shape in level.shapes) + 1) in (1, 2)
    # The demonstration needs short prompts, and every name in them as a symbol.
    assert (level.names == "symbols") == (level.wordings == 1) == (level.topk == 1)


@pytest.mark.parametrize("level", [LEVEL, HARD, replace(LEVELS["tiny"], scale=150)], ids=["small", "hard", "tiny"])
def test_passages_are_short_and_never_look_like_a_symbol(level):
    world = make_world(level, 1)
    passages = make_passages(world, level, 1)
    assert sorted(p.subject for p in passages if p.subject) == sorted(world.entities)
    for passage in passages:
        assert len(passage.text.split()) <= 100
        assert not re.search(r"\be\d+\b", passage.contents)
        assert not re.search(r"[{}]|  ", passage.contents)
    if level.filler == 0:
        assert max(len(passage.text.split()) for passage in passages) < 70


def test_a_world_has_distinct_names_older_mothers_and_a_mayor_for_every_year():
    # More names than the lists have.
    level = replace(LEVELS["hard"], scale=1500)
    world = make_world(level, 0)
    assert len(world.entities) == 1500 + 1500 + 500 + 500
    names = [name for entity in world.entities.values() for name in entity.names]
    assert len(set(names)) == len(names)
    for facts in world.facts.values():
        if "mother" in facts:
            assert int(world.facts[facts["mother"]]["birth year"]) < int(facts["birth year"])
    for terms in world.mayors.values():
        assert [year for term in terms for year in range(term.first, term.last + 1)] == list(YEARS)
        assert len({term.person for term in terms}) == 3
    shares = [sum(entity.split == split for entity in world.entities.values()) / 4000 for split in SPLITS]
    assert shares == pytest.approx([0.6, 0.15, 0.25])


def test_equal_seeds_write_equal_bytes_in_any_process_and_another_seed_others(tmp_path):
    program = (
        "import sys; from dataclasses import replace; from agent_envs.search_qa.generator import generate;"
        "from agent_envs.search_qa.levels import LEVELS; from support.plain_bm25 import plain_engine;"
        "level = replace(LEVELS['small'], scale=60, tasks=(24, 6, 12));"
        "generate(sys.argv[1], level, 0, engine=plain_engine)"
    )
    processes = []
    for salt, name in enumerate(("one", "two")):
        paths = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))
        environment = os.environ | {"PYTHONHASHSEED": str(salt), "PYTHONPATH": paths}
        processes.append(subprocess.Popen([sys.executable, "-c", program, tmp_path / name], env=environment))
    generate(tmp_path / "three", replace(LEVEL, scale=60, tasks=(24, 6, 12)), 1, engine=plain_engine)
    assert [process.wait() for process in processes] == [0, 0]
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    assert all(one[name] != three[name] for name in one if name.endswith(".jsonl"))


def test_a_refusal_leaves_older_files_as_they_were_and_success_replaces_them(tmp_path):
    level = replace(LEVEL, scale=60, tasks=(10, 3, 3))
    (tmp_path / "corpus.jsonl").write_text("older")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "old").write_text("older")

    def blind(corpus, out):
        return lambda queries, topk: [[] for _ in queries]

    with pytest.raises(EnvError, match="has only 0 of the 10 questions for split 'train'"):
        generate(tmp_path, level, 0, engine=blind)
    assert contents(tmp_path) == {"corpus.jsonl": b"older", "index/old": b"older"}
    stages: list[tuple[int, int]] = []
    generate(tmp_path, level, 0, lambda done, total: stages.append((done, total)), engine=plain_engine)
    assert b"older" not in contents(tmp_path).values()
    assert "index/old" not in contents(tmp_path)
    assert stages == [(stage, 5) for stage in range(1, 6)]


def test_an_unknown_level_and_a_folder_that_cannot_be(tmp_path):
    with pytest.raises(EnvError, match=r"no level 'huge' .* choose one of tiny, small, hard"):
        generate(tmp_path, "huge", engine=plain_engine)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvError, match="cannot be written to"):
        generate(tmp_path / "file", LEVEL, engine=plain_engine)


PASSAGES = {str(n): Passage(f"Title{n}", f"Text on Answer{n} and Name{n}.") for n in range(100)}


def asked(number, **changes):
    values = {
        "id": str(number), "question": f"What is thing {number}?", "answers": (f"Answer{number}",), "source": "",
        "category": "chain-2", "gold_ids": (str(number),), "path": (f"Name{number}", f"Answer{number}"),
    }  # fmt: skip
    return Question(**(values | changes))


def by_title(queries, topk):
    return [[name for name, passage in PASSAGES.items() if passage.title == query] for query in queries]


def test_checks_measure_and_refuse():
    entities = {f"Name{number}" for number in range(100)}

    def measure(train, test=(), search=by_title, max_steps=2):
        return check({"train": train, "test": test}, PASSAGES, entities, search, 3, max_steps)

    good = [asked(number) for number in range(100)]
    measured = measure(good[:80], good[80:])
    assert measured.expert_success == 1.0
    assert measured.question_as_query == {"chain-2": 0.0}
    assert measured.majority_answer == {"train": 1 / 80, "test": 1 / 20}

    with pytest.raises(EnvError, match="the expert fails in 100 of 100"):
        measure(good, max_steps=1)
    with pytest.raises(EnvError, match="the expert fails in 1 of 1"):
        # It knows the answer, but no search finds the article.
        measure([asked(1, queries=("nothing",))])
    with pytest.raises(EnvError, match="the question 'What is thing 1\\?' was generated twice"):
        measure(good, [asked(1)])
    with pytest.raises(EnvError, match="Name1 is in the splits train and test"):
        measure(good, [asked(2, question="Which?", path=("Name1",))])
    same = [asked(number, answers=("Answer0",), path=()) for number in range(100)]
    with pytest.raises(EnvError, match=r"one answer is right for 6\.0% .* split 'train'"):
        measure([*same[:6], *good[6:]])
    measure([*same[:5], *good[5:]])

    def clever(given):
        def search(queries, topk):
            numbers = [re.findall(r"thing (\d+)", query) for query in queries]
            return [number if number and int(number[0]) < given else by_title(queries, topk)[0] for number in numbers]

        return search

    with pytest.raises(EnvError, match=r"6\.0% of the generated questions are answered by a search for their own"):
        measure(good, search=clever(6))
    assert measure(good, search=clever(5)).question_as_query_deep == 0.05
    # One search suffices for these by design.
    for category in ("chain-1", "intersection-1", "comparison-2"):
        shallow = [asked(number, category=category) for number in range(100)]
        assert measure(shallow, search=clever(100)).question_as_query == {category: 1.0}


def test_there_is_no_expert_for_official_questions():
    with pytest.raises(EnvError, match="does not say which passages"):
        expert_action(Question("nq-1", "q?", ("x",), "nq", "nq"), [], str)
    generated = Question("1", "q?", ("x",), "", "chain-2", ("4", "5"))
    assert expert_action(generated, ["5"], {"4": "Four", "5": "Five"}.__getitem__) == "search Four"
    assert expert_action(generated, ["5", "4"], str) == "answer x"
