"""What is measured of Trait: its quality against other ways to choose, and what going back and pruning add."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from elvi.errors import ElviError
from elvi.related import Table
from elvi.related.trait.data import HARMFUL, HELPFUL, Chunks, World, chunks_of, synthetic
from elvi.related.trait.model import encode, fresh, ndcg, train
from elvi.related.trait.parallel import mapper
from elvi.related.trait.select import at_random, budget_of, final, select
from elvi.related.trait.texts import hashed, real

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from elvi.related.trait import Trait
    from elvi.related.trait.select import Selection

SEEDS = 5
SHARES = (0.02, 0.04, 0.08, 0.16)
ERROR, TRIALS = 0.1, 20  # standard deviation of the error added to the first gains, and how many have it
REACH = 0.16  # budget of the comparison of pruning
PARTS = (0.5, 0.75, 0.95)  # of the quality after every chunk was evaluated


def prepare(trait: Trait) -> tuple[World, Chunks, Tensor]:
    """The world the settings ask for, its chunks and theta0."""
    world = real(trait.texts, trait.seed) if trait.texts else synthetic(trait.seed)
    return (
        world,
        chunks_of(world.sources, trait.chunk, trait.seed),
        train(fresh(trait.seed), world.general, 200, trait.seed),
    )


def run(trait: Trait, prompt: str | None) -> list[Table]:
    """Every evaluation, the quality reached, and the documents nearest to the prompt."""
    world, chunks, theta0 = prepare(trait)
    query = world.test.queries[:1] if prompt is None else _read(world, prompt)
    made = select(trait, chunks, world.target, theta0, mapper=mapper(trait.ray))
    theta = final(trait, chunks, made.selected, world.target, theta0)
    trials = [
        (place, world.sources[chunks.source[trial.chunk]].name, trial.expected, trial.gain,
         "kept" if trial.accepted else "refused", trial.quality)
        for place, trial in enumerate(made.trials, 1)
    ]  # fmt: skip
    ways = {"target pairs only": [], "all sources": list(range(len(chunks))), "Trait": made.selected}
    quality = [
        (way, len(chosen), ndcg(final(trait, chunks, chosen, world.target, theta0), world.test))
        for way, chosen in ways.items()
    ]
    scores = (encode(theta, query) @ encode(theta, world.test.documents).T)[0]
    best = scores.argsort(descending=True, stable=True)[:5].tolist()
    asked = prompt or ("the first test query" if world.words is None else _named(world, query[0]))
    return [
        Table(f"Evaluations ({len(trials)} of {len(chunks)} chunks)",
              ("trial", "source", "expected gain", "gain", "chunk", "dev nDCG@10"), trials),
        Table("Test quality", ("trained on", "chunks", "nDCG@10"), quality),
        Table(f"Documents for: {asked}", ("score", "document"), [(float(scores[i]), world.titles[i]) for i in best]),
    ]  # fmt: skip


def _named(world: World, words: Tensor) -> str:
    names = {word: name for name, word in world.words.items()}
    return " ".join(names[word] for word in words.tolist() if word in names)


def _read(world: World, prompt: str) -> Tensor:
    """The prompt as words [1, L]. Raises ElviError when the world knows none of them."""
    if world.words is None:
        words = hashed([prompt])
    else:
        words = torch.tensor([[world.words[word] for word in prompt.split() if word in world.words]], dtype=torch.long)
    if not words.any():
        hint = "use words of three letters" if world.words is None else "use words from q0 to q479 or w0 to w479"
        raise ElviError(f"Trait was asked for {prompt!r}, in which it knows no word: {hint}.")
    return words


def bench(trait: Trait, tick: Callable[[int, int], None]) -> list[Table]:
    """All tables; a part is a seed of a world."""
    worlds = [replace(trait, texts="")] + ([replace(trait, chunk=32)] if trait.texts else [])
    total, done, tables = SEEDS * len(worlds), 0, []
    for base in worlds:
        shares = SHARES if not base.texts else (0.1, 0.25)
        rows: dict[tuple, list[tuple]] = defaultdict(list)
        extra: dict[str, list[tuple]] = defaultdict(list)
        for seed in range(base.seed, base.seed + SEEDS):
            one = replace(base, seed=seed)
            place = prepare(one)
            oracle = _ways(one, place, shares, rows)
            if not base.texts:
                _going_back(one, place, extra)
                _pruning(one, place, oracle, extra)
            done += 1
            tick(done, total)
        tables += [_quality(rows, base), _paired(rows, shares)]
        tables += [] if base.texts else _extra(extra)
    return tables


def _ways(trait: Trait, place: tuple, shares: tuple[float, ...], rows: dict[tuple, list[tuple]]) -> Selection:
    """Append (test nDCG@10, dev nDCG@10, trained share, harmful share) of every (way, evaluated share); the oracle."""
    world, chunks, theta0 = place
    source = np.array(chunks.source)
    chance = np.random.default_rng(trait.seed)
    kinds = [world.sources[number].kind for number in source]

    def add(way: str, evaluated: float | None, chosen: list[int]) -> None:
        theta = final(trait, chunks, chosen, world.target, theta0)
        harmful = np.mean([kinds[chunk] == HARMFUL for chunk in chosen]) if chosen and kinds[0] else None
        found = ndcg(theta, world.test), ndcg(theta, world.target.dev), len(chosen) / len(chunks), harmful
        rows[way, evaluated].append(found)

    everything = list(range(len(chunks)))
    add("target pairs only", None, [])
    add("all sources", None, everything)
    if kinds[0]:
        add("helpful sources, as the generator knows", None, [i for i in everything if kinds[i] == HELPFUL])
    alone = {number: (source == number).nonzero()[0].tolist() for number in np.unique(source)}
    dev = {k: ndcg(final(trait, chunks, chosen, world.target, theta0), world.target.dev) for k, chosen in alone.items()}
    add("best single source by dev", 1.0, alone[max(dev, key=dev.get)])
    count = budget_of(trait, chunks)
    centre = encode(theta0, world.target.adapt.query).mean(0)
    near = [float(F.cosine_similarity(encode(theta0, pairs.query).mean(0), centre, dim=0)) for pairs in chunks.pairs]
    nearest = np.argsort(-np.array(near), kind="stable")[:count].tolist()
    add(f"{count} chunks nearest to the target pairs", None, nearest)
    add(f"{count} random chunks, untested", None, chance.permutation(len(chunks))[:count].tolist())
    oracle = select(replace(at_random(trait), share=1.0), chunks, world.target, theta0)
    for share in (*shares, 1.0):  # a smaller budget stops earlier on the same way
        tried = oracle.trials[: budget_of(replace(trait, share=share), chunks)]
        add("random, tested", share, [trial.chunk for trial in tried if trial.accepted])
    for share in shares:
        add("Trait", share, select(replace(trait, share=share), chunks, world.target, theta0).selected)
    return oracle


def _going_back(trait: Trait, place: tuple, extra: dict[str, list[tuple]]) -> None:
    world, chunks, theta0 = place
    error = np.random.default_rng(trait.seed).normal(0, ERROR, TRIALS)
    for on in (True, False):
        asked = replace(trait, share=0.08, backtrack=on)
        disturb = lambda trial: float(error[trial]) if trial < TRIALS else 0.0  # noqa: E731
        made = select(asked, chunks, world.target, theta0, disturb=disturb)
        theta = final(asked, chunks, made.selected, world.target, theta0)
        extra[f"backtracking {'on' if on else 'off'}"].append((ndcg(theta, world.test), len(made.selected)))


def _pruning(trait: Trait, place: tuple, oracle: Selection, extra: dict[str, list[tuple]]) -> None:
    world, chunks, theta0 = place
    for on in (True, False):
        made = select(replace(trait, share=REACH, prune=on), chunks, world.target, theta0)
        quality = np.array([trial.quality for trial in made.trials])
        there = [quality >= part * oracle.quality[-1] for part in PARTS]
        needed = [int(np.argmax(each)) + 1 if each.any() else None for each in there]
        extra[f"pruning {'on' if on else 'off'}"].append(tuple(needed))


def _quality(rows: dict[tuple, list[tuple]], trait: Trait) -> Table:
    made = []
    for (way, evaluated), found in rows.items():
        test, dev, trained = (np.array([row[k] for row in found]) for k in range(3))
        harmful = [100 * row[3] for row in found if row[3] is not None]
        spread = float(test.std(ddof=1))
        tried = None if evaluated is None else 100 * evaluated
        made.append((way, tried, 100 * float(trained.mean()), float(test.mean()), spread, float(dev.mean()),
                     float(np.mean(harmful)) if harmful else None))  # fmt: skip
    name = "Real text: news rated by people" if trait.texts else "Made-up sources: 3 helpful, 5 neutral, 4 harmful"
    columns = ("chosen by", "chunks evaluated %", "trained on %", "test nDCG@10", "spread", "dev nDCG@10",
               "harmful among chosen %")  # fmt: skip
    note = f"Mean over {SEEDS} seeds; spread is the standard deviation over them. Every way trains {trait.final_steps} "
    note += "steps from one start, then on the target's pairs. Dev queries decide the selection, test queries do not. "
    note += "The best single source is found by training on each source in whole."
    return Table(name, columns, made, note + (" An illustration: 25 test queries." if trait.texts else ""))


def _paired(rows: dict[tuple, list[tuple]], shares: tuple[float, ...]) -> Table:
    from scipy.stats import ttest_rel

    made = []
    for share in shares:
        ours = [row[0] for row in rows["Trait", share]]
        for rival in (("random, tested", share), ("all sources", None)):
            theirs = [row[0] for row in rows[rival]]
            gaps = np.subtract(ours, theirs)
            p = float(ttest_rel(ours, theirs).pvalue) if gaps.std() > 0 else None
            made.append((100 * share, rival[0], float(gaps.mean()), float(gaps.std(ddof=1)), p))
    columns = ("chunks evaluated %", "against", "difference in test nDCG@10", "spread", "p")
    behind = [f"{row[1]} at {row[0]:g} % ({row[2]:+.3f})" for row in made if row[2] < 0]
    note = "p of a paired t-test. Trait should be ahead of both."
    if behind:
        note += f" Here it is behind {', '.join(behind)}."
    return Table("Trait less another way, seed by seed", columns, made, note)


def _extra(extra: dict[str, list[tuple]]) -> list[Table]:
    on, off = extra["backtracking on"], extra["backtracking off"]
    back = [
        (name, float(np.mean([row[0] for row in found])), float(np.std([row[0] for row in found], ddof=1)),
         float(np.mean([row[1] for row in found])))
        for name, found in (("on", on), ("off", off))
    ]  # fmt: skip
    pruned = []
    for name in ("on", "off"):
        found = extra[f"pruning {name}"]
        for place, part in enumerate(PARTS):
            reached = [row[place] for row in found if row[place] is not None]
            pruned.append((name, 100 * part, len(reached), float(np.mean(reached)) if reached else None))
    note = f"8 % of the chunks evaluated; error of standard deviation {ERROR} on the first {TRIALS} gains."
    return [
        Table("Going back, with errors in early gains",
              ("backtracking", "test nDCG@10", "spread", "chunks chosen"), back, note),
        Table("Pruning: evaluations until a share of the dev quality of evaluating every chunk",
              ("pruning", "share %", f"seeds of {SEEDS} that reach it", "evaluations"), pruned,
              f"At most {REACH:.0%} of the chunks are evaluated."),
    ]  # fmt: skip
