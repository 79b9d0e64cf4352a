"""Trait: chunks, the Gaussian process, the selection loop, and what it reaches on made-up sources."""

import io
import sys
import tarfile
import types
import zipfile
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from elvi.errors import BudgetError, ElviError
from elvi.related.trait import Trait, experiment, model, parallel
from elvi.related.trait.data import HARMFUL, HELPFUL, Chunks, Source, Target, chunks_of, synthetic
from elvi.related.trait.model import Pairs, Retrieval, fresh, ndcg, train
from elvi.related.trait.select import at_random, final, select, step
from elvi.related.trait.surrogate import expected_improvement, posterior
from elvi.related.trait.texts import hashed, real

pytest.importorskip("sklearn")
SMALL = Trait(chunk=32, steps=8, share=0.25, final_steps=40)


@cache
def small():
    """Twelve small sources, their 48 chunks and theta0."""
    world = synthetic(3, per_source=128, dev=40, test=40, documents=200)
    return world, chunks_of(world.sources, 32, 0), train(fresh(3), world.general, 60, 0)


@cache
def made(trait=SMALL):
    world, chunks, theta0 = small()
    return select(trait, chunks, world.target, theta0)


def numbered(count, length=3):
    words = torch.arange(1, count * length + 1).reshape(count, length)
    return Pairs(words, words, words)


# Chunks


def test_chunks_are_equal_disjoint_and_cover_all_but_the_rest():
    chunks = chunks_of((Source("a", numbered(10)), Source("b", numbered(8)), Source("tiny", numbered(3))), 4, 0)
    assert [len(pairs) for pairs in chunks.pairs] == [4] * 4
    assert chunks.source == [0, 0, 1, 1]
    rows = torch.cat([pairs.query for pairs in chunks.pairs[2:]])
    assert sorted(rows[:, 0].tolist()) == numbered(8).query[:, 0].tolist()


