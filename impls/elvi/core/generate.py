"""From a clip and a question to an answer: select, encode, reduce, prefill, then draft - verify - accept - commit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from elvi.core.accept import Draft, Path, Sampler, accept_exact
from elvi.core.meter import Report
from elvi.core.pieces import Pieces, encode, reduce_encoded
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.views import Skip
from elvi.core.walk import walk
from elvi.errors import BudgetError, FitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from elvi.families.family import Family
    from elvi.media import Clip


@dataclass(frozen=True)
class Output:
    """The answer: its text, its token ids (the end token included when it was reached), and what it cost."""

    text: str
    tokens: list[int]
    report: Report


@torch.inference_mode()
def generate(
    family: Family,
    clip: Clip | None,
    question: str | None = None,
    *,
    plan: Plan | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    ignore_eos: bool = False,
) -> Output:
    """Answer a question about a clip (None: text only), at most `max_new_tokens` long.

    temperature 0 is greedy; above it tokens are sampled with the given seed. Raises PlanError, FitError or BudgetError
    before anything runs when the plan does not work.
    """
    plan = plan or Plan()
    question = question or (clip.question if clip else None)
    if not question:
        raise FitError("No question was asked, so there is nothing to answer: give one.")
    check_request(plan, max_new_tokens, temperature)
    plan.check(family)
    run = Run(family, plan)
    return answer(run, lambda: prefill(run, clip, question), max_new_tokens, temperature, seed, ignore_eos=ignore_eos)


def answer(
    run: Run,
    read: Callable[[], tuple[Clip | None, Tensor]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    *,
    ignore_eos: bool,
) -> Output:
    """Read the prompt (`read` returns what `prefill` does), then decode."""
    sampler, family = Sampler(temperature, seed), run.family
    with run.meter.time("first_token"):
        clip, logits = read()
        ids = [sampler.pick(logits)]
    kv_bytes = run.store.nbytes
    run.meter.cached_visual_tokens = run.cached_visual_tokens
    with run.meter.time("decode"):
        decode(run, ids, clip, sampler, max_new_tokens, set() if ignore_eos else family.eos)
    return Output(family.decode(ids), ids, _report(run, ids, kv_bytes))


def decode(run: Run, ids: list[int], clip: Clip | None, sampler: Sampler, max_new_tokens: int, stop: set[int]) -> None:
    """Draft, verify, accept, commit - until a stop token or the length is reached; `ids` grows in place.

    Plain decoding is the case in which nothing is drafted.
    """
    plan, meter = run.plan, run.meter
    judge = plan.accepts[0].judge(run, sampler) if plan.accepts else partial(accept_exact, sampler=sampler)
    drafting = None
    if plan.drafters:
        with meter.time("draft"), meter.time("draft_start"):
            drafting = plan.drafters[0].start(run, clip, sampler)
    while len(ids) < max_new_tokens and ids[-1] not in stop:
        draft, limit = Draft(), run.depth(max_new_tokens - len(ids) - 1)
        if drafting is not None and limit > 0:
            with meter.time("draft"):
                draft = drafting.propose(ids, limit)
        with meter.time("verify"):
            path = _before_stop(judge(draft, verify(run, ids[-1], draft)), draft, stop)
        run.commit([0, *(node + 1 for node in path.nodes)])
        ids += [*(draft.ids[node] for node in path.nodes), path.next]
        meter.round(len(draft), len(path.nodes))
        if drafting is not None and limit > 0:
            with meter.time("draft"):
                drafting.heard(path)


def prefill(run: Run, clip: Clip | None, question: str) -> tuple[Clip | None, Tensor]:
    """Read the prompt into the cache. Returns the steps that were looked at and the logits [V] of the first token."""
    family, meter = run.family, run.meter
    if clip is not None:
        clip = _select_frames(run, clip, question)
    if clip is not None and run.plan.streams:
        pieces = Pieces(run)
        for step in range(len(family.one_per_step(clip))):
            pieces.read(family.take_steps(clip, np.array([step])))
        return clip, pieces.ask(question)
    encoding, slots, visual = None, None, None
    if clip is not None:
        with meter.time("encode"):
            encoding = encode(run, clip)
        slots, visual = encoding.slots, family.project(reduce_encoded(run, encoding, clip, question))
    with meter.time("prefill"):
        prompt = family.prompt(question, clip, slots)
        run.extend(prompt.layout)
        run.asked(question, prompt.question_rows)
        run.clip = clip
        if encoding is not None and run.plan.tower_layers:
            run.tower = encoding.tower.spread(prompt.layout.visual.nonzero()[:, 0], len(prompt.layout))
        hidden = walk(prompt.fill(visual), run)
        logits = family.head(hidden[-1:])[0]
    run.commit()
    run.phase = "answer"
    return clip, logits


def _select_frames(run: Run, clip: Clip, question: str) -> Clip:
    with run.meter.time("frames"):
        clip = run.family.steps(clip)
        for selector in run.plan.selectors:
            clip = run.family.take_steps(clip, selector.select_frames(run.family.one_per_step(clip), question))
        for resizer in run.plan.resizers:
            clip = run.family.resized(clip, resizer.resize(run.family.one_per_step(clip), question))
    return clip


def verify(run: Run, last: int, draft: Draft) -> Tensor:
    """One forward over the last emitted token and a draft: logits [n+1, V]. The rows stay an uncommitted tail."""
    return forward(run, [last, *draft.ids], [0, *draft.depths], None if draft.is_chain else draft.mask())


def forward(
    run: Run, ids: list[int], depths: list[int], tree: Tensor | None = None, skip: Skip | None = None
) -> Tensor:
    """Logits [n, V] after each of the new tokens; their rows join the uncommitted tail of the cache.

    depths [n]: how many places each token stands after the next committed one (siblings share a place); tree bool
    [n, T]: which of the last T slots, the new ones included, each token may read (None: all before it); skip: what the
    model passes by while it drafts for itself; such rows have to be rolled back.
    """
    depth = torch.tensor(depths, device=run.family.device)
    run.skip = skip
    run.tree = None if tree is None else tree.to(run.family.device)
    tokens = run.family.text_tokens(
        torch.tensor(ids, device=run.family.device), run.next_position + depth, run.next_row + depth
    )
    return run.family.head(walk(tokens, run))


def _before_stop(path: Path, draft: Draft, stop: set[int]) -> Path:
    """The path cut at its first stop token, which then is the last one emitted."""
    for place, node in enumerate(path.nodes):
        if draft.ids[node] in stop:
            return Path(path.nodes[:place], draft.ids[node])
    return path


def check_request(plan: Plan, max_new_tokens: int, temperature: float) -> None:
    """Raise BudgetError for a length or temperature that cannot be."""
    if max_new_tokens < 1:
        raise BudgetError(f"max_new_tokens={max_new_tokens} leaves no token to generate: use 1 or more.")
    if temperature < 0:
        raise BudgetError(f"temperature={temperature} is negative: use 0 (greedy) or more.")
    for accept in plan.accepts:
        if accept.greedy_only and temperature > 0:
            raise BudgetError(
                f"{type(accept).__name__} relaxes greedy decoding and says nothing of sampling, but temperature="
                f"{temperature} was asked for: use temperature 0."
            )


def _report(run: Run, ids: list[int], kv_bytes: int) -> Report:
    meter = run.meter
    seconds = meter.seconds
    layers = meter.layer_visual_tokens
    visual = {
        **meter.visual_tokens,
        "prefill_mean": sum(layers) / run.family.num_layers,
        "cache_mean": meter.cached_visual_tokens,
    }
    return Report(
        plan=[repr(technique) for technique in run.plan.techniques],
        lossless=run.plan.lossless,
        model=run.family.name,
        attention=run.family.attention_kernel,
        visual_tokens={seam: float(count) for seam, count in visual.items()},
        prompt_tokens=len(run.layout),
        generated_tokens=len(ids),
        kv_bytes=kv_bytes,
        kv_bytes_end=run.store.nbytes,
        kv_far_bytes=run.store.far_bytes,
        kv_read_bytes=meter.kv_read_bytes / meter.forwards if meter.forwards else None,
        forwards=meter.forwards,
        drafted=meter.drafted,
        accepted=meter.accepted,
        acceptance_length=(len(ids) - 1) / meter.forwards if meter.forwards else None,
        ttft_s=seconds["first_token"],
        tpot_s=seconds["decode"] / (len(ids) - 1) if len(ids) > 1 else None,
        frames_s=seconds.get("frames", 0.0),
        encode_s=seconds.get("encode", 0.0),
        select_s=seconds.get("select", 0.0),
        prefill_s=seconds["prefill"],
        draft_s=seconds.get("draft", 0.0),
        draft_start_s=seconds.get("draft_start", 0.0),
        bridge_s=seconds.get("bridge", 0.0),
        verify_s=seconds.get("verify", 0.0),
        flops=meter.prefill_flops + meter.tower_flops,
    )
