from __future__ import annotations

import pytest
import torch
from kvsupport import view_of
from support import noise_clip, random_family

from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.views import attention_rows
from elvi.errors import BudgetError
from elvi.prefill.zipvl import ZipVL, fewest_count

QUESTION = "what color is the star ?"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_uniform_attention_needs_the_share_itself_and_one_peak_needs_one():
    assert fewest_count(torch.ones(40), 0.7) == 28
    assert fewest_count(torch.tensor([0.0, 0.0, 5.0, 0.0]), 0.95) == 1
    assert fewest_count(torch.tensor([0.1, 0.2, 0.3, 0.4]), 1.0) == 4


def test_more_threshold_keeps_no_fewer():
    view = view_of(noise(2, 50, 8), noise(4, 50, 8, seed=1))
    counts = [int(ZipVL(threshold, recent=4, drawn=8).important(view).sum()) for threshold in (0.3, 0.6, 0.9, 0.99)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_how_many_is_told_by_the_sum_and_which_by_the_mean_over_those_that_see_it():
    keys, query = noise(2, 30, 8), noise(4, 30, 8, seed=1)
    view = view_of(keys, query)
    technique = ZipVL(threshold=0.6, recent=4, drawn=100)
    paid = attention_rows(query, keys, torch.arange(30), view.scaling).mean(0)
    count = fewest_count(paid.sum(0), 0.6)
    mean = [float(paid[j:, j].mean()) for j in range(30)]  # all rows are probes; those from j on can see j
    wanted = set(sorted(range(30), key=lambda j: (-mean[j], j))[:count]) | set(range(26, 30))
    assert set(technique.important(view).nonzero()[:, 0].tolist()) == wanted


def test_early_tokens_do_not_win_by_being_seen_more_often():
    view = view_of(torch.zeros(1, 40, 8), torch.zeros(1, 40, 8))  # every row spreads its attention evenly
    chosen = ZipVL(threshold=0.5, recent=1, drawn=100).important(view)[:-1].nonzero()[:, 0]
    paid = attention_rows(view.query, view.keys, torch.arange(40), 1.0)[0].sum(0)
    assert paid.argmax() == 0
    mean = paid / torch.arange(40, 0, -1)
    assert set(chosen.tolist()) == set(mean[:39].argsort(descending=True, stable=True)[: len(chosen)].tolist())


def test_probes_are_drawn_anew_per_layer_and_alike_in_every_run():
    technique = ZipVL(recent=4, drawn=5)
    first, again, other = technique.probes(40, 0), technique.probes(40, 0), technique.probes(40, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first[-4:].tolist() == [36, 37, 38, 39]
    assert (first.diff() > 0).all()


@torch.inference_mode()
def test_each_layer_caches_what_it_read():
    family, seen = random_family("qwen2_5_vl"), []

    class Spy(ZipVL):
        def important(self, view):
            seen.append(super().important(view))
            return seen[-1]

    run = Run(family, Plan(Spy(0.5, recent=8, drawn=8)))
    prefill(run, noise_clip(), QUESTION)
    for layer, chosen in zip(run.store.layers, seen):
        assert torch.equal(layer.row[0], chosen.nonzero()[:, 0])
    assert run.store.lengths[0] < len(run.layout)


@torch.inference_mode()
def test_prefill_equals_the_model_with_those_keys_hidden():
    family, masks = random_family("qwen2_5_vl"), []

    class Spy(ZipVL):
        def attend(self, view):
            masks.append(super().attend(view))
            return masks[-1]

    _, logits = prefill(Run(family, Plan(Spy(0.5, recent=8, drawn=8))), noise_clip(), QUESTION)
    waiting = iter(masks)

    def masked(module, args, kwargs):
        return args, kwargs | {"attention_mask": next(waiting).tril()[None]}

    hooks = [layer.register_forward_pre_hook(masked, with_kwargs=True) for layer in family.text.layers]
    expected = family.model(**family.inputs(noise_clip(), QUESTION)).logits[0, -1]
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"threshold": 1.1}, {"recent": 0}, {"drawn": -1}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        ZipVL(**options)