def test_a_seed_gives_the_same_chunks_and_another_gives_others():
    sources = (Source("a", numbered(40)),)
    first, again, other = (chunks_of(sources, 8, seed).pairs[0].query for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_chunks_larger_than_every_source_are_refused():
    with pytest.raises(ElviError, match="largest source has 10"):
        chunks_of((Source("a", numbered(10)),), 11, 0)


# The retriever


def test_training_equals_adam_on_the_whole_matrix():
    pairs, theta0 = small()[1].pairs[0], fresh(0)
    whole = theta0.clone().requires_grad_()
    optimiser = torch.optim.Adam([whole], lr=model.RATE)
    chance = torch.Generator().manual_seed(0)
    for _ in range(3):
        optimiser.zero_grad()
        model.loss(whole, pairs[torch.randperm(len(pairs), generator=chance)]).backward()
        optimiser.step()
    torch.testing.assert_close(train(theta0, pairs, 3, 0), whole.detach())


def test_ndcg_equals_the_sum_by_hand():
    theta = torch.zeros(model.WORDS, model.WIDTH)
    theta[1, 0] = theta[2, 1] = 1.0
    theta[3, :2] = 1.0
    task = Retrieval(torch.tensor([[1]]), torch.tensor([[1], [2], [3]]), torch.tensor([[0.0, 2.0, 1.0]]))
    by_hand = (1 / np.log2(3) + 2 / np.log2(4)) / (2 / np.log2(2) + 1 / np.log2(3))
    assert ndcg(theta, task) == pytest.approx(by_hand)


def test_a_document_that_is_no_candidate_does_not_count():
    task = Retrieval(torch.tensor([[1]]), torch.tensor([[1], [2]]), torch.tensor([[-1.0, 1.0]]))
    assert ndcg(fresh(0), task) == pytest.approx(1.0)


# The Gaussian process


def test_the_posterior_interpolates_points_without_noise():
    rows = np.array([[0.0, 0], [0.7, 0], [2.0, 1]])
    gains = np.array([0.3, -0.2, 0.1])
    mean, spread = posterior(rows, gains, rows, noise=0.0)
    np.testing.assert_allclose(mean, gains, atol=1e-6)
    assert (spread < 1e-3).all()


def test_the_posterior_equals_the_closed_form_of_two_points():
    rows, gains, asked = np.array([[0.0, 0], [1.0, 1]]), np.array([0.5, -0.25]), np.array([[0.5, 1]])
    near, far = np.exp(-0.125), np.exp(-0.5)  # RBF at distances 1/2 and 1; a source adds 1 to itself
    inverse = np.array([[2, -far], [-far, 2]]) / (4 - far**2)
    cross = np.array([near, near + 1])
    mean, spread = posterior(rows, gains, asked, noise=0.0)
    assert mean[0] == pytest.approx(cross @ inverse @ gains)
    assert spread[0] ** 2 == pytest.approx(2 - cross @ inverse @ cross)


def test_expected_improvement_is_the_mean_of_the_positive_part():
    draws = np.random.default_rng(0).normal(0.1, 0.3, 400_000)
    value = expected_improvement(np.array([0.1]), np.array([0.3]), 0.2)[0]
    assert value == pytest.approx(np.maximum(draws - 0.2, 0).mean(), abs=1e-3)


def test_expected_improvement_is_nothing_where_the_gain_is_known_to_be_no_better():
    rows, gains = np.array([[0.0, 0], [1.0, 1]]), np.array([0.5, -0.25])
    mean, spread = posterior(rows, gains, rows, noise=0.0)
    np.testing.assert_allclose(expected_improvement(mean, np.where(spread < 1e-3, 0, spread), 0.5), 0, atol=1e-6)
    assert (expected_improvement(np.linspace(-9, 9, 50), np.ones(50)) >= 0).all()


# The loop


def test_the_same_seed_gives_the_same_trace():
    world, chunks, theta0 = small()
    again = select(SMALL, chunks, world.target, theta0)
    assert again.trials == made().trials
    assert torch.equal(again.theta, made().theta)


@pytest.mark.parametrize("acquisition", ["ei", "random"])
def test_the_whole_budget_without_pruning_evaluates_every_chunk_once(acquisition):
    world, chunks, theta0 = small()
    asked = Trait(chunk=32, share=1.0, steps=1, prune=False, acquisition=acquisition)
    trials = select(asked, chunks, world.target, theta0).trials
    assert sorted(trial.chunk for trial in trials) == list(range(len(chunks)))


def test_no_budget_returns_theta0():
    selection = made(replace(SMALL, share=0.0))
    assert (selection.trials, selection.selected) == ([], [])
    assert selection.theta is small()[2]


def test_one_source_is_enough():
    world, _, theta0 = small()
    chunks = chunks_of(world.sources[:1], 32, 0)
    assert len(select(replace(SMALL, share=0.75), chunks, world.target, theta0).trials) == 3


def test_a_copy_of_the_target_pairs_is_kept_and_an_inverted_copy_refused():
    adapt = small()[0].sources[0].pairs[:40]
    task = Retrieval(adapt.query, adapt.positive, torch.eye(40))
    turned = Pairs(adapt.query, adapt.positive.roll(7, 0), adapt.positive)
    theta0 = small()[2]
    trait = replace(SMALL, share=1.0, prune=False)
    trials = select(trait, Chunks([adapt, turned], [0, 1]), Target(adapt, task), theta0).trials
    assert {trial.chunk: trial.accepted for trial in trials} == {0: True, 1: False}


def test_rejection_leaves_the_model_bit_for_bit():
    world, chunks, theta0 = small()
    before = theta0.clone()
    selection = select(replace(SMALL, threshold=2.0), chunks, world.target, theta0)
    assert not selection.selected
    assert torch.equal(selection.theta, before)


def test_the_model_equals_training_on_the_kept_chunks_in_their_order_after_going_back():
    world, chunks, theta0 = small()
    trait = replace(SMALL, check_every=2)
    wrong = lambda trial: float(trial < 8)  # noqa: E731 - whatever comes first is kept
    back, on = (
        select(replace(trait, backtrack=each), chunks, world.target, theta0, disturb=wrong) for each in (True, False)
    )
    theta = theta0
    for place, chunk in enumerate(back.selected):
        theta = step(trait, chunks, theta, back.selected[:place], chunk)
    assert torch.equal(theta, back.theta)
    assert sum(trial.accepted for trial in back.trials) > len(back.selected)
    assert sum(trial.accepted for trial in on.trials) == len(on.selected)


@pytest.fixture
def unsure(monkeypatch):
    """A process that has learnt nothing."""
    nothing = lambda seen, gains, asked: (np.zeros(len(asked)), np.ones(len(asked)))  # noqa: E731
    monkeypatch.setattr("elvi.related.trait.select.posterior", nothing)


@pytest.mark.parametrize(("patience", "sources"), [(1, 12), (2, 6)])
def test_a_source_is_closed_when_it_was_refused_as_often_as_patience_says(unsure, patience, sources):
    world, chunks, theta0 = small()
    strict = replace(SMALL, threshold=0.9, patience=patience, share=0.25)
    source = [chunks.source[trial.chunk] for trial in select(strict, chunks, world.target, theta0).trials]
    assert max(source.count(number) for number in source) == patience
    assert len(set(source)) >= sources


def test_closed_sources_are_opened_again_when_nothing_else_is_left(unsure):
    world, chunks, theta0 = small()
    strict = replace(SMALL, threshold=0.9, patience=1, share=0.5)
    trials = select(strict, chunks, world.target, theta0).trials
    assert len({trial.chunk for trial in trials}) == len(trials) == 24


def test_a_chunk_that_is_surely_of_no_use_is_pruned(monkeypatch):
    world, chunks, theta0 = small()
    odd = lambda seen, gains, asked: (np.where(asked[:, -1] % 2, -1.0, 0.1), np.full(len(asked), 0.2))  # noqa: E731
    monkeypatch.setattr("elvi.related.trait.select.posterior", odd)
    trials = select(replace(SMALL, patience=9), chunks, world.target, theta0).trials
    assert all(chunks.source[trial.chunk] % 2 == 0 for trial in trials if trial.expected is not None)


def test_test_queries_change_nothing_before_the_report():
    world, chunks, theta0 = small()
    assert not hasattr(world.target, "test")
    changed = replace(world, test=replace(world.test, grades=1 - world.test.grades))
    assert select(SMALL, chunks, changed.target, theta0).trials == made().trials


def test_a_run_that_stopped_goes_on_where_it_was():
    world, chunks, theta0 = small()
    gains = [trial.gain for trial in made().trials]
    on = select(SMALL, chunks, world.target, theta0, known=gains[:6])
    assert on.trials == made().trials
    assert torch.equal(on.theta, made().theta)


# What it reaches


def test_harmful_chunks_are_far_below_their_share_of_the_sources():
    world, chunks, _ = small()
    kinds = [world.sources[chunks.source[chunk]].kind for chunk in made().selected]
    assert kinds.count(HELPFUL) > len(kinds) / 2
    assert kinds.count(HARMFUL) / len(kinds) < 4 / 12 / 2


def test_more_data_is_not_better():
    world, chunks, theta0 = small()
    helpful = [i for i in range(len(chunks)) if world.sources[chunks.source[i]].kind == HELPFUL]
    trait = Trait(final_steps=100)
    some, every = (
        ndcg(final(trait, chunks, chosen, world.target, theta0), world.test)
        for chosen in (helpful, list(range(len(chunks))))
    )
    assert some > every + 0.05


def test_as_many_random_evaluations_find_fewer_chunks_that_help():
    world, chunks, theta0 = small()
    found = []
    for trait in (replace(SMALL, share=0.5), replace(SMALL, share=0.5, seed=1)):
        for way in (made(trait), select(at_random(trait), chunks, world.target, theta0)):
            found.append([world.sources[chunks.source[chunk]].kind for chunk in way.selected].count(HELPFUL))
    assert found[0] + found[2] > found[1] + found[3]


# Parallel maps, commands and files


def test_a_batch_is_evaluated_by_the_map_it_is_given():
    world, chunks, theta0 = small()
    sizes = []

    def count(function, items):
        sizes.append(len(items))
        return [function(item) for item in items]

    selection = select(replace(SMALL, batch=4), chunks, world.target, theta0, mapper=count)
    assert sizes == [4, 4, 4]  # the first are one of each of a third of the budget's sources
    assert len(selection.trials) == 12


def test_ray_maps_in_order(monkeypatch):
    remote = lambda function: types.SimpleNamespace(remote=lambda item: (function, item))  # noqa: E731
    started = []
    fake = types.SimpleNamespace(
        is_initialized=lambda: bool(started),
        init=lambda address: started.append(address),
        remote=remote,
        get=lambda made: [function(item) for function, item in made],
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert parallel.mapper("host:1")(abs, [-2, 1]) == parallel.mapper("")(abs, [-2, 1]) == [2, 1]
    assert started == ["host:1"]


def test_ray_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ElviError, match="pip install ray"):
        parallel.mapper("local")


def test_training_writes_a_retriever_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "prepare", lambda trait: small())
    ticks = []
    SMALL.train(tmp_path, None, resume=False, tick=lambda *each: ticks.append(each))
    weights, record = ((tmp_path / name).read_bytes() for name in ("retriever.safetensors", "selection.json"))
    assert ticks[-1] == (13, 13)
    SMALL.train(tmp_path, None, resume=True, tick=lambda *each: None)
    assert (tmp_path / "retriever.safetensors").read_bytes() == weights
    assert (tmp_path / "selection.json").read_bytes() == record
    with pytest.raises(ElviError, match="other settings"):
        replace(SMALL, steps=9).train(tmp_path, None, resume=True, tick=lambda *each: None)
    (tmp_path / "selection.json").write_text("{")
    with pytest.raises(ElviError, match="no selection to go on from"):
        SMALL.train(tmp_path, None, resume=True, tick=lambda *each: None)


