"""Search for the sub-layers that a model may skip while it drafts for itself: `elvi search`.

Bayesian optimisation (Optuna's tree-structured Parzen estimator; the paper, arXiv:2309.08168, section 3.2, uses a
Gaussian process) over one yes or no for the attention and one for the MLP of every layer. What is maximised is the
speed-up of greedy decoding as it follows from counts,

    emitted tokens / (drafted tokens * c + verifications),

with c the share of the weights that a drafting step reads. It repeats exactly under a seed, where wall-clock time, the
paper's measure, does not. Every trial is written to the study file at once: a search can be stopped and resumed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from elvi.core.generate import generate
from elvi.core.plan import Plan
from elvi.core.views import Skip
from elvi.decode.draft_and_verify import DraftAndVerify
from elvi.errors import ElviError
from elvi.tiny import speech
from elvi.tiny.data import sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from elvi.families.family import Family
    from elvi.media import Clip

PROMPTS, NEW_TOKENS = 4, 32


@dataclass(frozen=True)
class Found:
    """The best sub-layers to skip, the speed-up that the counts predict for them, and how many trials were made."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    predicted_speedup: float
    trials: int

    @property
    def spec(self) -> str:
        """As it is written on the command line."""
        skips = ("+".join(map(str, layers)) or "none" for layers in (self.attention, self.mlp))
        return "draft-and-verify:skip_attention={},skip_mlp={}".format(*skips)


def search(
    layers: int,
    objective: Callable[[Skip], float],
    *,
    trials: int,
    seed: int,
    study: Path | None = None,
    name: str = "skips",
    tick: Callable[[], None] = lambda: None,
) -> Found:
    """The best of `trials` skip sets, those that `study` already holds included. Raises ElviError without optuna."""
    try:
        import optuna
    except ImportError as error:
        raise ElviError("The search needs optuna, which is not installed: `pip install 'elvi[search]'`.") from error
    optuna.logging.set_verbosity(logging.ERROR)
    storage = None
    if study is not None:
        study.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(study)))
    made = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    done = len(made.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
    made.sampler = optuna.samplers.TPESampler(seed=seed + done, n_startup_trials=10)
    if not made.trials:
        for first in guesses(layers):
            made.enqueue_trial(_parameters(first, layers))

    def value(trial: Any) -> float:
        chosen = [trial.suggest_categorical(key, [False, True]) for key in _parameters(Skip(), layers)]
        found = objective(_skip(chosen, layers))
        tick()
        return found

    for _ in range(done):
        tick()
    made.optimize(value, n_trials=max(0, trials - done))
    best = _skip(list(made.best_params.values()), layers)
    return Found(tuple(sorted(best.attention)), tuple(sorted(best.mlp)), made.best_value, max(trials, done))


def guesses(layers: int) -> list[Skip]:
    """Where the search starts: nothing, the attention of the upper half, every second layer, all but the ends."""
    upper, second = frozenset(range(layers // 2, layers)), frozenset(range(1, layers, 2))
    middle = frozenset(range(1, layers - 1))
    return [Skip(), Skip(upper), Skip(second), Skip(second, second), Skip(middle, middle)]


def random_search(layers: int, objective: Callable[[Skip], float], *, trials: int, seed: int) -> float:
    """The best of as many sets drawn at random, each sub-layer skipped with chance one half."""
    random = np.random.default_rng(seed)
    return max(objective(_skip(random.integers(0, 2, 2 * layers).astype(bool).tolist(), layers)) for _ in range(trials))


def predicted_speedup(family: Family, skip: Skip) -> float:
    """Of greedy decoding with these sub-layers skipped, on a few prompts that nothing is measured on."""
    text = {field: "+".join(map(str, sorted(part))) or "none" for field, part in _fields(skip)}
    plan, cost = Plan(DraftAndVerify(**text)), draft_cost(family, skip)
    emitted = spent = 0.0
    for clip, question in prompts(family):
        report = generate(family, clip, question, plan=plan, max_new_tokens=NEW_TOKENS, ignore_eos=True).report
        emitted += report.generated_tokens - 1
        spent += sum(report.drafted) * cost + report.forwards
    return emitted / spent


def prompts(family: Family) -> list[tuple[Clip | None, str]]:
    """Captions of training clips, or instructions for a model that reads text only."""
    if family.image_processor is None:
        return [(None, text) for text in speech.instructions(0)[:PROMPTS]]
    clips = [sample(number, "caption", 4) for number in range(PROMPTS)]
    return [(clip, clip.question or "") for clip in clips]


def draft_cost(family: Family, skip: Skip) -> float:
    """Share of the weights that a drafting step reads, the output head included."""
    read = whole = float(family.model.get_output_embeddings().weight.numel())
    for index, layer in enumerate(family.text.layers):
        for part, skipped in ((layer.self_attn, skip.attention), (layer.mlp, skip.mlp)):
            size = sum(weight.numel() for weight in part.parameters())
            whole += size
            read += 0 if index in skipped else size
    return read / whole


def _fields(skip: Skip) -> list[tuple[str, frozenset[int]]]:
    return [("skip_attention", skip.attention), ("skip_mlp", skip.mlp)]


def _parameters(skip: Skip, layers: int) -> dict[str, bool]:
    return {f"{field} {layer}": layer in part for field, part in _fields(skip) for layer in range(layers)}


def _skip(chosen: list[bool], layers: int) -> Skip:
    attention, mlp = chosen[:layers], chosen[layers:]
    return Skip(*(frozenset(i for i, skipped in enumerate(part) if skipped) for part in (attention, mlp)))
