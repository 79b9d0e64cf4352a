"""MM-ShiftKV against the model's own modules, one proxy after the other, and plain loops over votes."""

from dataclasses import replace

import pytest
import torch
from kvsupport import Masked, held, prefilled, stepwise
from support import clip_for, random_family

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.rows import Dense
from elvi.core.store import LayerStore
from elvi.decode.mm_shiftkv import MMShiftKV, voted
from elvi.errors import BudgetError, FitError

SMALL = {"num_proxies": 12, "groups": 3}


def eager(run, kind):
    """Of every layer: what enters its attention [N, D], keys [H, N, d] and weights [Hq, N, N] of the eager kernel."""
    family, entered = run.family, []
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: entered.append(kwargs["hidden_states"][0]), with_kwargs=True
        )
        for layer in family.text.layers
    ]
    family.model.set_attn_implementation({"text_config": "eager"} if kind != "llama" else "eager")
    try:
        clip = clip_for(kind)
        inputs = family.inputs(family.steps(clip) if clip else None, run.question)
        out = family.model(**inputs, output_attentions=True, use_cache=True)
    finally:
        family.model.set_attn_implementation({"text_config": "elvi"} if kind != "llama" else "elvi")
        for hook in hooks:
            hook.remove()
    keys = [layer.keys[0] for layer in out.past_key_values.layers]
    return [*zip(entered, keys, (weights[0] for weights in out.attentions))]


def asked(run, layer, hidden, ahead):
    """The query [Hq, d] of one input [D] that stands `ahead` places after the prompt, on all axes."""
    text, family = run.family.text, run.family
    position = run.layout.position[:, -1] + ahead
    position = position.view(-1, 1, 1) if len(position) > 1 else position.view(1, 1)
    cos, sin = (part[0, 0] for part in text.rotary_emb(hidden[None, None], position))
    query = text.layers[layer].self_attn.q_proj(hidden).view(-1, family.head_dim)
    half = family.head_dim // 2
    return query * cos + torch.cat([-query[:, half:], query[:, :half]], dim=1) * sin


def by_loops(run, layer, technique, hidden, keys, weights):
    """Kept rows of every head."""
    heads, total = keys.shape[:2]
    last = weights[:, -1].view(heads, -1, total).mean(1)
    size, stride = technique.num_proxies // technique.groups, technique.stride or technique.groups
    x = hidden[-512:] if technique.source == "last512" else hidden
    mean, spread = (x.mean(0), x.var(0).sqrt()) if technique.sigma == "per_channel" else (x.mean(), x.var().sqrt())
    noise = torch.randn(
        technique.num_proxies, x.shape[1], generator=torch.Generator().manual_seed(technique.seed * 1000 + layer)
    )
    groups = [
        [(mean + technique.gamma * spread * noise[u * size + j], stride * (j + 1)) for j in range(size)]
        for u in range(technique.groups)
    ]
    if layer < technique.repeat_layers:
        groups = [[(hidden[-1], j + 1) for j in range(16)]]
    score = last.double().clone()
    for group in groups:
        paid = last.clone()
        for proxy, ahead in group:
            query = asked(run, layer, proxy, ahead).view(heads, -1, keys.shape[2])
            paid += (query @ keys.mT * run.family.scaling).softmax(-1).mean(1)
        for head in range(heads):
            for slot in voters(paid[head, :-1].tolist(), technique.mass, technique.inclusive):
                score[head, slot] += 1
    count = max(1, int(technique.keep_ratio * total + 0.5))
    best = [sorted(range(total - 1), key=lambda j: (-row[j], j))[: count - 1] for row in score.tolist()]
    return [[*sorted(slots), total - 1] for slots in best]


def voters(paid, mass, inclusive):
    order, held, chosen = sorted(range(len(paid)), key=lambda j: (-paid[j], j)), 0.0, []
    for slot in order:
        if inclusive and held >= mass * sum(paid):
            break
        held += paid[slot]
        if not inclusive and held > mass * sum(paid):
            break
        chosen.append(slot)
    return chosen


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("qwen2_5_vl", {"gamma": 3.0}),
        ("qwen2_5_vl", {"sigma": "per_channel", "stride": 1, "inclusive": True, "mass": 0.8}),
        ("llava", {"seed": 3}),
        ("llava_onevision", {"source": "last512", "mass": 0.5}),
        ("llama", {"repeat_layers": 2, "gamma": 1.0}),
    ],
)
@torch.inference_mode()
def test_kept_rows_are_those_of_the_formulas_with_the_models_own_modules(kind, fields):
    technique = MMShiftKV(keep_ratio=0.3, **SMALL, **fields)
    run = prefilled(technique, kind=kind)
    for layer, found in enumerate(eager(run, kind)):
        assert run.store.layers[layer].row.tolist() == by_loops(run, layer, technique, *found)


@torch.inference_mode()
def test_decoding_equals_the_full_cache_with_the_dropped_rows_masked():
    run = prefilled(MMShiftKV(keep_ratio=0.3, **SMALL))
    full = prefilled(Masked(tuple(held(run))))
    assert run.next_position == full.next_position
    torch.testing.assert_close(stepwise(run), stepwise(full), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_full_budget_gives_bitwise_the_logits_of_the_full_cache():
    assert torch.equal(stepwise(prefilled(MMShiftKV(keep_ratio=1.0))), stepwise(prefilled()))


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.25, 0.9])
@torch.inference_mode()
def test_every_head_keeps_its_budget_and_the_last_row(ratio):
    run = prefilled(MMShiftKV(keep_ratio=ratio, **SMALL))
    count = max(1, int(ratio * len(run.layout) + 0.5))
    assert run.store.nbytes == count * run.family.num_layers * 2 * 32 * 2 * 4
    for row in (row for layer in held(run) for row in layer):
        assert (row.diff() > 0).all()
        assert row[-1] == len(run.layout) - 1


