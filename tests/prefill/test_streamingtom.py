"""StreamingTOM: what is left of a frame depends on it and the one before; groups come back as their codes say."""

from __future__ import annotations

import pytest
import torch
from streamsupport import layers, watched
from support import noise_clip, random_family
from trained import needles_found

from elvi.bench.floor import RandomTokens
from elvi.core.cluster import density_peaks
from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.rows import held, joined
from elvi.core.tokens import Tokens
from elvi.core.views import Seen, TowerView
from elvi.errors import BudgetError
from elvi.prefill.streamingtom import StreamingTOM, packed

QUESTION = "what color is the star ?"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def half_still(frames: int = 5, length: int = 20) -> torch.Tensor:
    """Frames [T, n, D] whose first tokens hardly change, ever fewer of them, while the others do."""
    hidden, still = noise(frames, length, 16), noise(length, 16, seed=1)
    for frame in range(frames):
        count = length * (frames - frame) // frames
        hidden[frame, :count] = still[:count] + 0.05 * hidden[frame, :count]
    return hidden


def shown(hidden: torch.Tensor, seed: int = 0) -> tuple[Tokens, Seen]:
    """Visual tokens [T, n, D], and a tower that attends to them at random."""
    frames, length, _ = hidden.shape
    cell = torch.cartesian_prod(torch.arange(frames), torch.arange(length), torch.arange(1)).to(hidden.device)
    count, ones = torch.arange(frames * length, device=hidden.device), hidden.new_ones(frames * length)
    tower = TowerView(False, mean={-1: torch.rand(len(count), generator=torch.Generator().manual_seed(seed)).to(ones)})
    return Tokens(hidden.flatten(0, 1), count[None], count, cell, ones, count), Seen(None, count[:0], tower)


def by_hand(hidden: torch.Tensor, score: torch.Tensor, count: int, tau: float) -> dict[int, tuple[float, torch.Tensor]]:
    """The paper's steps token by token: mass and features of what is left, by row."""
    out, length = {}, hidden.shape[1]
    for t, frame in enumerate(hidden):
        alike = [torch.cosine_similarity(frame[i], hidden[t - 1, i], dim=0) > tau and t > 0 for i in range(length)]
        static = [i for i in range(length) if alike[i]]
        clusters = count * len(static) // length
        dynamic = sorted((i for i in range(length) if not alike[i]), key=lambda i: (-float(score[t * length + i]), i))
        out |= {t * length + i: (1.0, frame[i]) for i in dynamic[: count - clusters]}
        unit = frame[static] / frame[static].norm(dim=1, keepdim=True)
        centre, group = density_peaks(unit, clusters, 7)
        for cluster, place in enumerate(centre.tolist()):
            members = [static[i] for i in range(len(static)) if group[i] == cluster]
            out[t * length + static[place]] = float(len(members)), frame[members].mean(0)
    return out


