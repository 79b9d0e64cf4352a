import errno
import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from support import LastSlots, clip_for, random_family

from elvi.bench import floor, measure, results, sweep
from elvi.bench.measure import Protocol
from elvi.bench.prompts import prompts
from elvi.core.accept import accept_exact
from elvi.core.generate import Output, generate
from elvi.core.plan import Plan
from elvi.core.seams import Encoded
from elvi.decode.hybridkv import HybridKV
from elvi.decode.inf_mllm import InfMLLM
from elvi.decode.livevlm import LiveVLM
from elvi.decode.sparsevila import SparseVILA
from elvi.errors import BudgetError, ElviError
from elvi.prefill.dycoke import DyCoke
from elvi.tiny.data import sample


@dataclass(frozen=True)
class FirstTokens:
    """Keeps the first visual tokens."""

    keep_ratio: float = 0.5
    at: ClassVar[Encoded] = Encoded()
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = False
    sweep: ClassVar[tuple] = ("keep_ratio", (0.25, 0.5))

    def __post_init__(self):
        if not 0 <= self.keep_ratio <= 1:
            raise BudgetError("keep_ratio is out of range")

    def reduce(self, tokens, seen):
        return tokens.keep(torch.arange(round(self.keep_ratio * len(tokens))))


@dataclass(frozen=True)
class FirstFrames:
    num_frames: int = 2
    needs: ClassVar[frozenset] = frozenset()
    breaks: ClassVar[frozenset] = frozenset()
    lossless: ClassVar[bool] = False

    def select_frames(self, clip, question):
        return np.arange(self.num_frames)


@dataclass(frozen=True)
class FirstOfBoth(FirstFrames, FirstTokens):
    """Keeps the first frames, and of those the first visual tokens."""


PROTOCOL = Protocol(clips=2, repeats=2, first_seed=10_002)  # a shape and a color


@pytest.fixture
def family():
    return random_family("qwen2_5_vl", layers=2)


@pytest.fixture
def short(monkeypatch):
    """Short answers, so that measuring takes a moment."""
    monkeypatch.setattr(measure, "LONGEST", 2)
    monkeypatch.setattr(measure, "TIMED_TOKENS", 3)
    monkeypatch.setattr(measure, "TIMED_SECONDS", 1)


def first_tokens(**fields):
    return sweep.Sweep("first-tokens", FirstTokens(**fields), "keep_ratio", (0.25, 0.5))


def run(family, out, **options):
    return sweep.run(family, first_tokens(), PROTOCOL, out, command="elvi bench first-tokens", **options)


def test_results_hold_baseline_cells_and_random_floor(family, short, tmp_path):
    ticks = []
    path, data = run(family, tmp_path, tick=lambda steps=1: ticks.append(steps))
    assert json.loads(path.read_text()) == data
    assert path == tmp_path / data["hardware"]["id"] / "random-qwen" / "first-tokens.json"
    assert [cell["setting"] for cell in data["cells"]] == [{"keep_ratio": 0.25}, {"keep_ratio": 0.5}]
    assert [cell["kept_share"] for cell in data["cells"]] == [0.25, 0.5]
    assert [cell["kept_share"] for cell in data["random"]] == [0.25, 0.5]
    assert data["baseline"]["kept_share"] == data["baseline"]["kv_ratio"] == 1.0
    assert sum(ticks) == first_tokens().steps(PROTOCOL) == 3 * (2 + 4) + 2 * 2


def test_cells_read_the_plan_back_and_time_every_repeat(family, short, tmp_path):
    _, data = run(family, tmp_path)
    cell = data["cells"][0]
    assert cell["plan"] == ["FirstTokens(keep_ratio=0.25)"]
    assert cell["ttft_s"]["n"] == cell["tpot_ratio"]["n"] == 2
    assert cell["ttft_s"]["q1"] <= cell["ttft_s"]["median"] <= cell["ttft_s"]["q3"]
    assert data["random"][0]["ttft_s"] is None
    assert cell["acceptance_length"] is None
    assert set(cell) == set(results.Cell.__annotations__)
    assert set(data) == set(results.Results.__annotations__) - {"heads"}


