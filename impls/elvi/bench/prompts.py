"""The text prompts that speculation is measured on: real English, kinds taking turns, none of it used in training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Prompt:
    """kind: what it asks for ("summarize", "code", ...); source: of the passage that it quotes, if it quotes one."""

    kind: str
    source: str | None
    text: str


def prompts() -> list[Prompt]:
    """All of them, in a fixed order whose beginning is mixed too."""
    return [Prompt(**row) for row in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))]
