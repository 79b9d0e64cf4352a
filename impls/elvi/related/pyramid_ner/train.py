"""Training of the stack and its rival, what is saved of them, and reading with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from elvi.errors import ElviError
from elvi.related.pyramid_ner.data import Sentence
from elvi.related.pyramid_ner.labels import Mention, apart, decode, encode, score, tag_set
from elvi.related.pyramid_ner.model import ALPHABET, MAX_CHARS, Batch, FlatTagger, Pyramid

BATCH, RATE, UNKNOWN = 16, 5e-3, 0.1
LETTERS = {letter: number for number, letter in enumerate(ALPHABET, 2)}


@dataclass(frozen=True)
class Shape:
    """What a tagger is: its words and tags, and how it is built. `flat` is "", "outermost" or "innermost"."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    hidden: int
    depth: int
    inverse: bool
    flat: str = ""


class Tagger:
    """A model with its vocabulary: sentences in, mentions out."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.numbers = {word: number for number, word in enumerate(shape.words, 1)}
        sizes = (len(shape.words) + 1, len(shape.tags), shape.hidden)
        self.model: nn.Module = FlatTagger(*sizes) if shape.flat else Pyramid(*sizes, shape.depth, shape.inverse)

    def batch(self, rows: Sequence[Sequence[str]]) -> Batch:
        length = torch.tensor([len(row) for row in rows])
        words = torch.zeros(len(rows), int(length.max()), dtype=torch.long)
        chars = torch.zeros(*words.shape, MAX_CHARS, dtype=torch.long)
        for b, row in enumerate(rows):
            words[b, : len(row)] = torch.tensor([self.numbers.get(word, 0) for word in row])
            for t, word in enumerate(row):
                spelled = [LETTERS.get(letter, 1) for letter in word[:MAX_CHARS]]
                chars[b, t, : len(spelled)] = torch.tensor(spelled)
        return Batch(words, chars, length)

    def rows(self, sentence: Sentence) -> list[list[int]]:
        """The tags that the model is taught, layer by layer."""
        size, tags = len(sentence.tokens), self.shape.tags
        if not self.shape.flat:
            return encode(sentence.mentions, size, self.shape.depth, tags)
        kept = apart(sentence.mentions, outermost=self.shape.flat == "outermost")
        return encode(kept, size, 0, tags)  # a stack of depth 0 is a flat tagger

    def read(self, rows: Sequence[Sequence[str]], batch: int = 128) -> list[set[Mention]]:
        """The mentions of each row of tokens."""
        self.model.eval()
        depth = 0 if self.shape.flat else self.shape.depth
        read = (r for at in range(0, len(rows), batch) for r in self.model.read(self.batch(rows[at : at + batch])))
        return [decode(layers, depth, self.shape.tags) for layers in read]

    def score(self, sentences: Sequence[Sentence]) -> tuple[float, float, float]:
        """Precision, recall and F1 in percent."""
        return score([set(s.mentions) for s in sentences], self.read([s.tokens for s in sentences]))


def shape_of(sentences: Sequence[Sentence], hidden: int, depth: int, inverse: bool, flat: str = "") -> Shape:
    """Words and tags come from the training set alone."""
    words = tuple(sorted({token for sentence in sentences for token in sentence.tokens}))
    return Shape(words, tag_set(s.mentions for s in sentences), hidden, depth, inverse, flat)


def fit(
    shape: Shape,
    train: Sequence[Sentence],
    valid: Sequence[Sentence],
    *,
    epochs: int,
    seed: int,
    checkpoint: Path | None = None,
    resume: bool = False,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Tagger:
    """Adam, the rate falling linearly to a tenth; the epoch with the best validation F1 is returned.

    What an epoch draws depends on the seed and its number alone, so that a resumed run ends as an unbroken one does.
    """
    torch.manual_seed(seed)
    tagger = Tagger(shape)
    taught = [tagger.rows(sentence) for sentence in train]
    optimizer = torch.optim.Adam(tagger.model.parameters(), RATE)
    best: dict = {"f1": -1.0, "model": tagger.model.state_dict()}
    first = 0
    if resume and checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["shape"] != json.dumps(asdict(shape)):
            raise ElviError(
                f"{checkpoint} was begun with other settings or data: leave out --resume, or choose another --out."
            )
        tagger.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        best, first = state["best"], state["epoch"]
    for epoch in range(first, epochs):
        torch.manual_seed(seed * 1000 + epoch)
        _rate(optimizer, RATE * (1 - 0.9 * epoch / epochs))
        tagger.model.train()
        for picked in torch.randperm(len(train)).split(BATCH):
            batch = tagger.batch([train[i].tokens for i in picked])
            batch.words.masked_fill_(torch.rand(batch.words.shape) < UNKNOWN, 0)  # so that 0 is taught, too
            loss = tagger.model.loss(batch, _padded([taught[i] for i in picked], batch.words.shape[1]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(tagger.model.parameters(), 5.0)
            optimizer.step()
        f1 = tagger.score(valid)[2]
        if f1 > best["f1"]:
            best = {"f1": f1, "model": {k: v.clone() for k, v in tagger.model.state_dict().items()}}
        if checkpoint:
            state = {"shape": json.dumps(asdict(shape)), "epoch": epoch + 1, "best": best}
            _store(checkpoint, state | {"model": tagger.model.state_dict(), "optimizer": optimizer.state_dict()})
        tick(epoch + 1, epochs)
    tagger.model.load_state_dict(best["model"])
    return tagger


def _rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _padded(rows: list[list[list[int]]], longest: int) -> list[Tensor]:
    """Per layer the tags [B, longest - d] of all sentences, -100 where a sentence has none."""
    layers = []
    for d in range(max(map(len, rows))):
        y = torch.full((len(rows), longest - d), -100)
        for b, row in enumerate(rows):
            if d < len(row):
                y[b, : len(row[d])] = torch.tensor(row[d])
        layers.append(y)
    return layers


def _store(path: Path, state: dict) -> None:
    """Write a checkpoint; an interruption leaves the one before it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def save(tagger: Tagger, path: Path) -> None:
    """Half-precision weights with vocabulary and tags in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in tagger.model.state_dict().items()}
    save_file(weights, path, metadata={"shape": json.dumps(asdict(tagger.shape))})


def load(path: Path) -> Tagger:
    """Raises ElviError when the file is missing or was not written by `save`."""
    try:
        with safe_open(path, "pt") as file:
            held = json.loads(file.metadata()["shape"])
            tagger = Tagger(Shape(**{k: tuple(v) if isinstance(v, list) else v for k, v in held.items()}))
            tagger.model.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ElviError(f"{path} was asked for, but holds no weights of a Pyramid ({error}): train some.") from error
    return tagger