def test_run_shows_trials_quality_and_documents(monkeypatch):
    monkeypatch.setattr(experiment, "prepare", lambda trait: small())
    trials, quality, found = SMALL.run("w5 w6 w7")
    assert len(trials.rows) == 12
    assert [row[0] for row in quality.rows] == ["target pairs only", "all sources", "Trait"]
    assert {"w5", "w6", "w7"} & set(found.rows[0][1].split())
    with pytest.raises(ElviError, match="knows no word"):
        SMALL.run("hello there")


@pytest.mark.parametrize("field", [{"share": 1.5}, {"chunk": 0}, {"acquisition": "best"}])
def test_fields_out_of_range_are_refused(field):
    with pytest.raises(BudgetError):
        Trait(**field)


def packages(folder):
    """Both packages in miniature: texts of made-up words in the files and places of the real ones."""
    text = lambda n: " ".join(f"word{chr(97 + (n + k) % 26)}" for k in range(9))  # noqa: E731
    lines = "\n".join(f"{text(n)}. {text(n + 3)}" for n in range(50))
    ratings = "\n".join(
        "\t".join("1" if a == b else "0.5" if b == a + 1 else "0" for b in range(50)) for a in range(50)
    )
    with zipfile.ZipFile(folder / "gensim-4.4.0-any.whl", "w") as wheel:
        for name, content in (("lee.cor", lines), ("lee_background.cor", lines), ("similarities0-1.txt", ratings)):
            wheel.writestr(f"gensim/test/test_data/{name}", content)
        wheel.writestr(
            "gensim/test/test_data/head500.noblanks.cor", "\n".join(text(n) + " " + text(n) for n in range(9))
        )
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as made_:
        for name, mark in (("tweets", "{}"), ("movieReviewSnippets", "{}"), ("amazonReviewSnippets", "1_{}"),
                           ("nytEditorialSnippets", "1_{}")):  # fmt: skip
            content = "\n".join(f"{mark.format(n)}\t0.5\t{text(n)}" for n in range(12)).encode()
            add(made_, f"hutto_ICWSM_2014/{name}_GroundTruth.txt", content)
    with tarfile.open(folder / "vaderSentiment-3.3.2.tar.gz", "w:gz") as outer:
        add(outer, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def test_real_text_is_read_from_the_packages(tmp_path):
    packages(tmp_path)
    world = real(str(tmp_path), 0)
    assert [len(source.pairs) for source in world.sources] == [50, 9, 12, 12, 11, 11]
    assert [len(task.queries) for task in (world.target.dev, world.test)] == [15, 25]
    assert sorted(world.test.grades.unique().tolist()) == [-1.0, 0.0, 0.5]
    assert ((world.target.dev.grades < 0).sum(1) == 1).all()


def test_words_are_hashed_in_order_and_padded():
    rows = hashed(["News, of the war", "war"])
    assert (rows[0] > 0).sum() == 3
    assert rows[0, 2] == rows[1, 0] > 0


@pytest.mark.parametrize("broken", ["", "gensim-4.4.0-any.whl"])
def test_a_folder_without_the_packages_is_refused(tmp_path, broken):
    if broken:
        packages(tmp_path)
        (tmp_path / broken).write_text("no archive")
    with pytest.raises(ElviError, match="pip download"):
        real(str(tmp_path), 0)