def test_interrupted_sweep_resumes_with_the_cells_that_are_missing(family, short, tmp_path, monkeypatch):
    calls = []

    def stopping(*args, **options):
        calls.append(args[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(*args, **options)

    measured = sweep.measure
    monkeypatch.setattr(sweep, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(family, tmp_path)
    (saved,) = tmp_path.rglob("*.json.partial")
    before = json.loads(saved.read_text())
    assert (len(before["cells"]), len(before["random"])) == (1, 0)
    path, data = run(family, tmp_path, resume=True)
    assert calls[3:] == [{"keep_ratio": 0.25}, {"keep_ratio": 0.5}, {"keep_ratio": 0.5}]
    assert data["cells"][0] == before["cells"][0]
    assert os.listdir(path.parent) == ["first-tokens.json"]


def test_resume_refuses_results_of_another_protocol(family, short, tmp_path):
    run(family, tmp_path)
    with pytest.raises(results.ResultsError, match="its protocol was"):
        sweep.run(family, first_tokens(), replace(PROTOCOL, clips=3), tmp_path, command="", resume=True)


def test_results_of_another_schema_are_refused_before_measuring(family, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "measure", None)
    path = tmp_path / sweep.provenance.hardware(family.device)["id"] / "random-qwen" / "first-tokens.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema": 99}))
    with pytest.raises(results.ResultsError, match="schema version 99"):
        run(family, tmp_path)
    assert json.loads(path.read_text()) == {"schema": 99}


