from __future__ import annotations

import copy

import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.encode.visionzip import VisionZip, merged, owners
from elvi.errors import BudgetError

QUESTION = "what color is the star ?"


@torch.inference_mode()
def encoded(kind: str) -> tuple[Tokens, Seen]:
    family = random_family(kind)
    encoding = family.encode(family.steps(noise_clip()), VisionZip.tower_layers)
    return encoding.tokens, Seen(QUESTION, torch.empty(0, dtype=torch.long), encoding.tower)


def row_of(hidden: torch.Tensor) -> Tokens:
    count = torch.arange(len(hidden), device=hidden.device)
    return Tokens(hidden, count[None], count, count[:, None].expand(-1, 3), torch.ones_like(hidden[:, 0]), count)


@torch.inference_mode()
def eager_tower(family, pixels: torch.Tensor):
    """Class-token attention [F, n], head-mean keys [F, n, d] and features [F, n, D] from the eager tower."""
    tower = copy.deepcopy(family.model.model.vision_tower)
    tower.set_attn_implementation("eager")
    keys = []
    hook = tower.encoder.layers[-2].self_attn.k_proj.register_forward_hook(lambda module, args, out: keys.append(out))
    out = tower(pixels, output_attentions=True, output_hidden_states=True)
    hook.remove()
    heads = tower.config.num_attention_heads
    key = keys[0].unflatten(-1, (heads, -1)).mean(2)
    return out.attentions[-2][:, :, 0, 1:].sum(1), key[:, 1:], out.hidden_states[-2][:, 1:]


def zipped_by_hand(score, key, hidden, dominant: int, contextual: int) -> list[torch.Tensor]:
    """The paper's steps for one frame, token by token, in raster order."""
    ranked = sorted(range(len(score)), key=lambda i: (-float(score[i]), i))
    best, rest = set(ranked[:dominant]), sorted(ranked[dominant:])
    anchors = rest[:: len(rest) // contextual][:contextual]
    members: dict[int, list[int]] = {anchor: [] for anchor in anchors}
    for i in rest:
        if i not in members:
            similar = [float(torch.cosine_similarity(key[i], key[anchor], dim=0)) for anchor in anchors]
            members[anchors[similar.index(max(similar))]].append(i)
    out = {i: hidden[i] for i in best}
    for anchor, group in members.items():
        out[anchor] = hidden[anchor] + (hidden[group].mean(0) if group else 0)
    return [out[i] for i in sorted(out)]


def test_llava_frames_are_zipped_as_the_paper_says():
    family, (tokens, seen) = random_family("llava"), encoded("llava")
    score, key, hidden = eager_tower(family, family.pixels(family.steps(noise_clip())))
    out = VisionZip(keep_ratio=0.5, contextual_ratio=0.25).reduce(tokens, seen)
    expected = [token for frame in zip(score, key, hidden) for token in zipped_by_hand(*frame, 13, 5)]
    torch.testing.assert_close(out.hidden, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_class_token_attention_equals_the_eager_map():
    family, (_, seen) = random_family("llava"), encoded("llava")
    score = eager_tower(family, family.pixels(family.steps(noise_clip())))[0]
    heads = family.model.config.vision_config.num_attention_heads
    torch.testing.assert_close(seen.tower.cls_attention(-2) * heads, score.flatten(), rtol=1e-5, atol=1e-6)


def test_without_class_token_the_score_is_attention_received_from_the_whole_frame():
    tokens, seen = encoded("qwen2_5_vl")
    received = seen.tower.received(-1)
    per_frame = torch.zeros(3).index_add_(0, tokens.cell[:, 0], received)
    torch.testing.assert_close(per_frame * 4, torch.ones(3))  # a mean over 4 patches a token; windows would give 9
    out = VisionZip(keep_ratio=0.25, contextual_ratio=0.0).reduce(tokens, seen)
    expected = [received[tokens.cell[:, 0] == step].topk(9).indices.sort().values + 36 * step for step in range(3)]
    assert out.row.tolist() == torch.cat(expected).tolist()


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
@torch.inference_mode()
def test_keeping_all_gives_the_same_bits(kind):
    plans = Plan(VisionZip(keep_ratio=1.0)), Plan()
    zipped, plain = (prefill(Run(random_family(kind), plan), noise_clip(), QUESTION)[1] for plan in plans)
    assert torch.equal(zipped, plain)


@pytest.mark.parametrize(("dominant", "contextual"), [(0, 0), (0, 1), (3, 0), (1, 9), (5, 4), (0, 10), (9, 1), (10, 0)])
def test_exactly_as_many_tokens_come_out_as_asked_for(dominant, contextual, device):
    generator = torch.Generator().manual_seed(0)
    score, key = (torch.rand(*shape, generator=generator).to(device) for shape in ((10,), (10, 4)))
    owner = owners(score, key, dominant, contextual)
    out = merged(row_of(torch.rand(10, 6, generator=generator).to(device)), owner)
    assert len(out) == dominant + contextual
    assert float(out.mass.sum()) == (10 if contextual else dominant)
    assert (out.row.diff() > 0).all()


def test_every_dominant_token_stays_what_it_was_and_every_anchor_without_members_too():
    hidden, score = torch.randn(8, 4), torch.arange(8.0)
    out = merged(row_of(hidden), owners(score, hidden, 5, 3))
    assert torch.equal(out.hidden, hidden)


def test_order_of_the_members_does_not_matter():
    key = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    score = torch.tensor([9.0] + [0.0] * 11)
    order = torch.tensor([0, 1, 11, 10, 9, 8, 6, 7, 5, 4, 3, 2])  # anchors 1 and 6 change with nobody
    order[[6, 7]] = torch.tensor([6, 7])
    plain, mixed = (merged(row_of(k), owners(score, k, 1, 2)) for k in (key, key[order]))
    torch.testing.assert_close(mixed.hidden, plain.hidden)
    assert plain.row.tolist() == [0, 1, 6]


def test_member_equal_to_its_anchor_doubles_it():
    out = merged(row_of(torch.ones(4, 3)), owners(torch.zeros(4), torch.ones(4, 3), 0, 1))
    assert torch.equal(out.hidden, torch.full((1, 3), 2.0))
    assert out.mass.tolist() == [4.0]


@torch.inference_mode()
def test_zipping_twice_looks_up_attention_by_the_place_in_the_tower():
    tokens, seen = encoded("llava")
    first = VisionZip(keep_ratio=0.5).reduce(tokens, seen)
    again = VisionZip(keep_ratio=0.5, contextual_ratio=0.0).reduce(first, seen)
    score = seen.tower.cls_attention(-2)[first.row]
    frame = first.cell[:, 0] == 0
    assert again.row[:9].tolist() == sorted(first.row[frame][score[frame].topk(9).indices].tolist())


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"contextual_ratio": -0.5}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        VisionZip(**options)


def test_zipped_tokens_answer_more_than_random_ones_on_a_trained_model_with_class_token():
    chosen, random = chosen_and_random("tiny-llava", VisionZip(keep_ratio=0.2))
    assert chosen >= random + 3
