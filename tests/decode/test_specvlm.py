"""SpecVLM: which tokens the drafter sees, and that the output stays the target's."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from support import noise_clip, random_family

import elvi
from elvi.core.accept import Sampler
from elvi.core.draft import Shape
from elvi.core.generate import generate, prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.decode.specvlm import STATIC, SpecVLM, evenly
from elvi.errors import BudgetError, FitError

QUESTION = "what color is the star ?"


def obvious(attention: list[float], keep_ratio: str, share: float) -> list[int]:
    """Both stages, written out."""
    total = len(attention)
    count = int(Fraction(keep_ratio) * total)
    order = sorted(range(total), key=lambda i: (-attention[i], i))
    first = []
    while len(first) < count and (not first or sum(attention[i] for i in first) < share * sum(attention)):
        first.append(order[len(first)])
    rest = [i for i in range(total) if i not in first]
    wanted = count - len(first)
    spaced = [rest[i * (len(rest) - 1) // (wanted - 1) if wanted > 1 else 0] for i in range(wanted)]
    return sorted(first + spaced)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.4, 0.9])
@pytest.mark.parametrize("ratio", ["0", "0.01", "0.1", "0.25", "0.5", "0.9", "1"])
def test_kept_tokens_are_those_of_the_two_stages(ratio, share):
    random = np.random.default_rng(0)
    for total in (1, 2, 9, 40, 147, 1000):
        attention = torch.tensor(random.integers(1, 64, total) / 64.0)  # ties; sums are exact
        kept = SpecVLM(keep_ratio=float(ratio), attention_share=share).choose(attention)
        assert kept.tolist() == obvious(attention.tolist(), ratio, share)
        assert len(kept) == int(Fraction(ratio) * total)
        assert (kept.diff() > 0).all()


def test_the_budget_is_counted_without_rounding_errors():
    assert len(SpecVLM(keep_ratio=0.1).choose(torch.rand(1000))) == 100
    assert len(SpecVLM(keep_ratio=0.1).choose(torch.rand(147))) == 14
    assert len(SpecVLM(keep_ratio=0.29).choose(torch.rand(100))) == 29


def test_the_ends_of_stage_one():
    attention = torch.tensor([1.0, 8.0, 2.0, 4.0, 1.0, 1.0, 1.0, 1.0])
    assert SpecVLM(keep_ratio=0.5, attention_share=1.0).choose(attention).tolist() == [0, 1, 2, 3]
    assert SpecVLM(keep_ratio=0.5, attention_share=0.0).choose(attention).tolist() == [0, 1, 4, 7]
    assert SpecVLM(keep_ratio=0.5, select="uniform").choose(attention).tolist() == evenly(8, 4) == [0, 2, 4, 7]
    assert SpecVLM().choose(torch.empty(0)).tolist() == []


def test_the_static_tree_has_the_published_levels():
    shape = Shape.of(STATIC)
    depth = [1 if parent < 0 else None for parent in shape.parents]
    for node, parent in enumerate(shape.parents):
        depth[node] = 1 if parent < 0 else depth[parent] + 1
    leaves = [node for node in range(25) if not shape.children[node]]
    assert [depth.count(level) for level in range(1, 6)] == [4, 8, 8, 3, 2]
    assert len(leaves) == 15
    assert [sum(depth[n] == level and n not in leaves for n in range(25)) for level in range(1, 5)] == [4, 4, 1, 1]


def answer(kind: str, plan: Plan | None = None, clip=None, **options):
    clip = clip or noise_clip(2, still=kind == "llava", seed=1)
    options = {"max_new_tokens": 12, "ignore_eos": True, **options}
    return generate(random_family(kind), clip, QUESTION, plan=plan, **options)


@pytest.mark.parametrize("tree", ["static", "chain"])
@pytest.mark.parametrize("select", ["guided", "uniform", "random"])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava", "llava_onevision"])
def test_greedy_tokens_are_those_of_plain_decoding(kind, select, tree):
    plain, drafted, accepted = answer(kind), 0, 0
    for ratio in (0.0, 0.1, 0.5, 1.0):
        for positions in ("original", "renumbered"):
            plan = Plan(SpecVLM(ratio, select=select, tree=tree, num_draft=4, positions=positions))
            out = answer(kind, plan)
            assert out.tokens == plain.tokens
            drafted, accepted = drafted + sum(out.report.drafted), accepted + sum(out.report.accepted)
    assert 0 < accepted < drafted


@pytest.mark.parametrize("tree", ["static", "chain"])
def test_a_drafter_that_sees_everything_is_the_target(tree):
    out = answer("qwen2_5_vl", Plan(SpecVLM(1.0, tree=tree, num_draft=5)), max_new_tokens=13)
    assert out.report.accepted == [5, 5]


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["original", "renumbered"])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava"])
def test_the_drafter_reads_the_pruned_prompt_and_nothing_else(kind, positions):
    """Its first guess is that of the unmodified model on the kept embeddings at the stated positions."""
    family, technique = random_family(kind), SpecVLM(0.25, tree="chain", num_draft=2, positions=positions)
    run = Run(family, Plan(technique))
    clip, _ = prefill(run, noise_clip(2, still=kind == "llava", seed=1), QUESTION)
    drafting = technique.start(run, clip, Sampler())
    visual = run.layout.visual
    kept = (~visual).index_fill(0, visual.nonzero()[:, 0][technique.choose(run.question_attention[visual])], True)
    whole = Run(family, Plan())
    encoding = family.encode(family.steps(clip))
    prompt = family.prompt(QUESTION, clip, encoding.slots).fill(family.project(encoding.tokens))
    hidden = torch.cat([prompt.hidden[kept], family.text.embed_tokens(torch.tensor([11]))])
    last = prompt.position[:, -1:] + 1
    position = torch.cat([prompt.position[:, kept], last], 1)
    if positions == "renumbered":
        position = torch.arange(len(hidden)).expand(prompt.position.shape[0], -1)
    position = position[:, None] if len(position) > 1 else position
    logits = family.head(family.text(inputs_embeds=hidden[None], position_ids=position).last_hidden_state[0])
    assert drafting.propose([11], 5).ids[0] == int(logits[-1].argmax())
    assert drafting.run.store.layers[0].row[0, : int(kept.sum())].tolist() == kept.nonzero()[:, 0].tolist()
    assert whole.plan.question_attention is False


def test_text_alone_a_single_picture_and_several_of_them():
    for kind, clip in (
        ("qwen2_5_vl", noise_clip(1, still=True)),
        ("llava", noise_clip(1, still=True)),
        ("llava", noise_clip(4, still=True)),
        ("qwen2_5_vl", noise_clip(3, still=True)),
    ):
        assert answer(kind, Plan(SpecVLM()), clip).tokens == answer(kind, None, clip).tokens
    family, options = random_family("qwen2_5_vl"), {"max_new_tokens": 8, "ignore_eos": True}
    plain = generate(family, None, QUESTION, **options)
    assert generate(family, None, QUESTION, plan=Plan(SpecVLM()), **options).tokens == plain.tokens


def test_it_rides_on_a_pruned_target():
    """Exact with respect to the target as it is: here one that drops half of its tokens inside."""
    fastv = elvi.technique("fastv")(layer=1, keep_ratio=0.5)
    assert answer("qwen2_5_vl", Plan(fastv, SpecVLM())).tokens == answer("qwen2_5_vl", Plan(fastv)).tokens


def test_a_drafter_with_another_grid_is_refused(monkeypatch):
    family, other = random_family("qwen2_5_vl"), random_family("llava_onevision")
    monkeypatch.setattr(SpecVLM, "_drafter", lambda self, target: other)
    with pytest.raises(FitError, match=r"random-onevision, which sees \d+ visual tokens where random-qwen sees \d+"):
        generate(family, noise_clip(2), QUESTION, plan=Plan(SpecVLM()), max_new_tokens=4)


def test_misuse_is_refused_in_a_sentence():
    for options in ({"keep_ratio": 1.5}, {"attention_share": -0.1}, {"select": "best"}, {"tree": "oak"}):
        with pytest.raises(BudgetError, match=r"SpecVLM was asked for .*: use "):
            SpecVLM(**options)
    with pytest.raises(FitError, match="vocabularies differ"):
        Plan(SpecVLM(draft="tiny-drafter-bpe")).check(random_family("qwen2_5_vl"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-qwen", "tiny-llava"])
def test_the_trained_models_keep_their_words_on_many_clips(name):
    family, drafted, accepted = elvi.load(name, device="cpu"), 0, 0
    for number in range(25):
        clip = elvi.sample(60_000 + number, kind="caption" if number % 2 else None, seconds=1 + number % 4)
        plain = generate(family, clip, max_new_tokens=48)
        for options in ({}, {"tree": "chain", "select": "uniform", "keep_ratio": 0.5}):
            out = generate(family, clip, plan=Plan(SpecVLM(**options)), max_new_tokens=48)
            assert out.tokens == plain.tokens
            drafted, accepted = drafted + sum(out.report.drafted), accepted + sum(out.report.accepted)
    assert 0 < accepted < drafted
