"""Pyramid: one flat tagging layer per length of mention, so that nested and overlapping mentions never compete.

Wang et al., ACL 2020, 2020.acl-main.525. Layer d sees every span of d + 1 tokens as one position, because each step up
merges two neighbours; a mention of n tokens is tagged on layer n - 1 only. An inverse pyramid hands what the long spans
found back to the short ones. Mentions longer than the stack are runs of tags on its top layer.

(R) The corpora of the paper need a licence or a download, so sentences come from a seeded grammar with nested, crossing
and long mentions; sizes, rates and the number of epochs are ours as well. The paper was read by way of its abstract and
of the behaviour of the official code, which has no licence: nothing of it is used.

Where we differ:
- The directions of each BiLSTM start at the true ends of a sentence, so that tags do not depend on what it is batched
  with; for the same reason the inverse pyramid starts from zeros at the top of every sentence, not of the batch.
- Spans are continued by I tags on the top layer only, where they are taught. Lower layers were never shown any.
- Types and words come from the training set alone. The best epoch is chosen on validation sentences.
- Adam instead of SGD, smaller sizes (hidden 64, 8 layers) and no language model under the stack.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from elvi.errors import ElviError, check_range
from elvi.related import Table

if TYPE_CHECKING:
    from elvi.related.pyramid_ner.train import Tagger

PROMPT = "Karlo Bank envoy Mirven Tador praised the lawyer of the union of Nelrho university on Monday ."
WEIGHTS = Path(__file__).parent / "weights" / "pyramid.safetensors"
FRESH = 200


@dataclass(frozen=True)
class PyramidNER:
    """Nested mentions of a sentence. `weights` is a file of `elvi train`; empty for the shipped ones.

    The other fields shape training: `depth` (D) + 1 layers of width `hidden` (H), with the `inverse` pyramid or
    without; a corpus of `sentences` in which a mention holds another with chance `nesting` and a sentence holds a
    crossing pair with chance `crossing`. Raises BudgetError for values out of range.
    """

    weights: str = ""
    depth: int = 7
    hidden: int = 64
    inverse: bool = True
    nesting: float = 0.5
    crossing: float = 0.08
    sentences: int = 1000
    epochs: int = 12
    seed: int = 0
    seeds: int = 3

    prompt: ClassVar[str | None] = "Nelrho university praised Mirven Tador ."

    def __post_init__(self) -> None:
        for field, low, high in (("depth", 0, 63), ("nesting", 0, 0.9), ("crossing", 0, 1)):
            check_range(self, field, low, high)
        for field in ("hidden", "sentences", "epochs", "seeds"):
            check_range(self, field, 2, float("inf"))

    def run(self, prompt: str | None) -> list[Table]:
        """The mentions of a sentence, and the scores on fresh sentences where the shipped weights are used."""
        from elvi.related.pyramid_ner.train import load

        tagger = load(Path(self.weights) if self.weights else WEIGHTS)
        tokens = re.findall(r"\w+|[^\w\s]", PROMPT if prompt is None else prompt)
        if not tokens:
            raise ElviError("Mentions were asked for, but the prompt holds no words: give a sentence.")
        found = sorted(tagger.read([tokens])[0], key=lambda m: (m[1], -m[2], m[0]))
        top = tagger.shape.depth
        rows = [(kind, " ".join(tokens[s:e]), f"[{s}, {e})", min(e - s - 1, top)) for kind, s, e in found]
        note = f"Sentence: {' '.join(tokens)}"
        tables = [Table("Mentions found", ("type", "mention", "tokens", "layer"), rows, note)]
        return tables if self.weights else [*tables, self._scores(tagger)]

    def _scores(self, tagger: Tagger) -> Table:
        from elvi.related.pyramid_ner.data import corpus

        rows = []
        for split, name in (("test", "names seen in training"), ("unseen", "other names")):
            fresh = corpus(split, FRESH, self.nesting, self.crossing, self.seed)
            rows.append((name, *(round(value, 1) for value in tagger.score(fresh))))
        return Table(f"Scores on {FRESH} fresh sentences", ("sentences", "precision %", "recall %", "F1 %"), rows)

    def bench(self, tick: Callable[[int, int], None]) -> list[Table]:
        """Taggers of one encoder over `seeds` corpora, and the gap between flat and stacked as nesting grows."""
        from elvi.related.pyramid_ner.bench import bench

        return bench(self, tick)

    def train(self, out: Path, data: Path | None, *, resume: bool, tick: Callable[[int, int], None]) -> None:
        """Write `pyramid.safetensors` to `out`, from the grammar or from `data`.

        `data` is a JSON file; a valid.json beside it decides between epochs, else every tenth sentence of it.
        """
        from elvi.related.pyramid_ner.data import corpus, read
        from elvi.related.pyramid_ner.labels import known, spans
        from elvi.related.pyramid_ner.train import fit, save, shape_of

        if data is None:
            drawn = (("train", self.sentences), ("valid", self.sentences // 5))
            train, valid = (corpus(split, size, self.nesting, self.crossing, self.seed) for split, size in drawn)
        elif (beside := data.with_name("valid.json")) != data and beside.exists():
            train, valid = read(data), read(beside)
        else:
            held = read(data)
            train, valid = [s for i, s in enumerate(held) if i % 10], held[::10]
        if not any(sentence.mentions for sentence in train):
            raise ElviError(
                f"{data} was to be trained on, but its training part holds no mentions: give a larger file."
            )
        shape = shape_of(train, self.hidden, self.depth, self.inverse)
        for kind in {kind for sentence in valid for kind in spans(sentence.mentions).values()}:
            known(kind, shape.tags)  # refuses labels that training says nothing about
        state = out / "pyramid.pt"
        how = {"epochs": self.epochs, "seed": self.seed, "checkpoint": state, "resume": resume, "tick": tick}
        save(fit(shape, train, valid, **how), out / "pyramid.safetensors")
