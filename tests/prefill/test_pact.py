from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import noise_clip, random_family
from trained import chosen_and_random

from elvi.core.accept import Draft
from elvi.core.generate import prefill, verify
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.tokens import Tokens
from elvi.core.views import LayerView
from elvi.errors import BudgetError, FitError
from elvi.prefill.pact import PACT, REACH, centres, distances, importance, scan, scan_reference

QUESTION = "what color is the star ?"
KINDS = ("qwen2_5_vl", "llava_onevision", "llava")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def apart(total: int, seed: int = 0) -> torch.Tensor:
    """Cosine distances of random directions, some of which are close."""
    unit = torch.nn.functional.normalize(noise(total, 6, seed=seed) + 1, dim=-1)
    return (1 - unit @ unit.T).clamp(min=0).fill_diagonal_(0)


def in_rounds(distance: torch.Tensor, cutoff: float) -> set[int]:
    """Centres as the released code finds them: all that are far from what is denser, round after round."""
    rho = (-(distance / REACH).square()).exp().sum(-1)
    rank = torch.argsort(torch.argsort(-rho, stable=True))
    free, found = set(range(len(rho))), set()
    while free:
        rows = sorted(free)
        delta = {i: min((float(distance[i, j]) for j in rows if rank[j] < rank[i]), default=2.1) for i in rows}
        new = {i for i in rows if delta[i] > cutoff}
        found |= new
        free = {i for i in free if all(float(distance[i, j]) > cutoff for j in new)}
    return found


@pytest.mark.parametrize("cutoff", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_centres_are_those_of_the_rounds_and_cover_all_without_overlap(cutoff, seed, device):
    distance = apart(60, seed)
    chosen = centres(distance.to(device), cutoff).cpu()
    assert set(chosen.tolist()) == in_rounds(distance, cutoff)
    assert (distance[:, chosen].amin(1) <= cutoff).all()
    assert (distance[chosen][:, chosen] + 9 * torch.eye(len(chosen)) > cutoff).all()


@pytest.mark.parametrize("distance", [apart(90), torch.zeros(9, 9), apart(40).round(decimals=1)])
@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.5])
def test_kernel_and_torch_find_the_same_centres(distance, cutoff):
    order = distance.sum(1).sort(stable=True).indices
    found = scan_reference(distance, order, cutoff).tolist()
    assert scan(distance.numpy(), order.numpy(), np.float32(cutoff)).tolist() == found


