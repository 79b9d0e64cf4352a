"""What the table and early exit save and cost: one sentence, or the held-out ones.

Latency is of one sentence at a time, from its token ids to the classifier, all ways in turn on the same sentence.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from elvi.errors import ElviError
from elvi.related import Table
from elvi.related.skipbert import table as plot
from elvi.related.skipbert.data import read, split
from elvi.related.skipbert.model import Upper, shallow
from elvi.related.skipbert.train import Trained, load

if TYPE_CHECKING:
    from elvi.related.skipbert import SkipBERT

TIMED, REPEATS, SIZES, THRESHOLDS, DRAWS = (
    300,
    5,
    (0, 300, 3_000, 10_000, 30_000, 100_000),
    (0.7, 0.8, 0.9, 0.95, 1.0),
    1000,
)
Way = Callable[[Tensor], tuple[Tensor, int]]


@torch.inference_mode()
def climb(upper: Upper, u: Tensor, ids: Tensor, threshold: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits (B, classes) and the upper layers (B,) that each sentence took; it stops above `threshold` (R)."""
    h, mask, open_ = upper.enter(u), ids > 0, torch.arange(len(ids))
    logits, took = None, torch.zeros(len(ids), dtype=torch.long)
    for number, layer in enumerate(upper.layers):
        h, _ = layer(h, mask)
        made = upper.classify(number, h)
        logits = made.clone() if logits is None else logits.index_copy(0, open_, made)
        took[open_] = number + 1
        if threshold < 1 and number + 1 < len(upper.layers):
            on = made.softmax(-1).amax(-1) <= threshold
            if not on.any():
                break
            if not on.all():
                h, mask, open_ = h[on], mask[on], open_[on]
    return logits, took


def one(system: SkipBERT, text: str) -> list[Table]:
    """Every way on one sentence, the table opened from its folder or filled by the sentence itself."""
    trained = load(Path(system.weights) if system.weights else None)
    ids = trained.encode([text])
    if ids.shape[1] < 3:
        raise ElviError("The sentence is empty, so there is nothing to classify: give some words with --prompt.")
    upper = trained.uppers[str(system.layers)]
    rows = _table(system, trained, ids)
    ways = {
        "teacher": lambda x: (trained.teacher(x)[0], len(trained.teacher.layers)),
        "student, computed": lambda x: _ended(climb(upper, shallow(trained.local, x), x), trained.recipe.shallow),
        "student, from the table": lambda x: _ended(climb(upper, plot.only(rows, x)[0], x)),
        "from the table, early exit": lambda x: _ended(climb(upper, plot.only(rows, x)[0], x, system.exit_threshold)),
    }
    times, lines = _race(ways, [ids] * 20), []
    for name, way in ways.items():
        with torch.inference_mode():
            logits, layers = way(ids)
        lines.append((name, float(logits.softmax(-1)[0, 1]), layers, 1000 * statistics.median(times[name])))
    hits = plot.only(rows, ids)[1]
    note = f"{text!r}. Of its tri-grams {hits:.0%} are in the table of {rows.count:,} rows."
    return [Table("Sign of one sentence", ("way", "probability that it is positive", "layers run", "ms"), lines, note)]


def experiment(system: SkipBERT, tick: Callable[[int, int], None]) -> list[Table]:
    """Accuracy, latency, table size and early exit on the test split of the shipped sentences."""
    trained = load(Path(system.weights) if system.weights else None)
    parts = split(read())
    steps = 3 + len(SIZES)
    tick(0, steps)
    test, labels = trained.encode([text for text, _ in parts["test"]]), torch.tensor([y for _, y in parts["test"]])
    with torch.inference_mode():
        u, taught = shallow(trained.local, test), trained.teacher(test)[0]
    quality = _quality(trained, u, test, labels, taught)
    tick(1, steps)
    grams = plot.frequent(trained.encode([text for text, _ in parts["train"]]).numpy(), SIZES[-1])
    sizes = []
    for number, entries in enumerate(SIZES):
        sizes.append(_of_size(trained, grams[:entries], test, labels))
        tick(2 + number, steps)
    own = plot.Table(trained.stamp, trained.recipe.width, 3 * test.numel())
    with torch.inference_mode():
        plot.passive(own, trained.local, test)
    latency = _latency(trained, own, test[:TIMED], system.exit_threshold)
    tick(steps - 1, steps)
    exits = _exits(trained, own, u, test, labels)
    tick(steps, steps)
    return [
        quality,
        latency,
        exits,
        Table(*_SIZES, sizes, "Rows are of the train split, by frequency; test sentences are new."),
    ]


_SIZES = (
    "Accuracy of 4+4 from the table alone, by size",
    ("rows", "bytes", "tri-grams found", "accuracy without back-off", "accuracy with back-off"),
)


def _quality(trained: Trained, u: Tensor, test: Tensor, labels: Tensor, taught: Tensor) -> Table:
    right = {f"teacher, {trained.recipe.layers} layers": taught.argmax(-1) == labels}
    for name, upper in trained.uppers.items():
        right[f"student {trained.recipe.shallow}+{name}"] = climb(upper, u, test)[0].argmax(-1) == labels
    base = next(iter(right.values())).numpy()
    drawn = np.random.default_rng(0).integers(len(base), size=(DRAWS, len(base)))
    lines = []
    for name, hits in right.items():
        shares = hits.numpy()[drawn].mean(1) / base[drawn].mean(1)
        low, high = np.quantile(shares, (0.025, 0.975))
        lines.append(
            (name, float(hits.float().mean()), float(hits.float().mean() / base.mean()), float(low), float(high))
        )
    lines.append(
        ("always the commoner sign", float(max(labels.float().mean(), 1 - labels.float().mean())), None, None, None)
    )
    columns = ("network", "accuracy", "share of the teacher's", "2.5 %", "97.5 %")
    note = (
        f"{len(labels):,} held-out sentences, one training seed; the range is over {DRAWS:,} redraws of the sentences."
    )
    return Table("Accuracy kept", columns, lines, note)