@pytest.mark.parametrize("ratio", [0.01, 0.255, 0.5, 0.95])
def test_what_is_left_is_what_the_paper_says(ratio, device):
    hidden = half_still()
    tokens, seen = shown(hidden.to(device))
    expected = by_hand(hidden, seen.tower.received(-1).cpu(), max(1, round(ratio * 20)), 0.9)
    out = StreamingTOM(keep_ratio=ratio).reduce(tokens, seen)
    assert out.row.tolist() == sorted(expected)
    assert out.mass.tolist() == [expected[row][0] for row in sorted(expected)]
    features = torch.stack([expected[row][1] for row in sorted(expected)])
    torch.testing.assert_close(out.hidden.cpu(), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threshold", [-2.0, 0.3, 0.9, 2.0])
@pytest.mark.parametrize("count", [1, 7, 19, 20])
def test_every_frame_is_left_with_as_many_tokens(threshold, count):
    out = StreamingTOM(keep_ratio=count / 20, threshold=threshold).reduce(*shown(half_still()))
    assert out.cell[:, 0].bincount().tolist() == [count] * 5


def test_what_comes_later_changes_nothing_and_pieces_are_the_whole():
    technique, hidden = StreamingTOM(), half_still()
    tokens, seen = shown(hidden)
    whole = technique.reduce(tokens, seen)
    other, _ = shown(torch.cat([hidden[:3], noise(2, 20, 16, seed=9)]))
    assert torch.equal(technique.reduce(other, shown(hidden)[1]).hidden[:15], whole.hidden[:15])
    pieces, memory = [], {}
    for step in range(5):
        piece = tokens.keep(tokens.cell[:, 0] == step)
        pieces.append(technique.reduce(piece, Seen(None, piece.row[:0], seen.tower, memory=memory)))
    assert torch.equal(torch.cat([piece.hidden for piece in pieces]), whole.hidden)
    assert torch.equal(torch.cat([piece.row for piece in pieces]), whole.row)


def test_a_still_stream_is_clustered_after_its_first_frame_and_a_cut_is_not():
    still = noise(1, 20, 16).repeat(4, 1, 1)
    mass = StreamingTOM().reduce(*shown(still)).mass.view(4, 5)
    assert mass.sum(1).tolist() == [5, 20, 20, 20]
    tokens, seen = shown(noise(4, 20, 16))
    cut = StreamingTOM().reduce(tokens, seen)
    best = seen.tower.received(-1).view(4, 20).topk(5).indices.sort().values + torch.arange(0, 80, 20)[:, None]
    assert cut.row.tolist() == best.flatten().tolist()


def test_frames_are_compared_as_they_were_before_they_were_reduced():
    technique, tokens, memory = StreamingTOM(), shown(half_still())[0], {}
    seen = shown(half_still())[1]
    technique.reduce(tokens, Seen(None, tokens.row[:0], seen.tower, memory=memory))
    assert torch.equal(memory["before"], tokens.hidden[-20:])


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_at_most_half_a_step_off_and_take_their_bits(bits):
    keys, values = noise(2, 9, 32), noise(2, 9, 32, seed=1)
    pair = packed(keys, values, bits)
    for exact, restored in zip((keys, values), pair.unpack()):
        step = (exact.amax(1, keepdim=True) - exact.amin(1, keepdim=True)) / (2**bits - 1)
        assert ((restored - exact).abs() <= step / 2 + 1e-6).all()
        assert (restored - exact).abs().max() > step.min() / 8
    assert pair.nbytes == 2 * (2 * 9 * 32 * bits // 8 + 2 * 2 * 32 * 4)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llava_onevision"])
def test_groups_are_frames_that_left_the_window_with_their_mean_keys(kind):
    technique = StreamingTOM(local=2)
    stream = watched(technique, 6, kind)
    run = stream.pieces.run
    for index, layer in enumerate(layers(stream)):
        steps = [run.layout.step[row[0]].unique().tolist() for _, row in layer.far.blocks]
        assert steps == [[step] for step in range(len(steps))]
        assert run.layout.step[layer.row[0]].unique().tolist() == [-1, len(steps), len(steps) + 1]
        for (pair, row), mean in zip(layer.far.blocks, run.memory[id(technique), index]["means"]):
            keys = run.family.rotate(pair.unpack()[0], run.layout.position[:, row], back=True)
            step = float(pair.keys.step.max())
            assert (keys.mean(1).flatten() - mean).abs().max() <= step  # each half a step off, turned


@torch.inference_mode()
def asked(technique, kind: str = "qwen2_5_vl"):
    stream = watched(technique, 6, kind)
    pieces = stream.pieces.fork()
    return stream, pieces.run, pieces.ask(QUESTION)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_bringing_back_all_groups_reads_all_that_they_restore(kind):
    stream, _, logits = asked(StreamingTOM(num_groups=50, local=2), kind)
    pieces = stream.pieces.fork()
    for layer in pieces.run.store.layers:
        keys, values = (torch.cat(part, 1) for part in zip(*(pair.unpack() for pair, _ in layer.far.blocks)))
        layer.rows, layer.far = joined(held([*keys], [*values], [*layer.far.row]), layer.rows), None
    torch.testing.assert_close(pieces.ask(QUESTION), logits, rtol=1e-4, atol=1e-4)


class Watched(StreamingTOM):
    """Remembers what it chose from."""

    def _chosen(self, view):
        view.memory["view"] = view
        return super()._chosen(view)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
@torch.inference_mode()
def test_the_groups_that_come_back_are_those_whose_mean_key_is_most_like_the_mean_query(kind):
    technique = Watched(num_groups=2, local=2)
    _, run, _ = asked(technique, kind)
    for index, layer in enumerate(run.store.layers):
        memory, row = run.memory[id(technique), index], layer.far.row[0]
        view, heads = memory["view"], len(layer.row)
        queries = run.family.rotate(view.query, view.positions(view.query_row), back=True)
        parts = [queries[h * len(queries) // heads : (h + 1) * len(queries) // heads] for h in range(heads)]
        mean = torch.cat([part.flatten(0, 1).mean(0) for part in parts])
        alike = [float(torch.cosine_similarity(mean, each, dim=0)) for each in memory["means"]]
        best = sorted(sorted(range(len(alike)), key=lambda group: -alike[group])[:2])
        assert run.layout.step[row[memory["loaded"]]].unique().tolist() == best


@torch.inference_mode()
def test_groups_that_do_not_come_back_do_not_matter():
    technique = StreamingTOM(num_groups=2, local=2)
    stream, run, logits = asked(technique)
    assert len(layers(stream)[0].far.blocks) == 4
    for index, layer in enumerate(layers(stream)):
        memory, row = run.memory[id(technique), index], layer.far.row[0]
        back = run.layout.step[row[memory["loaded"]]]
        assert torch.isin(run.layout.step[row], back).sum() == len(back)
        for step, (pair, _) in enumerate(layer.far.blocks):
            if step not in back:
                pair.values.low.fill_(7.0)
    torch.testing.assert_close(stream.pieces.fork().ask(QUESTION), logits)


def test_what_is_read_of_the_second_tier_are_its_codes():
    stream = watched(StreamingTOM(num_groups=1, local=2), 6)
    report = stream.ask(QUESTION, max_new_tokens=2, ignore_eos=True).report
    run = stream.pieces.run
    row = 2 * run.family.head_dim * 4
    heads = run.family.config.num_key_value_heads * run.family.num_layers
    asked_rows = report.prompt_tokens - run.num_rows
    near = layers(stream)[0].length + asked_rows + 1
    group = sum(pair.nbytes for pair, _ in (layer.far.blocks[0] for layer in layers(stream)))
    assert report.kv_read_bytes == pytest.approx(heads * row * near + group, rel=1e-6)
    tokens = layers(stream)[0].far.blocks[0][1].shape[1]
    assert group == heads * run.family.head_dim * 2 * (tokens / 2 + 2 * 4)  # half a byte each; least and step
    assert stream.kv_far_bytes == 4 * group < 4 * tokens * heads * row


def test_a_wide_window_and_all_tokens_are_the_unmodified_model():
    family, clip = random_family("qwen2_5_vl"), noise_clip(4)
    plans = (Plan(), Plan(StreamingTOM(**StreamingTOM.full)))
    plain, full = (generate(family, clip, QUESTION, plan=plan, max_new_tokens=6, ignore_eos=True) for plan in plans)
    assert full.tokens == plain.tokens


@pytest.mark.parametrize("options", [{"keep_ratio": 1.1}, {"bits": 3}, {"local": 0}, {"num_groups": -1}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        StreamingTOM(**options)


def test_groups_of_few_bits_answer_more_than_random_tokens_of_the_whole_clip():
    technique = StreamingTOM()
    chosen, random = (needles_found("tiny-llava", each) for each in (technique, RandomTokens(technique, 0)))
    assert chosen >= random + 3
