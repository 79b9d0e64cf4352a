"""The experiment of the page: error against missing rate of T2DR, of simpler fusions and of T2DR without a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import mean, stdev
from typing import TYPE_CHECKING

import torch

from elvi.related import Table
from elvi.related.t2dr.data import MODALITIES, Samples, corpus, drop_frames, drop_modalities, without
from elvi.related.t2dr.train import Fusion, fit

if TYPE_CHECKING:
    from elvi.related.t2dr import T2DR

HELD_OUT, TEST_SEED = 1000, 10_000  # frames and modalities are dropped with other seeds than in training
RATES = tuple(round(0.1 * i, 1) for i in range(10))
BETWEEN = tuple(round(0.1 * i, 1) for i in range(8))
RIVALS = ("T2DR", "late fusion", "zeros, attention", "mean imputation, attention")
ABLATIONS = ("hard mask", "no prediction", "equal weights")
FULL = "attention, trained on full data"
SUBSETS = tuple(kept for size in (1, 2, 3) for kept in combinations(MODALITIES, size))


def bench(system: T2DR, tick: Callable[[int, int], None]) -> list[Table]:
    """Each seed has its own data and weights; all models of a seed see the same samples and the same gaps."""
    names = (*RIVALS, *ABLATIONS, FULL)
    trained: dict[str, list[Fusion]] = {name: [] for name in names}
    for seed in range(system.seeds):
        train = corpus("train", system.samples, seed)
        how = {"hidden": system.hidden, "epochs": system.epochs, "seed": seed}
        for i, name in enumerate(names):
            kind = "zeros, attention" if name == FULL else name
            trained[name].append(fit(kind, train, missing=name != FULL, **how))
            tick(seed * len(names) + i + 1, system.seeds * len(names))
    tests = [corpus("test", HELD_OUT, seed) for seed in range(system.seeds)]
    frames = [[drop_frames(test, rate, _draw(seed, rate)) for rate in RATES] for seed, test in enumerate(tests)]
    whole = [[drop_modalities(test, rate, _draw(seed, rate)) for rate in BETWEEN] for seed, test in enumerate(tests)]
    fixed = [[without(test, tuple(set(MODALITIES) - set(kept))) for kept in SUBSETS] for test in tests]
    inside, between, subsets = (
        {name: _errors(of, cases) for name, of in trained.items()} for cases in (frames, whole, fixed)
    )
    about = (
        f"MAE on [-3, 3], mean of {system.seeds} seeds with data of their own ({system.samples} for training and "
        f"{HELD_OUT} for test). The area is the mean over the rates; ± is the deviation over seeds of the difference "
        "to T2DR on the same seed."
    )
    return [
        _curve("Error when frames are missing, by rate", RATES, inside, about),
        _curve("Error when modalities are missing, by rate", BETWEEN, between, about),
        _fixed(subsets),
        _parts(inside, between, subsets),
        _scores(trained, [row[RATES.index(0.5)] for row in frames]),
    ]


def _draw(seed: int, rate: float) -> torch.Generator:
    return torch.Generator().manual_seed(TEST_SEED + 100 * seed + round(10 * rate))


def _errors(fusions: Sequence[Fusion], cases: Sequence[Sequence[Samples]]) -> list[list[float]]:
    """MAE of each seed in each case."""
    return [[fusion.error(case) for case in row] for fusion, row in zip(fusions, cases, strict=True)]


def _curve(title: str, rates: tuple[float, ...], errors: dict, note: str) -> Table:
    rows = []
    for name in RIVALS:
        rows.append((name, *map(_mean, zip(*errors[name], strict=True)), *_beside(errors, name)))
    gaps = [_mean(b) - _mean(a) for a, b in zip(*(zip(*errors[n], strict=True) for n in RIVALS[:2]), strict=True)]
    won = sum(gap >= 0 for gap in gaps)
    note += (
        f" T2DR does no worse than late fusion at {won} of {len(rates)} rates; "
        f"the gap is {gaps[0]:.3f} at rate {rates[0]:g}, at most {max(gaps):.3f} "
        f"(rate {rates[gaps.index(max(gaps))]:g}) and {gaps[-1]:.3f} at rate {rates[-1]:g}."
    )
    return Table(title, ("fusion", *(f"{rate:g}" for rate in rates), "area", "above T2DR"), rows, note)


def _beside(errors: dict, name: str) -> tuple[float, str | None]:
    """Mean error, and how far above that of T2DR on the same seed, with the deviation of this difference over seeds."""
    areas, ours = ([mean(run) for run in errors[n]] for n in (name, RIVALS[0]))
    above = [a - b for a, b in zip(areas, ours, strict=True)]
    return _mean(areas), None if name == RIVALS[0] else f"{mean(above):+.3f} ± {stdev(above):.3f}"


def _fixed(errors: dict) -> Table:
    rows = [(name, *map(_mean, zip(*errors[name], strict=True))) for name in RIVALS]
    note = "MAE, all frames of the named modalities present, the others absent."
    return Table("Error by modalities present", ("fusion", *map(" + ".join, SUBSETS)), rows, note)


def _parts(inside: dict, between: dict, subsets: dict) -> Table:
    """T2DR against itself without a part, and against a fusion that never saw anything missing."""
    full = {name: [run[:1] for run in runs] for name, runs in inside.items()}
    rows = []
    for name in ("T2DR", *ABLATIONS, FULL):
        rows.append((name, *(cell for errors in (inside, between, subsets, full) for cell in _beside(errors, name))))
    columns = ["model"]
    for what in ("frames", "modalities", "subsets", "nothing missing"):
        columns += [what, "above T2DR"]
    note = "Mean MAE over the rates or subsets of the tables above, and the difference to T2DR on the same seed."
    return Table("What each part does", tuple(columns), rows, note)


def _scores(trained: dict[str, list[Fusion]], cases: list[Samples]) -> Table:
    rows = []
    for name in RIVALS:
        cells = []
        for fusion, case in zip(trained[name], cases, strict=True):
            said, y = fusion.read(case)[0], case.target
            pearson = torch.corrcoef(torch.stack([said, y]))[0, 1]
            seven = (said.clamp(-3, 3).round() == y.round()).float().mean()
            cells.append((float(pearson), 100 * float(seven), 100 * float(((said >= 0) == (y >= 0)).float().mean())))
        rows.append((name, *map(_mean, zip(*cells, strict=True))))
    note = "Acc-7: rounded to -3 … 3. Acc-2: negative against not negative."
    return Table("Other scores at half of the frames", ("fusion", "Pearson", "Acc-7 %", "Acc-2 %"), rows, note)


def _mean(values: Sequence[float]) -> float:
    return round(mean(values), 3)