class Watch:
    """Keeps everything and remembers the views."""

    needs = breaks = frozenset()
    lossless, rolling, window, inputs = True, False, 1, True

    def keep(self, views):
        self.views = [replace(view) for view in views]
        return [None] * len(views)


@pytest.fixture(scope="module")
def views():
    watch = Watch()
    with torch.inference_mode():
        prefilled(watch)
    return watch.views


@torch.inference_mode()
def test_a_seed_gives_the_same_rows_and_another_seed_others(views):
    first, again, other = (MMShiftKV(seed=seed).score(views[1]) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@torch.inference_mode()
def test_seeds_agree_the_more_the_more_proxies_are_drawn(views):
    def apart(groups):
        shares = [
            (MMShiftKV(num_proxies=8 * groups, groups=groups, stride=1, seed=seed).score(views[1])) / groups
            for seed in range(4)
        ]
        return float(torch.stack(shares).std(0).mean())

    assert apart(64) < 0.5 * apart(4)  # a sixteenth of the variance, were groups independent


@torch.inference_mode()
def test_without_spread_all_groups_vote_alike(views):
    score = MMShiftKV(gamma=0.0, groups=8, num_proxies=32).score(views[0])
    votes = score.floor()
    assert set(votes.unique().tolist()) == {0.0, 8.0}


@torch.inference_mode()
def test_permuted_keys_get_permuted_scores(views):
    view, technique = views[2], MMShiftKV(**SMALL)
    order = torch.randperm(view.keys.shape[1] - 1, generator=torch.Generator().manual_seed(0))
    index = torch.cat([order, torch.tensor([view.keys.shape[1] - 1])])
    store = LayerStore()
    store.rows = Dense(view.keys[:, index], view.values[:, index], view.row[:, index])
    expected = technique.score(view)[:, order]
    torch.testing.assert_close(technique.score(replace(view, store=store)), expected)


@torch.inference_mode()
def test_proxies_taken_in_chunks_score_alike(views, monkeypatch):
    whole = MMShiftKV(groups=1, stride=1).score(views[0])
    monkeypatch.setattr("elvi.decode.mm_shiftkv.CHUNK", 7)
    torch.testing.assert_close(MMShiftKV(groups=1, stride=1).score(views[0]), whole)


@torch.inference_mode()
def test_proxies_spread_gamma_times_as_widely_as_the_inputs(views):
    view, technique = views[1], MMShiftKV(gamma=4.0, num_proxies=2048)
    drawn = technique._drawn(view.inputs, 1)
    assert float(drawn.std()) == pytest.approx(4 * float(view.inputs.std()), rel=0.01)
    drawn = replace(technique, sigma="per_channel")._drawn(view.inputs, 1)
    torch.testing.assert_close(drawn.std(0), 4 * view.inputs.std(0), rtol=0.1, atol=0.0)
    torch.testing.assert_close(drawn.mean(0), view.inputs.mean(0), rtol=0.0, atol=0.3 * float(drawn.std()))


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("mass", [0.3, 0.95, 1.0])
def test_votes_are_those_of_loops(mass, inclusive, device):
    generator = torch.Generator().manual_seed(0)
    attention = torch.randint(1, 9, (5, 40), generator=generator).float().to(device) / 64  # many ties, exact sums
    expected = [voters(row, mass, inclusive) for row in attention.tolist()]
    assert [row.nonzero()[:, 0].tolist() for row in voted(attention, mass, inclusive)] == [*map(sorted, expected)]


def test_a_key_that_alone_exceeds_the_mass_is_voted_for_only_inclusively(device):
    attention = torch.tensor([[0.01, 0.97, 0.02]], device=device)
    assert not voted(attention, 0.95, False).any()
    assert voted(attention, 0.95, True).tolist() == [[False, True, False]]


@torch.inference_mode()
def test_text_alone_is_compressed_too():
    report = generate(
        random_family("llama"), None, "what color is the star ?", plan=Plan(MMShiftKV(0.5)), max_new_tokens=2
    ).report
    assert report.kv_bytes == int(report.prompt_tokens * 0.5 + 0.5) * 3 * 2 * 32 * 2 * 4


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio=0.0"),
        ({"keep_ratio": 1.5}, "keep_ratio=1.5"),
        ({"gamma": -1.0}, "gamma"),
        ({"num_proxies": 10, "groups": 4}, "num_proxies=10 in 4 groups"),
        ({"num_proxies": 0}, "num_proxies=0"),
        ({"stride": 0}, "stride"),
        ({"mass": 0.0}, "mass"),
        ({"sigma": "both"}, "sigma=both"),
        ({"source": "first"}, "source=first"),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(fields, named):
    with pytest.raises(BudgetError, match=named) as error:
        MMShiftKV(**fields)
    assert "\n" not in str(error.value)


def test_heads_that_do_not_share_keys_evenly_are_refused(monkeypatch):
    family = random_family("qwen2_5_vl")
    monkeypatch.setattr(family.config, "num_key_value_heads", 4)
    with pytest.raises(FitError, match="6 query heads do not share 4 key-value heads"):
        Plan(MMShiftKV()).check(family)
