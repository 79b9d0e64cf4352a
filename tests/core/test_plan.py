from dataclasses import dataclass
from typing import ClassVar

import pytest
from support import random_family

from elvi.core.facts import Fact
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.seams import Encoded, Layer
from elvi.errors import BudgetError, FitError, PlanError, check_asked, check_range


@dataclass(frozen=True)
class Early:
    needs: ClassVar = frozenset({Fact.GRID})
    breaks: ClassVar = frozenset({Fact.GRID})
    lossless: ClassVar = False
    at: ClassVar = Encoded()

    def reduce(self, tokens, seen):
        return tokens


@dataclass(frozen=True)
class Late:
    needs: ClassVar = frozenset({Fact.GRID})
    breaks: ClassVar = frozenset()
    lossless: ClassVar = False
    layer: int = 1

    @property
    def at(self):
        return Layer(self.layer)

    def reduce(self, tokens, seen):
        return tokens


@dataclass(frozen=True)
class NeedsClass(Early):
    needs: ClassVar = frozenset({Fact.CLS_TOKEN})


@dataclass(frozen=True)
class NeedsGrid(Early):
    breaks: ClassVar = frozenset()


@dataclass(frozen=True)
class Guess:
    needs: ClassVar = frozenset()
    breaks: ClassVar = frozenset()
    lossless: ClassVar = True

    def start(self, run, clip, sampler):
        raise NotImplementedError


@dataclass(frozen=True)
class Judge(Guess):
    start: ClassVar = None
    greedy_only: ClassVar = True
    hidden_layer: int = -1

    def judge(self, run, sampler):
        raise NotImplementedError


def test_techniques_act_along_the_lifecycle_however_they_are_listed():
    late, early, guess = Late(), Early(), Guess()
    assert Plan(guess, late, early).techniques == (early, late, guess)


def test_a_broken_fact_names_both_culprits_and_the_fact():
    with pytest.raises(PlanError) as error:
        Plan(Late(), Early()).check(random_family("qwen2_5_vl"))
    assert error.value.culprits == ("Late", "Early")
    assert Fact.GRID.value in str(error.value)


@dataclass(frozen=True)
class FramesAndTokens(Late):
    breaks: ClassVar = frozenset({Fact.GRID})

    def select_frames(self, clip, question):
        return range(len(clip))


def test_what_chooses_frames_and_reduces_tokens_is_checked_where_it_reduces():
    both, early = FramesAndTokens(), NeedsGrid()
    plan = Plan(both, early)
    plan.check(random_family("qwen2_5_vl"))
    assert plan.techniques == (early, both)
    assert plan.selectors == [both]
    with pytest.raises(PlanError, match=r"FramesAndTokens needs .* Early"):
        Plan(both, Early()).check(random_family("qwen2_5_vl"))


def test_a_missing_fact_names_the_technique_and_the_model():
    with pytest.raises(FitError, match="NeedsClass was asked of random-qwen"):
        Plan(NeedsClass()).check(random_family("qwen2_5_vl"))
    Plan(NeedsClass()).check(random_family("llava"))


@dataclass(frozen=True)
class Once:
    needs: ClassVar = frozenset()
    breaks: ClassVar = frozenset({Fact.SAME_LENGTH_PER_HEAD})
    lossless: ClassVar = False
    rolling: ClassVar = False
    window: ClassVar = 0

    def keep(self, views):
        raise NotImplementedError


@dataclass(frozen=True)
class EveryRound(Once):
    needs: ClassVar = frozenset({Fact.SAME_LENGTH_PER_HEAD, Fact.SETTLED})
    breaks: ClassVar = frozenset({Fact.SETTLED})
    rolling: ClassVar = True


def test_what_acts_after_every_round_needs_its_facts_after_the_others_have_acted():
    Plan(EveryRound()).check(random_family("llama"))
    with pytest.raises(PlanError, match="EveryRound acts again and again") as error:
        Plan(EveryRound(), Once()).check(random_family("llama"))
    assert error.value.culprits == ("EveryRound", "Once")
    with pytest.raises(PlanError, match="acting before it"):
        Plan(Once(), EveryRound()).check(random_family("llama"))
    with pytest.raises(PlanError, match="prompt stay as they are"):
        Plan(EveryRound(), EveryRound()).check(random_family("llama"))


@dataclass(frozen=True)
class TakesNote(EveryRound):
    follows: ClassVar = True


def test_what_chooses_nothing_after_a_round_needs_its_facts_only_when_it_acts_first():
    Plan(TakesNote(), Once()).check(random_family("llama"))
    with pytest.raises(PlanError, match="acting before it"):
        Plan(Once(), TakesNote()).check(random_family("llama"))


def test_only_one_technique_may_draft():
    with pytest.raises(PlanError) as error:
        Plan(Guess(), Guess()).check(random_family("llama"))
    assert error.value.culprits == ("Guess", "Guess")


def test_a_layer_beyond_the_last_is_refused():
    with pytest.raises(FitError, match="has 3 layers: choose 0 to 2"):
        Plan(Late(layer=3)).check(random_family("qwen2_5_vl"))


def test_a_plan_is_lossless_only_if_all_its_parts_are():
    assert Plan().lossless
    assert Plan(Guess()).lossless
    assert not Plan(Guess(), Early()).lossless


def test_what_is_no_technique_is_refused():
    with pytest.raises(PlanError, match="none of the methods"):
        Plan(object())


def test_fields_out_of_range_say_the_range():
    @dataclass(frozen=True)
    class Part:
        keep_ratio: float

    check_range(Part(0.5), "keep_ratio", 0, 1)
    for value in (-0.1, 1.5):
        with pytest.raises(BudgetError, match=r"keep_ratio=.* use from 0 to 1"):
            check_range(Part(value), "keep_ratio", 0, 1)
    with pytest.raises(BudgetError, match="above 0"):
        check_range(Part(0.0), "keep_ratio", 0, 1, open_low=True)


@pytest.mark.parametrize("question", [None, ""])
def test_a_missing_question_names_who_asked_for_it(question):
    check_asked(Early(), "what is there ?")
    with pytest.raises(FitError, match="Early chooses by the question, but none was asked: ask one, or drop Early"):
        check_asked(Early(), question)


def test_a_rule_for_greedy_decoding_refuses_to_sample():
    with pytest.raises(BudgetError, match=r"Judge relaxes greedy decoding .* temperature=0\.5"):
        generate(random_family("llama"), None, "what is there ?", plan=Plan(Guess(), Judge()), temperature=0.5)


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_to_look_at_that_is_not_there_is_refused(layer):
    with pytest.raises(FitError, match=f"Judge was asked to look at layer {layer}, but random-qwen has 3 layers"):
        Plan(Guess(), Judge(layer)).check(random_family("qwen2_5_vl"))