def test_folder_that_cannot_be_written_is_refused_before_measuring(family, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "measure", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(results.ResultsError, match="choose another folder with --out"):
        run(family, tmp_path / "file")


def test_full_disk_leaves_the_old_results_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "fastv.json"
    results.save(path, {"schema": 1, "cells": ["old"]}, done=True)

    def full(self, text):
        os.close(os.open(self, os.O_CREAT | os.O_WRONLY))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(results.ResultsError, match=r"cannot be written .No space left on device.: free some space"):
        results.save(path, {"schema": 1, "cells": ["new"]}, done=True)
    assert json.loads(path.read_text())["cells"] == ["old"]
    assert os.listdir(tmp_path) == ["fastv.json"]


def test_budget_out_of_range_is_refused_before_measuring(family, tmp_path):
    bad = sweep.Sweep("first-tokens", FirstTokens(), "keep_ratio", (0.5, 1.5))
    with pytest.raises(BudgetError):
        sweep.run(family, bad, PROTOCOL, tmp_path, command="")
    assert os.listdir(tmp_path) == []


def test_a_text_model_is_asked_text_prompts_that_have_no_right_answer(tmp_path, short, monkeypatch):
    monkeypatch.setattr(measure, "LONGEST_TEXT", 6)
    lookup = sweep.parse("speculative-sampling:draft=ngram", "3")
    path, data = sweep.run(random_family("llama"), lookup, PROTOCOL, tmp_path, command="")
    assert path.parent.name == "random-llama"
    assert (data["protocol"]["kinds"], data["protocol"]["clips"]) == (["text"], 2)
    cell = data["cells"][0]
    assert cell["quality"]["of"] == cell["quality"]["captions"]["of"] == 0
    assert cell["same_answers"] == {"same": 2, "of": 2}
    assert cell["kept_share"] == 1.0
    asked = list(PROTOCOL.asked(random_family("llama")))
    assert [question for _, _, question in asked] == [prompt.text for prompt in prompts()[:2]]


def test_companions_and_variants_are_measured_too(family, tmp_path, short):
    @dataclass(frozen=True)
    class Judging:
        strict: bool = True
        companions: ClassVar[tuple] = ("speculative-sampling:draft=ngram,num_draft=2",)
        variants: ClassVar[tuple] = ({"strict": False},)
        needs: ClassVar[frozenset] = frozenset()
        breaks: ClassVar[frozenset] = frozenset()
        lossless: ClassVar[bool] = True
        greedy_only: ClassVar[bool] = False

        def judge(self, run, sampler):
            return partial(accept_exact, sampler=sampler)

    judging = sweep.Sweep("judging", Judging(), "strict", (True,))
    _, data = sweep.run(family, judging, PROTOCOL, tmp_path, command="")
    assert [cell["setting"] for cell in data["cells"]] == [{"strict": True}, {"strict": False}]
    assert [plan[0].split("(")[0] for plan in (cell["plan"] for cell in data["cells"])] == ["SpeculativeSampling"] * 2
    assert all(cell["same_answers"] == {"same": 2, "of": 2} for cell in [data["baseline"], *data["cells"]])


def report(**fields):
    base = generate(random_family("llama"), None, "what ?", max_new_tokens=2, ignore_eos=True).report
    return replace(base, **fields)


def test_speculation_is_counted_over_answers_and_costed_over_timed_pairs():
    plain = report(ttft_s=1.0, tpot_s=0.1, generated_tokens=21)
    ours = report(
        ttft_s=1.0,
        tpot_s=0.05,
        generated_tokens=21,
        forwards=5,
        drafted=[4] * 5,
        accepted=[4, 4, 2, 1, 4],
        acceptance_length=4.0,
        draft_s=0.5,
        draft_start_s=0.1,
        bridge_s=0.05,
        verify_s=0.4,
    )
    other = replace(ours, accepted=[0, 4], drafted=[4, 3], forwards=2, generated_tokens=7)
    found = measure.speculation([ours, other], [(plain, ours)])
    assert found["accepted_histogram"] == [1, 1, 1, 0, 4]
    assert found["drafted_per_round"] == 27 / 7
    assert found["accepted_per_round"] == 19 / 7
    assert found["tokens_per_round"] == 26 / 7
    medians = {key: value["median"] for key, value in found.items() if isinstance(value, dict)}
    assert medians == pytest.approx(
        {
            "draft_share": 0.45,
            "bridge_share": 0.05,
            "verify_share": 0.4,
            "draft_start_s": 0.1,
            "draft_cost": 0.2,
            "verify_cost": 0.8,
            "modelled_speedup": 4.0 / (4 * 0.2 + 0.8),
            "decode_speedup": 2.0,
            "speedup": 1.5,
        }
    )


@pytest.mark.parametrize(
    "technique", [FirstTokens(0.25), FirstFrames(2), FirstOfBoth(0.5, 2), LastSlots(20), SparseVILA()]
)
def test_random_twin_has_the_budget_of_its_technique(family, technique):
    clip = clip_for("qwen2_5_vl", seconds=4)
    ours = generate(family, clip, plan=Plan(technique), max_new_tokens=1).report
    twins = [generate(family, clip, plan=Plan(floor.twin(technique, seed)), max_new_tokens=1).report for seed in (1, 2)]
    for report in twins:
        assert report.kv_bytes == ours.kv_bytes
        assert report.visual_tokens["reduced"] == ours.visual_tokens["reduced"]


def test_a_random_twin_reads_as_many_rows_as_are_fetched():
    question, technique = "in frame 2 what color is at top left ?", HybridKV(0.4, theta=1.1, chunk=4)
    family, clip = random_family("qwen2_5_vl"), clip_for("qwen2_5_vl", seconds=6)
    reports = [
        generate(family, clip, question, plan=Plan(each), max_new_tokens=2, ignore_eos=True).report
        for each in (technique, floor.twin(technique, 1))
    ]
    heads = family.num_layers * family.config.num_key_value_heads
    keys = heads * (reports[0].prompt_tokens // 4) * family.head_dim * 4  # of chunks; random rows need none
    assert reports[0].kv_read_bytes - reports[1].kv_read_bytes == keys
    assert (reports[0].kv_far_bytes > 0, reports[1].kv_far_bytes) == (True, 0)


@pytest.mark.parametrize("technique", [LiveVLM(memory=40), InfMLLM(capacity=60), SparseVILA(0.2)], ids=repr)
def test_random_twins_of_what_acts_again_or_holds_rows_apart_run(technique):
    clip = clip_for("qwen2_5_vl", seconds=8)
    reports = [
        generate(random_family("qwen2_5_vl"), clip, plan=Plan(each), max_new_tokens=2).report
        for each in (technique, floor.twin(technique, 1))
    ]
    assert reports[1].visual_tokens["cache_mean"] == pytest.approx(reports[0].visual_tokens["cache_mean"], rel=0.2)


@dataclass(frozen=True)
class TakesNote(FirstTokens):
    """Its cache follows what it has left, which it hears of again after every round."""

    window: ClassVar[int] = 1
    rolling: ClassVar[bool] = True
    follows: ClassVar[bool] = True

    def keep(self, views):
        return [None] * len(views)


def test_what_chooses_nothing_after_a_round_has_a_twin_of_random_tokens(family):
    plans = Plan(TakesNote(0.25)), Plan(floor.twin(TakesNote(0.25), 1))
    ours, drawn = (generate(family, clip_for("qwen2_5_vl"), plan=plan, max_new_tokens=2).report for plan in plans)
    assert ours.visual_tokens == drawn.visual_tokens


def test_a_random_twin_reads_as_many_visual_rows_while_decoding(family):
    found = []

    @dataclass(frozen=True)
    class Spy(floor.RandomCutsAndReads):
        def attend(self, view):
            drawn = super().attend(view)
            if drawn is not None:
                found.append((view.visual[0], self.of.attend(view), drawn))
            return drawn

    clip = clip_for("qwen2_5_vl", seconds=4)
    generate(family, clip, plan=Plan(Spy(DyCoke(layer=1), 1)), max_new_tokens=4, ignore_eos=True)
    assert len(found) > 2
    for visual, ours, drawn in found:
        assert torch.equal(ours[..., ~visual], drawn[..., ~visual])
        assert torch.equal(ours[..., visual].sum(-1), drawn[..., visual].sum(-1))
        assert not torch.equal(ours, drawn)


def test_random_twins_differ_with_the_seed_and_repeat_with_it(family):
    clip = family.one_per_step(clip_for("qwen2_5_vl", seconds=16))
    draws = [floor.twin(FirstFrames(5), seed).select_frames(clip, None).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] == sorted(set(draws[0]))


def test_random_slots_keep_the_text_that_the_technique_kept(family):
    seen = []

    @dataclass(frozen=True)
    class Spy(LastSlots):
        def keep(self, views):
            seen[:] = views
            return super().keep(views)

    twin = floor.twin(Spy(40), 3)
    generate(family, clip_for("qwen2_5_vl"), plan=Plan(twin), max_new_tokens=1)
    for view, ours, drawn in zip(seen, LastSlots(40).keep(seen), twin.keep(seen)):
        text = [set(slots[~view.visual[head, slots]].tolist()) for head, slots in enumerate(ours)]
        assert [set(slots[~view.visual[head, slots]].tolist()) for head, slots in enumerate(drawn)] == text
        assert [slots.tolist() for slots in drawn] != ours.tolist()


@dataclass(frozen=True)
class BusyHeads(LastSlots):
    """Heads whose first query of the window is longer than that of the layer's first head are of kind 1."""

    head_names: ClassVar[tuple[str, ...]] = ("calm", "busy")
    sweep: ClassVar[tuple] = ("count", (20,))

    def head_map(self, views):
        norms = [view.query[:, 0].norm(dim=-1) for view in views]
        return [(norm > norm[0]).int().tolist() for norm in norms]


def test_a_map_of_heads_is_of_the_whole_prompt_of_the_first_clip(family, short, tmp_path):
    technique, seen = BusyHeads(20, window=3), []

    @dataclass(frozen=True)
    class Spy(LastSlots):
        def keep(self, views):
            seen[:] = views
            return [None] * len(views)

    busy = sweep.Sweep("busy", technique, "count", (20,))
    path, data = sweep.run(family, busy, PROTOCOL, tmp_path, command="")
    clip = sample(PROTOCOL.first_seed)
    generate(family, clip, clip.question, plan=Plan(Spy(20, window=3)), max_new_tokens=1)
    assert data["heads"]["grid"] == technique.head_map(seen)
    assert {kind for layer in data["heads"]["grid"] for kind in layer} == {0, 1}
    assert data["heads"]["names"] == ["calm", "busy"]
    assert data["heads"]["what"] == f"{technique!r} after clip 10002"
    assert json.loads(path.read_text()) == data


def answered(kind, expected, text):
    report = generate(random_family("llama"), None, "what ?", max_new_tokens=1).report
    return replace(sample(10_000, "shape"), kind=kind, expected=expected), Output(text, [], report)


def test_captions_count_by_the_sentence_and_stay_out_of_the_totals():
    caption = "frame 1 : a red circle at top left . frame 2 : a blue star at top left ."
    wrong = caption.replace("blue", "white")
    judged = measure.quality(
        [answered("shape", "star", "star"), answered("color", "red", "blue"), answered("caption", caption, wrong)]
    )
    assert (judged["correct"], judged["of"], judged["accuracy"]) == (1, 2, 0.5)
    assert judged["captions"] == {"correct": 1, "of": 2, "accuracy": 0.5}
    assert "caption" not in judged["by_kind"]


def test_spread_is_the_median_with_quartiles():
    assert measure.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "n": 5}


def test_budgets_are_values_of_the_swept_field():
    parsed = sweep.parse("fastv:layer=3", "0.1, 0.5,0.1")
    assert (parsed.field, parsed.values, parsed.technique.layer) == ("keep_ratio", (0.1, 0.5), 3)


def test_technique_without_a_sweep_is_refused(monkeypatch):
    monkeypatch.setattr("elvi.discover.technique", lambda name: FirstFrames)
    with pytest.raises(ElviError, match="names no budget"):
        sweep.parse("first-frames")