@torch.inference_mode()
def entering(kind: str, layer: int = 1):
    """The row that enters a layer, and what is seen there."""
    caught = []

    class Spy(PACT):
        def reduce(self, tokens, seen):
            caught.append((tokens, seen))
            return tokens

    prefill(Run(random_family(kind), Plan(Spy(layer=layer))), noise_clip(), QUESTION)
    return caught[0]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_importance_is_what_the_mean_query_pays_before_rotation(kind):
    tokens, seen = entering(kind)
    visual = tokens.visual.nonzero()[:, 0]
    layer, last = seen.family.text.layers[1], int(visual[-1]) + 1
    normed = layer.input_layernorm(tokens.hidden)[:last]
    linear = layer.self_attn.q_proj, layer.self_attn.k_proj
    query, key = (part(normed).view(last, -1, seen.family.head_dim) for part in linear)
    group = query.shape[1] // key.shape[1]
    share = torch.stack(
        [(key[:, h // group] @ query[:, h].mean(0) / key.shape[2] ** 0.5).softmax(0) for h in range(query.shape[1])]
    ).mean(0)
    expected = share[visual] * tokens.hidden[visual].norm(dim=-1)
    torch.testing.assert_close(importance(tokens, seen, visual), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_distances_are_between_the_keys_that_the_layer_will_cache(kind):
    tokens, seen = entering(kind)
    run = Run(random_family(kind), Plan())
    prefill(run, noise_clip(), QUESTION)
    key = run.store.layers[1].read()[0].transpose(0, 1).flatten(1)[tokens.visual]
    expected = (1 - torch.cosine_similarity(key[:, None], key[None], dim=-1)).clamp(min=0)
    found = distances(tokens, seen, tokens.visual.nonzero()[:, 0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@torch.inference_mode()
def test_clusters_are_means_at_their_centres_and_far_pruned_tokens_are_gone():
    tokens, seen = entering("qwen2_5_vl")
    technique = PACT(layer=1, keep_ratio=0.5, cutoff=0.6, recover=1.1)
    out = technique.reduce(tokens, seen)
    visual = tokens.visual.nonzero()[:, 0]
    distance, score = distances(tokens, seen, visual), importance(tokens, seen, visual)
    kept = score.sort(descending=True, stable=True).indices[: len(visual) // 2].sort().values
    centre = sorted(kept[centres(distance[kept][:, kept], 0.6)].tolist())
    members = {place: [] for place in centre}
    for token in range(len(visual)):
        near = min(centre, key=lambda place: (float(distance[token, place]), place))
        if token in kept or float(distance[token, near]) <= 1.1 * 0.6:
            members[near].append(token)
    mine = out.keep(out.visual)
    assert 1 < len(centre) < len(kept) < sum(map(len, members.values())) < len(visual)
    assert mine.row.tolist() == tokens.row[visual[centre]].tolist()
    assert mine.mass.tolist() == [len(members[place]) for place in centre]
    means = torch.stack([tokens.hidden[visual[members[place]]].mean(0) for place in centre])
    torch.testing.assert_close(mine.hidden, means, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def prefilled(kind: str, *techniques) -> tuple[Run, torch.Tensor]:
    run = Run(random_family(kind), Plan(*techniques))
    return run, prefill(run, noise_clip(), QUESTION)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_gives_the_same_bits(kind):
    assert torch.equal(prefilled(kind, PACT(layer=1, **PACT.full))[1], prefilled(kind)[1])


def test_even_an_empty_budget_leaves_one_visual_token():
    run, _ = prefilled("qwen2_5_vl", PACT(layer=1, keep_ratio=0.0, recover=0.0))
    assert run.store.lengths == [len(run.layout), len(run.layout) - 107, len(run.layout) - 107]


def view_of(keys: torch.Tensor, mass: list[float]) -> LayerView:
    """A layer whose cache holds these keys [K, d] of a prompt of tokens with these masses, and one query after them."""
    total = len(mass)
    count = torch.arange(total)
    layout = Tokens(torch.zeros(total, 0), count[None], count, count[:, None].expand(-1, 3), torch.tensor(mass), count)
    store = SimpleNamespace(row=torch.arange(len(keys))[None], length=len(keys), read=lambda: (keys[None], keys[None]))
    return LayerView(4, store, noise(2, 1, keys.shape[1], seed=9), torch.tensor([len(keys)]), 0.5, layout)


def test_a_merged_pair_of_equal_keys_is_read_as_the_pair_was():
    keys = noise(3, 4)
    pair, merged = view_of(keys[[0, 1, 1, 2]], [1.0] * 4), view_of(keys, [1.0, 2.0, 1.0])

    def read(view: LayerView, mask: torch.Tensor | None) -> torch.Tensor:
        keys = view.keys.expand(2, -1, -1)
        return torch.nn.functional.scaled_dot_product_attention(view.query, keys, keys, attn_mask=mask, scale=0.5)

    torch.testing.assert_close(read(merged, PACT().attend(merged)), read(pair, None))
    assert PACT().attend(pair) is None


@torch.inference_mode()
def test_weights_of_merged_keys_are_added_while_decoding_too_and_only_behind_the_layer():
    technique = PACT(layer=1, cutoff=0.5)
    run, _ = prefilled("qwen2_5_vl", technique)
    verify(run, 5, Draft())
    run.commit([0])
    query = noise(6, 1, 32)
    views = [run.view(technique, layer, query, torch.tensor([run.next_row])) for layer in range(3)]
    assert technique.attend(views[0]) is None
    bias = technique.attend(views[1])
    row = run.store.layers[1].row[0]
    expected = [float(run.layout.mass[i].log()) if i < len(run.layout) else 0.0 for i in row.tolist()]
    assert bias.shape == (6, 1, len(row))
    assert bias[0, 0].tolist() == expected
    assert expected[-1] == 0
    assert max(expected) > 0


@pytest.mark.parametrize("options", [{"layer": 0}, {"keep_ratio": 1.5}, {"cutoff": -0.1}, {"recover": -1.0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        PACT(**options)


def test_layer_that_the_model_lacks_is_refused():
    with pytest.raises(FitError, match="3 layers"):
        Plan(PACT()).check(random_family("qwen2_5_vl"))


def test_clustered_tokens_answer_more_than_random_ones_on_a_trained_model():
    chosen, random = chosen_and_random("tiny-qwen", PACT(keep_ratio=0.1))
    assert chosen >= random + 3
