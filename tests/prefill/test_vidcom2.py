from __future__ import annotations

import math

import pytest
import torch
from support import hiding, noise_clip, random_family
from trained import chosen_and_random
from videosupport import noise, shown

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import Seen
from elvi.errors import BudgetError
from elvi.prefill.vidcom2 import VidCom2, counts, steady

QUESTION = "what color is the star ?"


def reduced(hidden: torch.Tensor, **fields) -> Tokens:
    return VidCom2(**fields).reduce(shown(hidden), Seen(None, torch.empty(0, dtype=torch.long)))


def left(out: Tokens, frames: int) -> list[int]:
    return torch.bincount(out.cell[out.visual, 0], minlength=frames).tolist()


def by_hand(hidden: torch.Tensor, ratio: float, temperature: float) -> list[int]:
    """The paper's steps token by token, in float64: the rows that stay."""
    frames, length, width = hidden.shape
    tokens = hidden.double().view(-1, width)
    variance = [float(((tokens[:, c] - tokens[:, c].mean()) ** 2).mean()) for c in range(width)]
    channels = sorted(sorted(range(width), key=lambda c: variance[c])[: width // 2])
    unit = [token[channels] / token[channels].norm() for token in tokens]

    def gauss(one, other):
        return sum(math.exp(-float(((one - other) ** 2).sum()) / (2 * 2.0**k)) for k in range(-3, 2))

    video = [gauss(each, sum(unit) / len(unit)) for each in unit]
    means = [sum(unit[t * length : (t + 1) * length]) / length for t in range(frames)]
    score = [video[i] + gauss(unit[i], means[i // length]) for i in range(len(unit))]
    odd = [-sum(video[t * length : (t + 1) * length]) / length for t in range(frames)]
    shares = [math.exp((each - max(odd)) / temperature) for each in odd]
    rows = []
    for t in range(frames):
        scale = min(1.0, ratio * (1 + shares[t] / sum(shares) - 1 / frames))
        place = range(t * length, (t + 1) * length)
        rows += sorted(sorted(place, key=lambda i: score[i])[: max(1, math.floor(scale * length + 0.5))])
    return [0, *(1 + row for row in rows), frames * length + 1]


@pytest.mark.parametrize(("ratio", "temperature"), [(0.25, 0.01), (0.5, 0.05), (0.1, 1.0), (0.9, 0.01)])
def test_what_stays_is_what_the_paper_says_and_stays_as_it_was(ratio, temperature, device):
    hidden = noise(5, 12, 16) + 2 * noise(5, 1, 16, seed=1)
    out = reduced(hidden.to(device), keep_ratio=ratio, temperature=temperature)
    assert out.row.tolist() == by_hand(hidden, ratio, temperature)
    assert torch.equal(out.hidden.cpu(), shown(hidden).hidden[out.row.cpu()])


def test_an_outlier_frame_takes_what_the_others_lose():
    hidden = (2 + noise(1, 40, 16)).repeat(5, 1, 1)
    hidden[2] = -hidden[2]
    out = reduced(hidden, keep_ratio=0.5)
    assert left(out, 5) == [16, 16, 36, 16, 16]  # 0.5 (1 - 1/5) 40 and 0.5 (2 - 1/5) 40
    assert len(out) - 2 == 0.5 * 5 * 40


def test_equal_frames_keep_equally_many_and_equal_tokens_the_earliest():
    out = reduced(noise(1, 12, 16).repeat(4, 1, 1), keep_ratio=0.25)
    assert left(out, 4) == [3, 3, 3, 3]
    assert reduced(torch.ones(2, 8, 4), keep_ratio=0.25).row.tolist() == [0, 1, 2, 9, 10, 17]


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_frames_share_the_budget_and_none_is_left_without_a_token(frames):
    assert sum(counts(noise(frames), 0.25, 0.01, 196)) == pytest.approx(0.25 * 196 * frames, abs=frames / 2)
    assert min(counts(noise(frames), 0.0, 0.01, 196)) == 1
    assert counts(torch.tensor([0.0, 1.0]), 0.9, 0.01, 10) == [10, 5]  # cut off at all of a frame


def test_full_budget_keeps_all_where_the_formula_would_not():
    assert counts(torch.tensor([0.0, 1.0]), 1.0, 0.01, 10) == [10, 5]
    hidden = noise(3, 6, 8)
    assert len(reduced(hidden, keep_ratio=1.0)) == 20


def test_channels_that_vary_most_are_not_looked_at_and_one_always_is():
    hidden = noise(3, 6, 8)
    hidden[..., 5] *= 100
    assert torch.equal(steady(hidden[..., [5, 2]], 0.5)[..., 0], hidden[..., 2])
    loud = hidden.clone()
    loud[..., 5] = loud[..., 5].flip(0)
    assert torch.equal(reduced(hidden).row, reduced(loud).row)
    assert steady(hidden[..., :1], 0.5).shape == (3, 6, 1)


def test_lengths_of_tokens_matter_only_through_the_choice_of_channels():
    hidden, scale = noise(4, 10, 8), 1 + 9 * torch.rand(4, 10, 1, generator=torch.Generator().manual_seed(2))
    assert torch.equal(reduced(hidden, channel_ratio=1.0).row, reduced(hidden * scale, channel_ratio=1.0).row)


@torch.inference_mode()
def prefilled(kind: str, *techniques) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), Plan(*techniques))
    return run, prefill(run, noise_clip(), QUESTION)[1]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_dropping_equals_hiding_and_moves_no_position(kind):
    run, logits = prefilled(kind, VidCom2())
    plain, _ = prefilled(kind)
    torch.testing.assert_close(logits, hiding(run), atol=1e-4, rtol=1e-4)
    assert len(run.store.layers[0].row[0]) < len(plain.store.layers[0].row[0])
    assert torch.equal(run.layout.position, plain.layout.position)
    assert run.next_position == plain.next_position


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_onevision", "llava"])
def test_keeping_all_gives_the_same_bits(kind):
    assert torch.equal(prefilled(kind, VidCom2(keep_ratio=1.0))[1], prefilled(kind)[1])


@pytest.mark.parametrize(
    "options", [{"keep_ratio": 1.1}, {"channel_ratio": -1}, {"temperature": 0.0}, {"positions": ""}]
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        VidCom2(**options)


@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_odd_tokens_answer_more_than_random_ones_on_trained_models(name):
    chosen, random = chosen_and_random(name, VidCom2(keep_ratio=0.25))
    assert chosen >= random + 3
