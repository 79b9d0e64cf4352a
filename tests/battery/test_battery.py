"""What every technique must hold, whatever it does. Techniques are found by walking the stage folders."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import pytest
import torch

import elvi
from elvi import pairs
from elvi.core.accept import Draft
from elvi.core.facts import Fact
from elvi.core.generate import generate, prefill
from elvi.core.plan import Plan, seam
from elvi.core.run import Run
from elvi.core.seams import Accept, Attend, Codec, Drafter, Encoded, Fetch, Keep, Reduce, Resize, SelectFrames
from elvi.errors import ElviError, FitError, PlanError
from elvi.media import Clip
from elvi.spec import whole

IDS = elvi.list_techniques()
MODELS = pairs.MODELS
SEED = 10_000


@cache
def loaded(name: str, device: torch.device):
    return elvi.load(name, device=device)


@pytest.fixture
def family(device):
    """The shipped models by name, on the device under test."""
    return lambda name: loaded(name, device)


def clip(number: int = 0, seconds: int = 3, kind: str = "color") -> Clip:
    return elvi.sample(SEED + number, kind=kind, seconds=seconds)


def alone(technique) -> Plan:
    """The technique, with what it cannot do without."""
    return Plan(*whole(technique))


def fitting(model, technique) -> bool:
    """Whether a technique alone fits a model (a tower without class token may not)."""
    return refused(model, alone(technique)) is None


def home(family, technique):
    """The first shipped model that a technique fits."""
    return next(model for model in map(family, MODELS) if fitting(model, technique))


def full(identifier: str):
    """The technique with the setting at which it must change nothing, or None if it has none."""
    technique = elvi.technique(identifier)
    return technique(**technique.full) if technique.full is not None else None


def prefilled(model, plan: Plan, picture: Clip | None, question: str = "what color is the star ?") -> Run:
    run = Run(model, plan)
    with torch.inference_mode():
        prefill(run, picture, question)
    return run


@pytest.mark.parametrize("identifier", IDS)
def test_defaults_are_literals_and_the_class_is_frozen(identifier):
    technique = elvi.technique(identifier)()
    assert all(
        isinstance(getattr(technique, field.name), bool | int | float | str | None) for field in fields(technique)
    )
    with pytest.raises(AttributeError):
        setattr(technique, fields(technique)[0].name, None)


@pytest.mark.parametrize("identifier", IDS)
def test_what_is_swept_is_a_field_and_every_value_is_legal(identifier):
    technique = elvi.technique(identifier)
    field, values = technique.sweep
    assert all(getattr(technique(**{field: value}), field) == value for value in values)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("identifier", IDS)
def test_full_budget_is_identity(identifier, name, family):
    technique = full(identifier)
    if technique is None or not fitting(family(name), technique):
        return
    for number, kind in enumerate(("color", "caption")):
        picture = clip(number, 4, kind)
        plain = generate(family(name), picture, max_new_tokens=24)
        assert generate(family(name), picture, plan=alone(technique), max_new_tokens=24).tokens == plain.tokens


@pytest.mark.parametrize("identifier", IDS)
def test_prompts_without_pictures_are_left_alone(identifier, family):
    technique, question = elvi.technique(identifier)(), "what color is the star ?"
    if isinstance(technique, Keep):
        return  # text alone is still a cache to compress
    model = home(family, technique)
    plain = generate(model, None, question, max_new_tokens=6)
    assert generate(model, None, question, plan=alone(technique), max_new_tokens=6).tokens == plain.tokens


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("identifier", IDS)
def test_text_stays_and_tokens_keep_their_order(identifier, name, family):
    technique = elvi.technique(identifier)()
    if not isinstance(technique, Reduce) or not fitting(family(name), technique):
        return
    run = prefilled(family(name), alone(technique), clip())
    text = set(run.layout.row[~run.layout.visual].tolist())
    for layer in run.store.layers:
        row = layer.row[0]
        assert (row.diff() > 0).all()
        assert text <= set(row.tolist())


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("identifier", IDS)
def test_every_budget_works_down_to_single_tokens(identifier, ratio, family):
    technique = elvi.technique(identifier)
    if "keep_ratio" not in {field.name for field in fields(technique)}:
        return
    for seconds in (1, 2):
        for name in MODELS:
            try:
                plan = alone(technique(keep_ratio=ratio))
            except ElviError:
                assert ratio == 0.0, "only an empty budget may be refused"
                return
            if refused(family(name), plan) is None:
                assert generate(family(name), clip(1, seconds), plan=plan, max_new_tokens=3).tokens


@pytest.mark.parametrize("identifier", IDS)
def test_two_runs_are_equal(identifier, family):
    technique = elvi.technique(identifier)()
    model, plan = home(family, technique), alone(technique)
    first, second = (generate(model, clip(2, 4, "caption"), plan=plan, max_new_tokens=16) for _ in range(2))
    assert first.tokens == second.tokens
    assert first.report.kv_bytes == second.report.kv_bytes
    assert first.report.visual_tokens == second.report.visual_tokens


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("identifier", IDS)
def test_mass_is_conserved_or_dropped_whole(identifier, name, family):
    technique = elvi.technique(identifier)()
    if (
        not isinstance(technique, Reduce)
        or not isinstance(technique.at, Encoded)
        or not fitting(family(name), technique)
    ):
        return
    seen: list[tuple[float, float, int]] = []

    class Spy:
        at, tower_layers = technique.at, getattr(technique, "tower_layers", ())
        needs, breaks, lossless = technique.needs, technique.breaks, technique.lossless

        def reduce(self, tokens, view):
            out = technique.reduce(tokens, view)
            seen.append((float(tokens.mass.sum()), float(out.mass.sum()), len(out)))
            return out

    prefilled(family(name), Plan(Spy()), clip())
    ((before, after, count),) = seen
    assert after == pytest.approx(before) or after == count


@pytest.mark.parametrize("identifier", IDS)
def test_bytes_are_those_of_the_storage_that_is_allocated(identifier, family):
    technique = elvi.technique(identifier)()
    run = prefilled(home(family, technique), alone(technique), clip())
    allocated = 0
    for layer in run.store.layers:
        allocated += layer.rows.keys.untyped_storage().nbytes() + layer.rows.values.untyped_storage().nbytes()
        allocated += sum(packed.nbytes for packed in layer.packed)
    assert run.store.nbytes == allocated


STORED = pairs.load(Path(__file__).parents[2] / pairs.FILE)


def test_the_file_of_pairs_holds_every_technique_as_it_is():
    made = {identifier: elvi.technique(identifier)() for identifier in IDS}
    known = {
        identifier: {
            "name": type(technique).__name__,
            "seam": list(seam(technique)),
            "companions": list(getattr(technique, "companions", ())),
        }
        for identifier, technique in made.items()
    }
    assert STORED.techniques == known, f"{pairs.FILE} does not hold the techniques as they are: {pairs.REFRESH}"
    assert sorted(STORED.models) == sorted(MODELS)


def told(model, plan: Plan, *, run: bool = True) -> str | None:
    """The sentence with which a plan is refused, or None where it gives an answer (or would, if it is not to run)."""
    try:
        assert not run or generate(model, clip(3, 2), plan=plan, max_new_tokens=4).tokens
        plan.check(model)
    except ElviError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("first", "second"), STORED.ordered())
def test_every_ordered_pair_does_what_the_file_of_pairs_says(first, second, family):
    """A pair runs on the first model on which it works; whether it is refused is asked of both."""
    plan, bare = pairs.together(first, second), Plan(elvi.technique(first)(), elvi.technique(second)())
    ran = False
    for model in map(family, MODELS):
        said = STORED.verdict(model.name, first, second)
        runs = said.kind in ("works", "needs")
        assert told(model, plan, run=not (runs and ran)) == (None if runs else said.sentence), pairs.REFRESH
        if runs:  # two alone are refused where one of them needs a companion
            assert told(model, bare, run=False) == said.sentence, pairs.REFRESH
        if said.kind == "refused":
            assert all(STORED.techniques[each]["name"] in said.sentence for each in (first, second))
        ran |= runs


def refused(model, plan: Plan) -> ElviError | None:
    try:
        plan.check(model)
    except (PlanError, FitError) as error:
        return error
    return None


def drafters() -> list[str]:
    return [identifier for identifier in IDS if isinstance(elvi.technique(identifier)(), Drafter)]


def of_every_kind() -> list[str]:
    """The first technique of every kind: with the same protocols, acting at the same times."""
    kinds: dict[tuple, str] = {}
    for identifier in IDS:
        technique = elvi.technique(identifier)()
        if not isinstance(technique, Drafter | Accept):
            protocols = tuple(
                isinstance(technique, each) for each in (SelectFrames, Resize, Reduce, Keep, Fetch, Codec, Attend)
            )
            times = tuple(getattr(technique, name, False) for name in ("rolling", "streams", "prefill", "decode"))
            kinds.setdefault((protocols, times), identifier)
    return list(kinds.values())


@dataclass(frozen=True)
class HalfRight:
    """Drafts a known answer in small trees: right tokens beside wrong ones, and every third place wrong altogether."""

    answer: tuple[int, ...]
    vocabulary: int
    needs = frozenset({Fact.ROW_PURE})
    breaks = frozenset()
    lossless = True

    def start(self, run, clip, sampler):
        return self

    def propose(self, ids, limit):
        tokens, parents, node = [], [], -1
        for place in range(len(ids), min(len(ids) + 4, len(ids) + limit, len(self.answer))):
            right = self.answer[place] if place % 3 else (self.answer[place] + 2) % self.vocabulary
            tokens += [(right + 1) % self.vocabulary, right]
            parents += [node, node]
            node = len(tokens) - 1
        return Draft(tokens, parents)

    def heard(self, path):
        """It knows all it needs."""


def same_as_plain(model, others: list, drafter, kinds: tuple[str, ...], picture: int) -> tuple[int, int]:
    """Whether drafts change nothing; how many tokens were accepted, and how many drafted."""
    accepted = drafted = 0
    for number, kind in enumerate(kinds):
        # Past the end of a short answer the models ramble, each in its own way, so that drafts fall.
        shown, options = clip(picture + number, 4, kind), {"max_new_tokens": 40, "ignore_eos": kind != "caption"}
        plain = generate(model, shown, plan=Plan(*others), **options)
        fast = generate(model, shown, plan=Plan(*others, drafter(plain.tokens)), **options)
        assert fast.tokens == plain.tokens
        accepted += sum(fast.report.accepted)
        drafted += sum(fast.report.drafted)
    return accepted, drafted


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("identifier", IDS)
def test_drafts_right_and_wrong_change_nothing_under_any_technique(identifier, name, family):
    model, technique = family(name), elvi.technique(identifier)()
    if isinstance(technique, Drafter | Accept):
        return

    def drafter(answer):
        return HalfRight(tuple(answer), model.vocabulary)

    if not refused(model, Plan(technique, drafter(()))):
        accepted, drafted = same_as_plain(model, [technique], drafter, ("caption", "color"), 10)
        assert 0 < accepted < drafted


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("drafter", drafters())
@pytest.mark.parametrize("identifier", [None, *of_every_kind()])
def test_speculation_emits_what_plain_decoding_emits(identifier, drafter, name, family):
    others = [elvi.technique(identifier)()] if identifier else []
    technique = elvi.technique(drafter)()
    if not refused(family(name), Plan(*others, technique)):
        kinds = ("caption", "caption", "color", "count")
        accepted, drafted = same_as_plain(family(name), others, lambda answer: technique, kinds, 10)
        assert 0 < accepted < drafted
