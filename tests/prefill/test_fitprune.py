from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support import hiding, noise_clip, random_family
from trained import trained

import elvi
from elvi.bench.heads import save
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import budget
from elvi.errors import BudgetError, FitError
from elvi.prefill.fitprune import BUDGETS, FitPrune, received

QUESTION = "what color is the star ?"
KINDS = ("qwen2_5_vl", "llava_onevision", "llava")
NAMES = {"qwen2_5_vl": "random-qwen", "llava_onevision": "random-onevision", "llava": "random-llava"}


@pytest.fixture
def table(tmp_path) -> str:
    """A recipe for every small model: budget b leaves b after the first layer and b / 2 after the second."""
    path = tmp_path / "recipes.json"
    for name in NAMES.values():
        save(torch.tensor([[share, share / 2] for share in BUDGETS]), name, path)
    return str(path)


@torch.inference_mode()
def prefilled(kind: str, plan: Plan) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), plan)
    _, logits = prefill(run, noise_clip(), QUESTION)
    return run, logits


@pytest.mark.parametrize("keep_ratio", [0.0, 0.05, 0.4, 0.45, 0.95])
def test_the_layer_that_decides_still_holds_all_and_the_next_one_the_rest(table, keep_ratio):
    run, _ = prefilled("qwen2_5_vl", Plan(FitPrune(keep_ratio=keep_ratio, table=table)))
    second = keep_ratio / 2 if keep_ratio <= 0.9 else 0.725  # half way from 0.45 to 1
    assert run.meter.layer_visual_tokens == [108, budget(keep_ratio, 108), budget(second, 108)]
    assert run.store.lengths == run.meter.layer_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_dropping_equals_hiding_the_same_keys_from_the_next_layer_on(table, kind):
    run, logits = prefilled(kind, Plan(FitPrune(table=table)))
    torch.testing.assert_close(logits, hiding(run), rtol=1e-4, atol=1e-5)


def test_keeping_all_gives_the_same_bits(table):
    full = Plan(FitPrune(keep_ratio=1.0, table=table))
    assert torch.equal(prefilled("qwen2_5_vl", full)[1], prefilled("qwen2_5_vl", Plan())[1])


@pytest.mark.parametrize("kind", KINDS)
def test_survivors_are_looked_at_most_by_picture_and_text(table, kind):
    weights = {}

    class Watch:
        """Notes the attention of every layer of the unmodified model."""

        prefill, decode, lossless = True, False, True
        needs = breaks = frozenset()

        def attend(self, view):
            weights[view.layer] = view.attention().amax(0)

    plain, _ = prefilled(kind, Plan(Watch()))
    run, _ = prefilled(kind, Plan(FitPrune(table=table)))
    visual = plain.layout.visual.nonzero()[:, 0]
    itself = weights[0][visual][:, visual].sum(0) / len(visual)
    cross = weights[0][plain.question_rows][:, visual].sum(0)
    order = (itself * cross).sort(descending=True, stable=True).indices
    row = run.store.layers[1].row[0]
    expected = sorted(visual[order[: budget(0.4, len(visual))]].tolist())
    assert row[run.layout.visual[row]].tolist() == expected


def test_chunks_of_rows_add_up(monkeypatch):
    sums = []

    class Spy:
        """Sums attention whole and in small chunks."""

        needs = breaks = frozenset()
        lossless, at = True, FitPrune.at

        def reduce(self, tokens, seen):
            for chunk in (1000, 7):
                monkeypatch.setattr("elvi.prefill.fitprune.CHUNK", chunk)
                sums.append(received(tokens, seen))
            return tokens

    prefilled("qwen2_5_vl", Plan(Spy()))
    for (whole, text), (parts, text_parts) in zip(sums[::2], sums[1::2], strict=True):
        torch.testing.assert_close(whole, parts)
        torch.testing.assert_close(text, text_parts)


@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_shipped_recipes_keep_fewer_tokens_layer_by_layer_and_budget_by_budget(name):
    shares = [FitPrune(keep_ratio=keep_ratio).recipe(trained(name)) for keep_ratio in (0.0, 0.15, *BUDGETS, 1.0)]
    assert shares[0] == [0.0] * len(shares[0])
    assert shares[-1] == [1.0] * len(shares[0])
    assert all(later <= earlier for row in shares for earlier, later in pairwise(row))


def test_model_without_recipe_is_refused_in_a_sentence():
    with pytest.raises(FitError, match="elvi search fitprune --model random-qwen"):
        Plan(FitPrune()).check(random_family("qwen2_5_vl"))


def test_ratio_out_of_range_is_refused():
    with pytest.raises(BudgetError, match="keep_ratio"):
        FitPrune(keep_ratio=1.2)


@torch.inference_mode()
def test_late_frames_of_a_clip_go_first_as_few_rows_look_back_at_them():
    clip = elvi.sample(10_000, kind="needle", seconds=8)
    run = Run(trained("tiny-qwen"), Plan(FitPrune()))
    prefill(run, clip, clip.question)
    row = run.store.layers[1].row[0]
    step = run.layout.cell[row[run.layout.visual[row]], 0]
    assert int((step < 4).sum()) > 5 * int((step >= 4).sum())


@pytest.mark.parametrize("keep_ratio", [0.25, 0.4, 0.8])
@torch.inference_mode()
def test_shipped_recipes_meet_their_budget_on_clips_they_were_not_fitted_to(keep_ratio):
    family, clip = trained("tiny-qwen"), elvi.sample(10_000, kind="needle", seconds=8)
    run = Run(family, Plan(FitPrune(keep_ratio=keep_ratio)))
    prefill(run, clip, clip.question)
    counts = run.meter.layer_visual_tokens
    spent = sum(map(family.layer_flops, counts)) / (len(counts) * family.layer_flops(counts[0]))
    assert keep_ratio - 0.06 < spent < keep_ratio + 0.01
