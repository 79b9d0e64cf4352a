"""The experiment of the page: rivals on one encoder, where their recall comes from, and the gap as nesting grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from elvi.related import Table
from elvi.related.pyramid_ner.data import LONGEST, Sentence, corpus
from elvi.related.pyramid_ner.labels import Mention, apart, crossing, flat_ceiling, inside, score
from elvi.related.pyramid_ner.train import Tagger, fit, shape_of

if TYPE_CHECKING:
    from elvi.related.pyramid_ner import PyramidNER

HELD_OUT = 500
FLAT, INNER, BASIC, FULL = (
    "flat BiLSTM-CRF, outermost mentions",
    "flat BiLSTM-CRF, innermost mentions",
    "Pyramid, basic",
    "Pyramid, with the inverse",
)
BUILT = {FLAT: (False, "outermost"), INNER: (False, "innermost"), BASIC: (False, ""), FULL: (True, "")}
LENGTHS = ((1, 2), (3, 5), (6, 8), (9, LONGEST))


def bench(system: PyramidNER, tick: Callable[[int, int], None]) -> list[Table]:
    """Each seed draws its own corpus and weights; every tagger of a seed sees the same sentences."""
    shares = (0.0, 0.5, 1.0)
    total = system.seeds * (len(BUILT) + 2 * (len(shares) - 1))
    done = 0

    def trained(name: str, seed: int, share: float) -> Tagger:
        nonlocal done
        draw = (share * system.nesting, share * system.crossing, seed)
        train, valid = corpus("train", system.sentences, *draw), corpus("valid", system.sentences // 5, *draw)
        inverse, flat = BUILT[name]
        shape = shape_of(train, system.hidden, system.depth, inverse, flat)
        made = fit(shape, train, valid, epochs=system.epochs, seed=seed)
        done += 1
        tick(done, total)
        return made

    def held_out(seed: int, share: float = 1.0, split: str = "test") -> list[Sentence]:
        return corpus(split, HELD_OUT, share * system.nesting, share * system.crossing, seed)

    taggers = {name: [trained(name, seed, 1.0) for seed in range(system.seeds)] for name in BUILT}
    tests = [held_out(seed) for seed in range(system.seeds)]
    gold = [[set(s.mentions) for s in test] for test in tests]
    found = {
        name: [t.read([s.tokens for s in test]) for t, test in zip(of, tests, strict=True)]
        for name, of in taggers.items()
    }
    unseen = {
        name: [t.score(held_out(seed, split="unseen"))[2] for seed, t in enumerate(of)] for name, of in taggers.items()
    }
    gaps = []
    for share in shares:
        rows = []
        for seed in range(system.seeds):
            test = held_out(seed, share)
            pair = [
                (taggers[n][seed] if share == 1.0 else trained(n, seed, share)).score(test)[2] for n in (FLAT, FULL)
            ]
            rows.append((*pair, *_shares(test)))
        gaps.append((round(share * system.nesting, 2), rows))
    return [_rivals(gold, found, unseen, system), _recalls(gold, found), _gaps(gaps)]


def _rivals(gold: list, found: dict, unseen: dict, system: PyramidNER) -> Table:
    rows = []
    for name, runs in found.items():
        scored = [score(g, f) for g, f in zip(gold, runs, strict=True)]
        precision, recall, f1 = zip(*scored, strict=True)
        rows.append((name, *_spread(f1), *map(_mean, (precision, recall)), *_spread(unseen[name])))
    for name, outermost in (("the outermost mentions themselves", True), ("the innermost mentions themselves", False)):
        scored = [score(g, [apart(m, outermost=outermost) for m in g]) for g in gold]
        rows.append((name, _mean(s[2] for s in scored), None, 100.0, _mean(s[1] for s in scored), None, None))
    best = _mean(100 * sum(map(flat_ceiling, g)) / sum(map(len, g)) for g in gold)
    note = (
        f"{system.seeds} seeds, each with its own corpus of {system.sentences} training sentences and weights; "
        f"{HELD_OUT} test sentences; ± is the standard deviation over seeds. "
        f"No flat tagger can recall more than {best} %, the most mentions that do not overlap."
    )
    columns = ("tagger", "F1 %", "±", "precision %", "recall %", "F1 % with unseen names", "± ")
    return Table("Nested mentions", columns, rows, note)


def _recalls(gold: list, found: dict) -> Table:
    """Recall of the kinds of mentions that a flat tagger has to give up, and by length."""
    kinds: dict[str, Callable[[set[Mention]], set[Mention]]] = {"inside another": inside, "crossing": crossing}
    for low, high in LENGTHS:
        kinds[f"{low}–{high} tokens"] = lambda m, low=low, high=high: {x for x in m if low <= x[2] - x[1] <= high}
    rows = []
    for name, runs in found.items():
        cells = []
        for pick in kinds.values():
            wanted = [[pick(m) for m in g] for g in gold]
            hits = [sum(len(w & f) for w, f in zip(ws, fs, strict=True)) for ws, fs in zip(wanted, runs, strict=True)]
            cells.append(_mean(100 * h / sum(map(len, w)) for h, w in zip(hits, wanted, strict=True)))
        rows.append((name, *cells))
    counts = [round(mean(sum(len(pick(m)) for m in g) for g in gold)) for pick in kinds.values()]
    rows.append(("number of mentions", *counts))
    note = "Mean over seeds. Mentions longer than the stack are among the last."
    return Table("Recall by kind of mention, %", ("tagger", *kinds), rows, note)


def _gaps(gaps: list[tuple[float, list[tuple[float, ...]]]]) -> Table:
    rows = []
    for nesting, runs in gaps:
        flat, full, nested, best = zip(*runs, strict=True)
        gap = _spread(b - a for a, b in zip(flat, full, strict=True))
        rows.append((nesting, *map(_mean, (nested, best, flat, full)), *gap))
    columns = ("nesting", "inside another %", "flat ceiling %", "F1 % flat", "F1 % Pyramid", "gap", "±")
    note = "Flat is taught the outermost mentions; Pyramid has the inverse. Crossing pairs grow along with nesting."
    return Table("The gap grows with nesting", columns, rows, note)


def _shares(test: Sequence[Sentence]) -> tuple[float, float]:
    """Percent of mentions inside another, and of the largest sets of mentions that do not overlap."""
    gold = [set(s.mentions) for s in test]
    total = sum(map(len, gold))
    return 100 * sum(len(inside(m)) for m in gold) / total, 100 * sum(map(flat_ceiling, gold)) / total


def _mean(values: Iterable[float]) -> float:
    return round(mean(values), 1)


def _spread(values: Iterable[float]) -> tuple[float, float]:
    held = list(values)
    return _mean(held), round(stdev(held), 1)
