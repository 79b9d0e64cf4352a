"""Trait: choose the training data of a retriever by trying small chunks and keeping what helps the target.

Yu, Li, Chen and Shou, Findings of EMNLP 2025, doi 10.18653/v1/2025.findings-emnlp.948. More source data does not always
help a target domain. All sources are cut into equal chunks; Bayesian optimisation proposes chunks, a transfer-aware
evaluation decides whether each helps, helpful ones are added, and backtracking and pruning keep the evaluations few.

Only the abstract is public to us. Chunks, proposals, incremental adding, backtracking and pruning are the paper's; how
each is done is our reconstruction (R): the features, the Gaussian process (scikit-learn's) with a kernel over features
and one over sources, expected improvement over no gain, the evaluation (a few steps on the chunk and a replay of
accepted ones, then nDCG@10 on the target's dev queries), and the rules for going back and for pruning.

Where we differ:
- The retriever is one linear map of hashed words, and the sources are made up: 12 in place of BERRI's 40 or so. Real
  text stands beside them as an illustration.
- Few-shot only; nothing is pseudo-labelled.
- Acceptance asks for a gain on the dev queries, so with exact measurements quality hardly falls and going back has
  little to do (chunks of one batch, as the first ones, are measured apart and added together, which can cost a little).
  The experiment of going back therefore adds error to early gains.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from elvi.errors import ElviError, check_choice, check_range

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from elvi.related import Table


@dataclass(frozen=True)
class Trait:
    """Select chunks within a budget of evaluations and train a retriever on them.

    chunk: c, pairs in a chunk; share: evaluations per chunk there is; steps: training steps of one evaluation;
    threshold: delta, the gain in nDCG@10 a chunk must exceed; acquisition: ei (expected improvement), ucb (mean + one
    standard deviation) or random; prune, patience: m, rejections in a row that close a source; backtrack, check_every:
    w, accepted chunks between looks back; tolerance: rho, the loss that is put up with; batch: proposals evaluated from
    one model; final_steps, adapt_steps: of the last training, on all that was selected and on the target's own pairs;
    texts: folder with the packages of real text (empty: the made-up sources); ray: where batches are evaluated (empty:
    here). Raises BudgetError for values out of range.
    """

    chunk: int = 64
    share: float = 0.04
    steps: int = 30
    threshold: float = 0.0
    acquisition: str = "ei"
    prune: bool = True
    patience: int = 3
    backtrack: bool = True
    check_every: int = 4
    tolerance: float = 0.01
    batch: int = 1
    final_steps: int = 300
    adapt_steps: int = 5
    texts: str = ""
    ray: str = ""
    seed: int = 0

    prompt: ClassVar[str | None] = "q40 q39 q37"
    sweep: ClassVar[tuple[str, tuple[float, ...]]] = ("share", (0.02,))

    def __post_init__(self) -> None:
        check_choice(self, "acquisition", "ei", "ucb", "random")
        check_range(self, "share", 0.0, 1.0)
        for name in ("chunk", "patience", "check_every", "batch"):
            check_range(self, name, 1, float("inf"))
        for name in ("steps", "final_steps", "adapt_steps", "tolerance", "seed"):
            check_range(self, name, 0, float("inf"))

    def run(self, prompt: str | None) -> list[Table]:
        """Select, train and search the target's documents for the prompt (None: a test query); trains in seconds."""
        from elvi.related.trait import experiment

        return experiment.run(self, prompt)

    def bench(self, tick: Callable[[int, int], None]) -> list[Table]:
        """Selection against random, all data and the rest over 5 seeds; with `texts`, real text beside it."""
        from elvi.related.trait import experiment

        return experiment.bench(self, tick)

    def train(self, out: Path, data: Path | None, *, resume: bool, tick: Callable[[int, int], None]) -> None:
        """Write `out`/selection.json after every evaluation and `out`/retriever.safetensors at the end.

        data: any file in the folder that holds the packages of real text. Raises ElviError for a selection to resume
        that other settings made.
        """
        from safetensors.torch import save_file

        from elvi.related.trait import experiment
        from elvi.related.trait.parallel import mapper
        from elvi.related.trait.select import Selection, budget_of, final, select

        trait = replace(self, texts=str(data if data.is_dir() else data.parent)) if data else self
        settings = {name: value for name, value in asdict(trait).items() if name not in ("texts", "ray")}
        settings["real"] = bool(trait.texts)
        out.mkdir(parents=True, exist_ok=True)
        path = out / "selection.json"
        known = _gains(path, settings) if resume else []
        world, chunks, theta0 = experiment.prepare(trait)
        total = budget_of(trait, chunks) + 1

        def note(made: Selection) -> None:
            trials = [asdict(trial) for trial in made.trials]
            if len(trials) >= len(known):  # the ones before are in the file
                part = path.with_suffix(".partial")
                part.write_text(
                    json.dumps({"settings": settings, "selected": made.selected, "trials": trials}, indent=1)
                )
                part.replace(path)
            tick(len(trials), total)

        made = select(trait, chunks, world.target, theta0, known=known, note=note, mapper=mapper(trait.ray))
        theta = final(trait, chunks, made.selected, world.target, theta0)
        save_file({"theta": theta}, out / "retriever.safetensors")
        tick(total, total)


def _gains(path: Path, settings: dict[str, object]) -> list[float]:
    """What a stopped run measured."""
    try:
        data = json.loads(path.read_text())
        same, gains = data["settings"] == settings, [trial["gain"] for trial in data["trials"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ElviError(f"{path} is no selection to go on from: train without --resume.") from error
    if not same:
        raise ElviError(f"{path} was made with other settings: give the same ones, or train without --resume.")
    return gains
