from __future__ import annotations

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.views import Seen
from elvi.encode.tome import ToMe
from elvi.errors import BudgetError
from elvi.media import Clip

QUESTION = "what color is the star ?"


@torch.inference_mode()
def encoded(technique, clip: Clip | None = None):
    family = random_family("llava")
    return family.encode_reduced(family.steps(clip or noise_clip()), [technique]).tokens


def merged_once(hidden, keys, size, count: int) -> tuple[list[torch.Tensor], list[float], list[int]]:
    """One frame's step of the paper with lists: hidden [n][D], keys [n, d] and sizes [n]; what is left, in order."""
    proposals = []
    for a in range(0, len(hidden), 2):
        likeness, b = min(
            (-float(torch.cosine_similarity(keys[a], keys[b], dim=0)), b) for b in range(1, len(hidden), 2)
        )
        proposals.append((likeness, a, b))
    total = [s * h for s, h in zip(size, hidden)]
    size, gone = list(size), set()
    for _, a, b in sorted(proposals)[: min(count, len(hidden) // 2)]:
        total[b], size[b] = total[b] + total[a], size[b] + size[a]
        gone.add(a)
    left = [i for i in range(len(hidden)) if i not in gone]
    return [total[i] / size[i] for i in left], [size[i] for i in left], left


@torch.inference_mode()
def test_the_tower_merges_block_by_block_as_the_paper_says():
    """A second tower in plain steps: one frame at a time, attention written out with the logarithm of sizes."""
    family = random_family("llava")
    clip = family.steps(noise_clip())
    vision, expected = family.model.model.vision_tower, []
    for pixels in family.pixels(clip):
        hidden = vision.pre_layrnorm(vision.embeddings(pixels[None]))[0]
        size = [1.0] * (len(hidden) - 1)
        for block, gone in zip(
            vision.encoder.layers[:-1], (5, 6, 5, 6)
        ):  # 22 of 36, over the four blocks that are read
            attention, x = block.self_attn, block.layer_norm1(hidden)
            query, key, value = (
                each(x).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
                for each in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            bias = torch.tensor([1.0, *size]).log()
            mixed = (query @ key.mT * attention.scale + bias).softmax(-1) @ value
            hidden = hidden + attention.out_proj(mixed.transpose(0, 1).flatten(1))
            left, size, _ = merged_once(list(hidden[1:]), key.mean(0)[1:], size, gone)
            hidden = torch.stack([hidden[0], *left])
            hidden = hidden + block.mlp(block.layer_norm2(hidden))
        expected.append(hidden[1:])
    out = encoded(ToMe(keep_ratio=14 / 36))
    torch.testing.assert_close(out.hidden, torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("ratio", "left"), [(1.0, 36), (0.9, 32), (0.5, 18), (0.204, 8), (0.0, 5)])
def test_as_many_tokens_are_left_of_every_frame_as_halving_allows_and_mass_stays(ratio, left):
    out = encoded(ToMe(keep_ratio=ratio))
    assert out.cell[:, 0].bincount().tolist() == [left] * 3
    for step in range(3):
        assert float(out.mass[out.cell[:, 0] == step].sum()) == 36
    assert (out.row.diff() > 0).all()


@torch.inference_mode()
def test_behind_a_bound_tower_features_are_merged_until_few_enough_are_left():
    family = random_family("qwen2_5_vl")
    encoding = family.encode(family.steps(noise_clip()))
    tokens, seen = encoding.tokens, Seen(QUESTION, torch.empty(0, dtype=torch.long), encoding.tower)
    out = ToMe(keep_ratio=30 / 36).reduce(tokens, seen)
    expected = [merged_once(list(part), part, [1.0] * 36, 6) for part in tokens.hidden.split(36)]
    torch.testing.assert_close(out.hidden, torch.stack([each for left, _, _ in expected for each in left]))
    assert out.row.tolist() == [36 * step + i for step, (_, _, left) in enumerate(expected) for i in left]
    few = ToMe(keep_ratio=0.1).reduce(tokens, seen)
    assert few.cell[:, 0].bincount().tolist() == [4] * 3
    torch.testing.assert_close(few.mass @ few.hidden, tokens.hidden.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "llava_onevision"])
@torch.inference_mode()
def test_keeping_all_gives_the_same_bits(kind):
    plans = Plan(ToMe(keep_ratio=1.0)), Plan()
    merged, plain = (prefill(Run(random_family(kind), plan), noise_clip(), QUESTION)[1] for plan in plans)
    assert torch.equal(merged, plain)


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"positions": "new"}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        ToMe(**options)


@pytest.mark.parametrize("name", ["tiny-llava", pytest.param("tiny-qwen", marks=pytest.mark.slow)])
def test_merged_tokens_answer_more_than_random_ones_on_a_trained_model(name):
    chosen, random = chosen_and_random(name, ToMe())
    assert chosen >= random + 3
