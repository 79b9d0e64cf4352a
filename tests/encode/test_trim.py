from __future__ import annotations

import numpy as np
import pytest
import torch
from support import noise_clip, random_family

from elvi.core.plan import Plan
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.encode.trim import TRIM, at_cells
from elvi.errors import BudgetError, FitError
from elvi.families.clip import frame_scorer
from elvi.families.family import grid_cells

QUESTION = "what color is the star ?"


@torch.inference_mode()
def encoded(kind: str, question: str | None = QUESTION) -> tuple[Tokens, Seen]:
    family = random_family(kind)
    clip = family.steps(noise_clip())
    return family.encode(clip).tokens, Seen(question, torch.empty(0, dtype=torch.long), clip=clip)


@torch.inference_mode()
def products(clip) -> torch.Tensor:
    """[F, patches] from the unmodified model: projected text times projected penultimate features."""
    judge = frame_scorer("tiny-clip")
    pixels = judge.image_processor(images=[*clip.frames], return_tensors="pt")["pixel_values"]
    text = judge.model.get_text_features(**judge.tokenizer([QUESTION], return_tensors="pt")).pooler_output
    vision = judge.model.vision_model(pixel_values=pixels, output_hidden_states=True)
    hidden = judge.model.vision_model.post_layernorm(vision.hidden_states[-2])
    return (judge.model.visual_projection(hidden) @ text[0])[:, 1:]


@pytest.mark.parametrize("options", [{}, {"sign": 1}, {"keep_ratio": 0.25}, {"keep_ratio": 0.0}, {"factor": 0.5}])
def test_frames_are_trimmed_as_the_paper_says(options):
    (tokens, seen), technique = encoded("llava"), TRIM(**options)
    out = technique.reduce(tokens, seen)
    hidden, mass = [], []
    for step, score in enumerate(products(seen.clip)):
        weight = (technique.sign * score).softmax(0).double().numpy()
        low, high = np.percentile(weight, [25, 75])
        count = int((weight > high + technique.factor * (high - low)).sum())
        count = count if technique.keep_ratio is None else int(technique.keep_ratio * 36 + 0.5)
        kept = sorted(sorted(range(36), key=lambda i: (-weight[i], i))[:count])
        rest = [i for i in range(36) if i not in kept]
        part = tokens.hidden[36 * step : 36 * step + 36]
        frame = {i: (part[i], 1) for i in kept} | {rest[-1]: (part[rest].mean(0), len(rest))}
        hidden += [frame[i][0] for i in sorted(frame)]
        mass += [frame[i][1] for i in sorted(frame)]
    torch.testing.assert_close(out.hidden, torch.stack(hidden), rtol=1e-5, atol=1e-5)
    assert out.mass.tolist() == mass
    assert (out.row.diff() > 0).all()


@pytest.mark.parametrize(("sign", "stays"), [(1, True), (-1, False)])
def test_a_patch_like_the_question_stays_or_goes_with_the_sign(sign, stays, monkeypatch):
    planted = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    planted[1, 2, 3] = 50.0
    monkeypatch.setattr(frame_scorer("tiny-clip"), "patch_products", lambda clip, text: planted)
    tokens, seen = encoded("llava")
    out = TRIM(keep_ratio=0.1, sign=sign).reduce(tokens, seen)
    assert (36 + 2 * 6 + 3 in out.row.tolist()) == stays


def test_if_all_stay_there_is_no_mean():
    tokens, seen = encoded("llava")
    assert TRIM(keep_ratio=1.0).reduce(tokens, seen) is tokens


def test_patches_are_averaged_over_the_grid_of_the_tokens_and_the_frames_of_a_step():
    found = torch.arange(2 * 2 * 16.0).view(4, 4, 4)
    expected = [
        found[2 * t : 2 * t + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean()
        for t in range(2)
        for y in range(2)
        for x in range(2)
    ]
    assert at_cells(found, grid_cells(2, 2, 2)).tolist() == expected
    assert at_cells(found[:1], grid_cells(1, 4, 4)).tolist() == found[0].flatten().tolist()


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision"])
def test_any_family_may_be_trimmed(kind):
    tokens, seen = encoded(kind)
    out = TRIM(keep_ratio=0.25).reduce(tokens, seen)
    per_step = len(tokens) // (int(tokens.cell[-1, 0]) + 1)
    assert (out.cell[:, 0].bincount() == per_step // 4 + 1).all()
    assert float(out.mass.sum()) == len(tokens)


def test_without_a_question_it_is_refused():
    tokens, seen = encoded("llava", question=None)
    with pytest.raises(FitError, match="none was asked"):
        TRIM().reduce(tokens, seen)
    with pytest.raises(FitError, match="stream"):
        Plan(TRIM()).check(random_family("llava"), stream=True)


@pytest.mark.parametrize(
    "options", [{"keep_ratio": 1.1}, {"sign": 0}, {"factor": -1.0}, {"positions": "new"}], ids=lambda each: str(each)
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        TRIM(**options)
