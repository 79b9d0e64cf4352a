"""What a run cost: seconds per stage, tokens per seam, bytes, forwards, and the FLOPs the shapes imply."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from elvi.families.family import Family


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked, so that a clock tells the truth."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass
class Meter:
    """Counts of one run. Stages: first_token (all of frames, encode, select, prefill) and decode (draft, verify)."""

    family: Family
    seconds: dict[str, float] = field(default_factory=dict)
    visual_tokens: dict[str, int] = field(default_factory=dict)
    layer_tokens: list[int] = field(default_factory=list)
    layer_visual_tokens: list[int] = field(default_factory=list)
    tower_flops: float = 0.0
    prefill_flops: float = 0.0
    cached_visual_tokens: float = 0.0
    forwards: int = 0
    kv_read_bytes: int = 0
    accepted: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to those of `stage`, once the device has done its work."""
        synchronise(self.family.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            synchronise(self.family.device)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def round(self, drafted: int, accepted: int) -> None:
        """One decoding forward verified so many drafted tokens and accepted so many of them."""
        self.forwards += 1
        self.drafted.append(drafted)
        self.accepted.append(accepted)

    def layer(self, tokens: int, visual: int, cached: int) -> None:
        """One decoder layer read that many tokens of the prompt, next to rows that were cached before."""
        self.layer_tokens.append(tokens)
        self.layer_visual_tokens.append(visual)
        self.prefill_flops += self.family.layer_flops(tokens, cached)


@dataclass(frozen=True)
class Report:
    """What one generation cost, with the units in the names.

    visual_tokens per seam: `encoded` by the tower, `reduced` before the language model, `prefill_mean` over its layers,
    `cache_mean` over layers and heads of the cache after the prompt. kv_bytes: that cache; kv_bytes_end: at the end;
    kv_far_bytes: what a second tier holds besides; kv_read_bytes: of either tier read per decoding forward, on average.
    forwards: decoding forwards of the target (the prefill is not one of them); acceptance_length: tokens emitted per
    such forward. select_s is also part of the stage in which it falls, draft_start_s (the drafter reads
    the prompt) and bridge_s (between two tokenizers) are part of draft_s. flops: of tower and prefill, as shapes imply,
    multiply and add counted apart. lossless: equal to the unmodified model by construction.
    """

    plan: list[str]
    lossless: bool
    model: str
    attention: str
    visual_tokens: dict[str, float]
    prompt_tokens: int
    generated_tokens: int
    kv_bytes: int
    kv_bytes_end: int
    kv_far_bytes: int
    kv_read_bytes: float | None
    forwards: int
    drafted: list[int]
    accepted: list[int]
    acceptance_length: float | None
    ttft_s: float
    tpot_s: float | None
    frames_s: float
    encode_s: float
    select_s: float
    prefill_s: float
    draft_s: float
    draft_start_s: float
    bridge_s: float
    verify_s: float
    flops: float

    def to_dict(self) -> dict:
        """Plain JSON types under stable names."""
        return asdict(self)
