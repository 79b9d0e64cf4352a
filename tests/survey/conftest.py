from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

RECORD = """\
name: FastThing
title: 'FastThing: Half the Tokens'
authors:
- Ada Lovelace
- Alan Turing
year: 2024
month: null
first_posted: "2024-03"
venue: eccv
venue_type: conference
arxiv: "2403.06764"
doi: "10.1007/978-3-031"
openreview: null
url: https://arxiv.org/abs/2403.06764
links:
- kind: official
  url: https://github.com/a/b
placements:
- stage: prefill
  category: token-compression
  subcategory: attention-guided
  source: figure3
training_free: true
modality:
- image
in_survey: true
summary: Drops half of the tokens.
implementation:
  status: runnable
claims:
- number: 57
  unit: '%'
  what: FLOPs left
  model: llava
  setting: half dropped
  source: Table 1
"""
OTHER = """\
title: Another paper
authors:
- Grace Hopper
year: 2025
venue: arxiv
venue_type: preprint
url: https://arxiv.org/abs/2501.00001
placements:
- stage: decode
  category: kv-cache
  source: ours
modality:
- text
in_survey: false
summary: Something else.
implementation:
  status: planned
  reason: Not written yet.
"""
TAXONOMY = {
    "stages": """\
prefill:
  title: Prefilling
  definition: Reads the prompt.
  test: Does it change the prompt?
  in_pipeline: true
  metric: ttft
  formula: time
  sources: {metric: Table 1}
  axes: {fewer: {title: Fewer, definition: Less.}}
  categories:
    token-compression:
      title: Token compression
      definition: Fewer tokens.
      test: Do tokens go?
      axis: fewer
      subcategories:
        attention-guided:
          title: Attention-guided
          definition: Attention ranks.
          test: Is attention read?
decode:
  title: Decoding
  definition: Writes the answer.
  test: Does it change a step?
  in_pipeline: true
  categories:
    kv-cache:
      title: KV cache
      definition: Fewer bytes.
      test: Do bytes go?
serve:
  title: Serving
  definition: Many requests.
  test: Does it need many?
  categories:
    staged: {title: Staged, definition: By stage., test: Are stages apart?}
""",
    "venues": "eccv: {title: ECCV, type: conference}\narxiv: {title: arXiv, type: preprint}\n",
    "models": """\
llava:
  title: LLaVA
  llm: Vicuna
  layers: 32
  hidden: 4096
  heads: 32
  kv_heads: 32
  head_dim: 128
  intermediate: 11008
  vocab: 32000
  source: [a page]
""",
    "hardware": "a100: {title: A100, peak_tflops: 312, bandwidth_gb_s: 2039, source: data sheet}\n",
    "benchmarks": "gqa: {title: GQA, modality: [image], source: a page}\n",
    "needs": "question: {title: Question, definition: The question is known.}\n",
    "metrics": "ttft: {title: TTFT, definition: Time to the first token., unit: s, source: Table 5}\n",
    "formulas": "time: {title: Time, latex: F/P, symbols: {F: work}, source: equation 3}\n",
    "serving": "sys: {title: Sys, paradigm: staged, record: other, mechanism: Splits., source: [a page]}\n",
    "relations": "builds-on: {title: builds on, definition: It takes up., test: Is it taken up?}\n",
    "frontiers": "next: {title: Next, definition: What next., open: Nobody did., source: a page, records: [other]}\n",
}
MODULE = '''\
"""Drops half of the tokens.

Where we differ: nowhere.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from elvi.core.facts import Fact


@dataclass(frozen=True)
class FastThing:
    """Ranks tokens once."""

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN, Fact.GRID})
    breaks: ClassVar = {Fact.GRID}
    layer: int = 2  # first layer on the survivors
    keep_ratio: float = 0.5
    heads: tuple[int, ...] = field(default=())
    model: str

    def reduce(self, tokens, seen):
        return tokens

    def _rank(self):
        return None
'''
FACTS = '''\
from enum import Enum


class Fact(Enum):
    """Facts."""

    GRID = "the tokens form a grid"
    QUESTION_KNOWN = "the question is known"
'''


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository without a problem: two records, one of them runnable."""
    write(tmp_path, {f"taxonomy/{name}.yaml": text for name, text in TAXONOMY.items()})
    write(tmp_path, {"catalog/fast-thing.yaml": RECORD, "catalog/other.yaml": OTHER})
    write(tmp_path, {"impls/elvi/core/facts.py": FACTS, "impls/elvi/prefill/fast_thing.py": MODULE})
    write(tmp_path, {"tests/prefill/test_fast_thing.py": ""})
    return tmp_path


@pytest.fixture
def put(tree: Path) -> Callable[[dict[str, str]], None]:
    """Write files into the tree."""
    return lambda files: write(tree, files)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The real repository."""
    return Path(__file__).parents[2]