def _latency(trained: Trained, own: plot.Table, test: Tensor, threshold: float) -> Table:
    S, rows = trained.recipe.shallow, {}
    ways: dict[str, Way] = {"teacher": lambda x: (trained.teacher(x)[0], 0)}
    for name, upper in trained.uppers.items():
        ways[f"{S}+{name} computed"] = lambda x, up=upper: _ended(climb(up, shallow(trained.local, x), x))
        ways[f"{S}+{name} from the table"] = lambda x, up=upper: _ended(climb(up, plot.only(own, x)[0], x))
        ways[f"{S}+{name} computed, exit"] = lambda x, up=upper: _ended(
            climb(up, shallow(trained.local, x), x, threshold)
        )
        ways[f"{S}+{name} from the table, exit"] = lambda x, up=upper: _ended(
            climb(up, plot.only(own, x)[0], x, threshold)
        )
    times = _race(ways, [row[row > 0][None] for row in test])
    against = {name: [a / b for a, b in zip(took, times["teacher"])] for name, took in times.items()}
    for name, ratios in against.items():
        q1, median, q3 = np.quantile(ratios, (0.25, 0.5, 0.75))
        G = int(name.split("+")[1][0]) if "+" in name else 0
        bound = None if not G or "exit" in name else (G if "table" in name else 3 * S + G) / trained.recipe.layers
        rows[name] = (name, 1000 * statistics.median(times[name]), float(median), float(q1), float(q3), bound)
    columns = ("way", "ms", "ratio to the teacher", "first quartile", "third quartile", "ratio of layer-tokens")
    note = (
        f"{len(test)} sentences, one at a time, the best of {REPEATS} on each; all tri-grams in the table "
        f"({own.count:,} rows, {own.nbytes:,} bytes), "
        f"exit above {threshold:g}. Layer-tokens: tri-grams triple the tokens of the lower layers, a table removes "
        "them; the ratio is (3S+G) or G over the layers of the teacher."
    )
    return Table("Latency, the table and early exit apart", columns, list(rows.values()), note)


def _exits(trained: Trained, own: plot.Table, u: Tensor, test: Tensor, labels: Tensor) -> Table:
    looked = plot.only(own, test)[0]
    lines = []
    for name, upper in trained.uppers.items():
        for threshold in THRESHOLDS:
            logits, took = climb(upper, looked, test, threshold)
            plain = climb(upper, u, test, threshold)[0]
            accuracy, same = (
                (logits.argmax(-1) == labels).float().mean(),
                (logits.argmax(-1) == plain.argmax(-1)).float().mean(),
            )
            change = float((logits - plain).abs().max())
            lines.append(
                (
                    f"{trained.recipe.shallow}+{name}",
                    threshold,
                    float(took.float().mean()),
                    float(accuracy),
                    float(same),
                    change,
                )
            )
    columns = (
        "student",
        "exit above",
        "upper layers, mean",
        "accuracy",
        "answers as computed",
        "largest change of a logit",
    )
    note = (
        "Rows from the table in half precision, next to the computed ones at the same threshold; 1 never exits early. "
        "A sentence whose probability rounds to the other side of the threshold stops at another layer."
    )
    return Table("Early exit, and outputs with and without the table", columns, lines, note)


def _of_size(trained: Trained, grams: np.ndarray, test: Tensor, labels: Tensor) -> tuple:
    with tempfile.TemporaryDirectory() as folder:
        table = plot.fill(
            plot.Table(trained.stamp, trained.recipe.width, len(grams), Path(folder)), trained.local, grams
        )
        upper, accuracy = trained.uppers[str(trained.recipe.students[0])], []
        for back_off in (False, True):
            u, hits = plot.only(table, test, back_off)
            accuracy.append(float((climb(upper, u, test)[0].argmax(-1) == labels).float().mean()))
        return table.count, table.nbytes, hits, *accuracy


def _table(system: SkipBERT, trained: Trained, ids: Tensor) -> plot.Table:
    if system.table:
        return plot.Table.open(Path(system.table), trained.stamp)
    rows = plot.Table(trained.stamp, trained.recipe.width, ids.numel())
    with torch.inference_mode():
        plot.passive(rows, trained.local, ids)
    return rows


def _ended(climbed: tuple[Tensor, Tensor], below: int = 0) -> tuple[Tensor, int]:
    return climbed[0], below + int(climbed[1].max())


@torch.inference_mode()
def _race(ways: dict[str, Way], sentences: list[Tensor]) -> dict[str, list[float]]:
    """Seconds of every way on each sentence, the best of some rounds of all ways in turn."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for ids in [sentences[0], *sentences]:  # the first warms up
        best = dict.fromkeys(ways, math.inf)
        for _ in range(REPEATS):
            for name, way in ways.items():
                start = time.perf_counter()
                way(ids)
                best[name] = min(best[name], time.perf_counter() - start)
        for name, took in best.items():
            times[name].append(took)
    return {name: took[1:] for name, took in times.items()}
