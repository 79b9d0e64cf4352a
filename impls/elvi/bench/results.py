"""Results files, `results/<hardware-id>/<model>/<technique-id>.json`: what `elvi bench` writes (schema 1).

A file holds one technique on one model and machine. Its provenance says where the numbers come from: `hardware`,
`versions`, `commit` (null outside a git checkout), `date`, `command`, `model` and `protocol`. Then come the
measurements, one Cell each: `baseline` (the unmodified model, {} asked), `cells` (one per value of the field that the
technique sweeps) and `random` (random selection of as many tokens, rows or frames as the technique kept; empty where
that makes no sense).

Units are in the names: `_s` seconds, `_bytes` bytes, `_ratio` technique / baseline, `_share` of the baseline's visual
tokens. While a sweep is under way its finished cells are in `<technique-id>.json.partial`; the file itself is only ever
complete.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from elvi.errors import ElviError

SCHEMA = 1


class ResultsError(ElviError):
    """A results file that cannot be read, continued or written."""


class Spread(TypedDict):
    """Median and quartiles of n repeats. A ratio is the median of ratios of pairs measured one after the other."""

    median: float
    q1: float
    q3: float
    n: int


class Quality(TypedDict):
    """Answers that are right word for word: `correct`, `of` and `accuracy` over questions, which `by_kind` splits.

    captions: the same over the sentences of captions, one per second of the clip. The first token of an answer comes
    from the prefill itself, so what is done to the cache afterwards shows in captions, hardly in one-word answers.
    """

    correct: int
    of: int
    accuracy: float
    by_kind: dict[str, dict[str, int]]
    captions: dict[str, float]


class Speculation(TypedDict):
    """Drafting, of a plan that drafts. Counts are over all answers, spreads over the timed repeats.

    accepted_histogram: rounds that accepted 0, 1, 2, ... drafted tokens; per round: drafted, accepted (without the
    target's own token) and emitted tokens. Shares of the decoding time: drafting, going between tokenizers, verifying;
    the rest is the loop. draft_start_s: the drafter reads the prompt. draft_cost (c): of a drafted token, and
    verify_cost (v): of a verification, in plain decoding steps. modelled_speedup = emitted / (drafted c + v) per round;
    decode_speedup: of decoding, the drafter's start included; speedup: from the clip to the last token.
    """

    accepted_histogram: list[int]
    drafted_per_round: float
    accepted_per_round: float
    tokens_per_round: float
    draft_share: Spread
    bridge_share: Spread
    verify_share: Spread
    draft_start_s: Spread
    draft_cost: Spread
    verify_cost: Spread
    modelled_speedup: Spread
    decode_speedup: Spread
    speedup: Spread


class Cell(TypedDict):
    """One setting. `plan` is read back from the live run. Means are over clips; spreads are over timed repeats.

    same_answers: answers that are the unmodified model's token for token (null in older files). kept_share: visual
    tokens in the cache after the prompt (mean over layers and heads) / the same of the baseline. select_s: time spent
    choosing what to keep. kv_far_bytes: held in a second tier; kv_read_bytes: of either tier read per decoding forward
    (both missing in older files). forwards: decoding forwards; acceptance_length: tokens per decoding forward, null
    unless the plan drafts. Random cells are not timed: their times are null. The baseline's ratios compare it with
    itself: the noise of the machine.
    """

    setting: dict[str, Any]
    plan: list[str]
    lossless: bool
    quality: Quality
    same_answers: dict[str, int] | None
    visual_tokens: dict[str, float]
    kept_share: float
    kv_bytes: float
    kv_ratio: float
    kv_far_bytes: float
    kv_read_bytes: float
    kv_read_ratio: float
    ttft_s: Spread | None
    ttft_ratio: Spread | None
    tpot_s: Spread | None
    tpot_ratio: Spread | None
    select_s: Spread | None
    forwards: float
    acceptance_length: float | None
    speculation: Speculation | None


class Heads(TypedDict):
    """Which heads are of which kind, of a technique that tells two kinds of heads apart.

    what: the setting and the prompt; names: of kind 0 and of kind 1; grid: the kind of each head, one row per layer.
    """

    what: str
    names: list[str]
    grid: list[list[int]]


class Results(TypedDict):
    """A whole file; see the top of this module. `heads` is there only if the technique tells kinds of heads apart."""

    schema: int
    technique: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    date: str
    command: str
    model: dict[str, Any]
    protocol: dict[str, Any]
    baseline: Cell | None
    cells: list[Cell]
    random: list[Cell]
    heads: NotRequired[Heads]


SAME = ("technique", "hardware", "versions", "commit", "model", "protocol")


def read(path: Path) -> Results:
    """A results file. Raises ResultsError when it is not JSON or of another schema version."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read as results ({error}): delete it and measure again.") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise ResultsError(
            f"{path} has schema version {found}, and this version of elvi reads {SCHEMA}: "
            "move it away and measure again, or use the version of elvi that wrote it."
        )
    return data


def resume(path: Path, fresh: Results) -> Results:
    """The measurements of an earlier run of the same sweep, or `fresh` when there is none.

    Raises ResultsError when the earlier file was measured under other conditions, which must not be mixed.
    """
    earlier = next((file for file in (partial(path), path) if file.is_file()), None)
    if earlier is None:
        return fresh
    data = read(earlier)
    for key in SAME:
        if data[key] != fresh[key]:
            raise ResultsError(
                f"{earlier} cannot be resumed, its {key} was {data[key]} and is now {fresh[key]}: "
                "run without --resume to measure everything again."
            )
    return {**fresh, **{key: data[key] for key in ("baseline", "cells", "random")}}


def check_writable(path: Path) -> None:
    """Raise ResultsError, before hours are spent, unless a results file can be written at `path`."""
    if path.is_file():
        read(path)
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def save(path: Path, data: Results, *, done: bool) -> None:
    """Write the whole file or nothing: to its final place when done, else next to it as `.partial`."""
    target = path if done else partial(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(data, indent=1) + "\n")
        os.replace(unfinished, target)
        if done:
            partial(path).unlink(missing_ok=True)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise _unwritable(target, error) from error


def partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _unwritable(path: Path, error: OSError) -> ResultsError:
    remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another folder with --out"
    return ResultsError(f"{path} cannot be written ({error.strerror}): {remedy}.")
