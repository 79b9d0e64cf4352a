from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

import elvi
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.errors import BudgetError, FitError
from elvi.families.clip import frame_scorer
from elvi.prefill.cdpruner import CDPruner, choose, likeliest, likeliest_reference, spanned

QUESTION = "what color is the star ?"


def features(total: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(total, width, generator=torch.Generator().manual_seed(seed))


def kernel_of(hidden: torch.Tensor, relevant: torch.Tensor | None = None) -> torch.Tensor:
    unit = torch.nn.functional.normalize(hidden.double(), dim=-1)
    relevant = torch.ones(len(hidden)) if relevant is None else relevant
    return unit @ unit.mT * relevant.double()[:, None] * relevant.double()


def by_determinants(kernel: torch.Tensor, count: int) -> list[int]:
    """The definition: always the token that makes the determinant of the chosen block greatest."""
    chosen: list[int] = []
    while len(chosen) < count:
        free = [j for j in range(len(kernel)) if j not in chosen]
        chosen.append(max(free, key=lambda j: float(torch.det(kernel[[*chosen, j]][:, [*chosen, j]]))))
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 4, 11])
def test_kernel_and_torch_choose_what_the_determinants_say(seed, count, device):
    kernel = kernel_of(features(12, 16, seed), 0.2 + features(12, 1, seed + 9)[:, 0].abs())
    expected = by_determinants(kernel, count)
    assert likeliest(kernel.numpy(), count, 1e-6).tolist() == expected
    assert likeliest_reference(kernel.to(device), count, 1e-6).tolist() == expected


def test_kernel_and_torch_agree_on_many_tokens_and_on_ties():
    tied = features(40, 64)[torch.randint(40, (300,), generator=torch.Generator().manual_seed(1))]
    for hidden in (features(300, 64), tied, features(300, 64).round(), torch.ones(300, 4)):
        kernel = kernel_of(hidden)
        chosen = likeliest(kernel.numpy(), 90, 1e-6).tolist()
        assert chosen == likeliest_reference(kernel, 90, 1e-6).tolist()
        assert len(set(chosen)) == len(chosen)


def test_gains_multiply_to_the_determinant_and_never_grow():
    kernel = kernel_of(features(40, 64), 0.5 + features(40, 1)[:, 0].abs())
    order = likeliest(kernel.numpy(), 20, 1e-6)
    logs = [float(torch.logdet(kernel[order[:step]][:, order[:step]])) for step in range(1, 21)]
    gains = np.diff([0.0, *logs])
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(gains))


def test_beyond_the_rank_the_most_relevant_tokens_follow():
    hidden = torch.eye(3).repeat(4, 1)
    relevant = torch.tensor([1.0, 1, 1, 0.5, 0.6, 0.7, 0.9, 0.8, 0.95, 0.1, 0.2, 0.3])
    assert choose(hidden, relevant, 6).tolist() == [0, 1, 2, 8, 6, 7]


def test_equal_relevance_leaves_diversity_alone():
    assert spanned(torch.full((5,), 0.3)).tolist() == [1.0] * 5
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    assert choose(hidden, torch.ones(3), 2).tolist() == [0, 2]


def test_scaling_the_relevance_changes_nothing():
    hidden, relevant = features(50), 0.2 + features(50, 1)[:, 0].abs()
    assert torch.equal(choose(hidden, relevant * 8, 14), choose(hidden, relevant, 14))


def test_relevant_token_is_taken_before_an_equally_distinct_one():
    hidden = torch.eye(4)
    assert choose(hidden, torch.tensor([0.1, 0.9, 0.3, 0.2]), 2).tolist() == [1, 2]


@torch.inference_mode()
def prefilled(plan: Plan, kind: str = "qwen2_5_vl") -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), plan)
    _, logits = prefill(run, noise_clip(), QUESTION)
    return run, logits


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_relevance_is_that_of_the_patch_under_each_token_averaged_over_the_step(kind):
    family, noted = random_family(kind), []

    class Spy(CDPruner):
        def relevance(self, visual, question, seen):
            noted.append((visual, super().relevance(visual, question, seen)))
            return noted[-1][1]

    prefilled(Plan(Spy()), kind)
    ((visual, score),) = noted
    clip = family.steps(noise_clip())
    patches = frame_scorer("tiny-clip").patch_scores(clip, QUESTION)
    frames = len(clip) // (int(visual.cell[:, 0].max()) + 1)
    for place in (0, 17, len(visual) - 1):
        t, y, x = visual.cell[place].tolist()
        shown = patches[t * frames : (t + 1) * frames, y, x].mean()  # both grids are 6 x 6
        assert float(score[place]) == pytest.approx(-float(shown), abs=1e-6)


@torch.inference_mode()
def test_patches_are_projected_as_the_class_token_is():
    scorer, clip = frame_scorer("tiny-clip"), noise_clip(2)
    pixels = scorer.image_processor(images=[*clip.frames], return_tensors="pt")["pixel_values"]
    hidden = scorer.model.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    ids = scorer.tokenizer([QUESTION], return_tensors="pt")["input_ids"]
    spoken = scorer.model.get_text_features(input_ids=ids).pooler_output[0]
    patch = scorer.model.visual_projection(scorer.model.vision_model.post_layernorm(hidden[1, 1 + 6 * 2 + 3]))
    expected = torch.cosine_similarity(patch, spoken, dim=0)
    torch.testing.assert_close(scorer.patch_scores(clip, QUESTION)[1, 2, 3], expected)


def test_the_models_own_embeddings_find_the_token_that_looks_like_the_question():
    seen = []

    class Spy(CDPruner):
        def reduce(self, tokens, view):
            tokens.hidden[30] = tokens.hidden[view.question_index].mean(0)
            seen.append(tokens.row[30])
            return super().reduce(tokens, view)

    run, _ = prefilled(Plan(Spy(keep_ratio=0.01, scorer="model")))
    assert run.layout.visual[30]
    assert int(seen[0]) in run.store.layers[0].row[0].tolist()


def test_keeping_all_gives_the_same_bits():
    assert torch.equal(prefilled(Plan(CDPruner(keep_ratio=1.0)))[1], prefilled(Plan())[1])


@pytest.mark.parametrize("keep_ratio", [0.0, 0.01, 0.5])
def test_exactly_the_budget_stays(keep_ratio):
    run, _ = prefilled(Plan(CDPruner(keep_ratio=keep_ratio)))
    assert run.meter.layer_visual_tokens == [int(108 * keep_ratio + 0.5)] * 3


@pytest.mark.parametrize("options", [{"keep_ratio": 1.2}, {"positions": "other"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        CDPruner(**options)


def test_scorer_that_is_no_clip_model_is_refused():
    with pytest.raises(FitError, match="does not score frames"):
        prefilled(Plan(CDPruner(scorer=str(elvi.tiny.__path__[0]) + "/weights/tiny-qwen")))


@pytest.mark.parametrize("scorer", ["tiny-clip", "model"])
def test_kept_tokens_answer_more_than_random_ones_on_a_trained_model(scorer):
    chosen, random = chosen_and_random("tiny-llava", CDPruner(scorer=scorer))
    assert chosen >= random + 3
