"""The stack of flat layers with its inverse, the encoder below it, and a flat tagger on the same encoder.

Shapes: B sentences, T tokens, H width, C tags; layer d has T - d positions, of which a sentence of n tokens owns n - d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

WORDS, CHARS = 50, 16
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"-()&/%$"
MAX_CHARS = 16


@dataclass(frozen=True)
class Batch:
    """Word numbers [B, T] (0 unknown), characters [B, T, MAX_CHARS] (0 none, 1 unknown) and lengths [B]."""

    words: Tensor
    chars: Tensor
    length: Tensor


class ByLength(nn.Module):
    """A BiLSTM whose two directions each start at a true end of the row, so that padding is never read first."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.ahead, self.back = (nn.LSTM(inputs, hidden // 2, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        turned = length[:, None] - 1 - place  # [B, T]; its own inverse on the true places
        turned = torch.where(turned >= 0, turned, place)[..., None]
        back = self.back(x.gather(1, turned.expand_as(x)))[0]
        return torch.cat([self.ahead(x)[0], back.gather(1, turned.expand_as(back))], -1)  # [B, T, H]


class Encoder(nn.Module):
    """Word embedding and the ends of a BiLSTM over its characters, then a BiLSTM over the sentence."""

    def __init__(self, words: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.word = nn.Embedding(words, WORDS)
        self.char = nn.Embedding(len(ALPHABET) + 2, CHARS)
        self.spell = ByLength(CHARS, 2 * CHARS)
        self.read = ByLength(WORDS + 2 * CHARS, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: Batch) -> Tensor:
        kinds, which = torch.unique(batch.chars.flatten(0, 1), dim=0, return_inverse=True)  # spell each word once
        length = (kinds > 0).sum(1).clamp(min=1)
        spelled = self.spell(self.char(kinds), length)
        last = spelled[torch.arange(len(kinds), device=length.device), length - 1, :CHARS]
        ends = torch.cat([last, spelled[:, 0, CHARS:]], -1)[which].view(*batch.words.shape, -1)
        return self.read(self.dropout(torch.cat([self.word(batch.words), ends], -1)), batch.length)  # [B, T, H]


class Pyramid(nn.Module):
    """One flat layer per length of mention, all with the same weights; `inverse` adds the way back down."""

    def __init__(self, words: int, tags: int, hidden: int, depth: int, inverse: bool, dropout: float = 0.2) -> None:
        super().__init__()
        self.depth, self.inverse = depth, inverse
        self.encoder = Encoder(words, hidden, dropout)
        self.merge = nn.Linear(2 * hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.shared = ByLength(hidden, hidden)  # one for every layer of both pyramids
        self.dropout = nn.Dropout(dropout)
        if inverse:
            self.spread = nn.Conv1d(2 * hidden, hidden, 2, padding=1)
        self.tag = nn.Linear(2 * hidden if inverse else hidden, tags)

    def forward(self, batch: Batch) -> list[Tensor]:
        """Logits [B, T - d, C] of each layer d = 0..min(depth, T - 1)."""
        up = self.climb(self.encoder(batch), batch.length)
        if not self.inverse:
            return [self.tag(e) for e in up]
        return [self.tag(torch.cat(pair, -1)) for pair in zip(up, self.descend(up, batch.length), strict=True)]

    def climb(self, e: Tensor, length: Tensor) -> list[Tensor]:
        """E_d: every step up merges two neighbours and so shortens the row by one."""
        layers = []
        for d in range(min(self.depth, e.shape[1] - 1) + 1):
            if d:
                e = self.merge(torch.cat([e[:, :-1], e[:, 1:]], -1))
            e = self._settle(e, length - d)
            layers.append(e)
        return layers

    def descend(self, up: list[Tensor], length: Tensor) -> list[Tensor]:
        """R_d, from zeros at the top of each sentence: every step down lengthens the row by one."""
        down = [torch.zeros_like(up[-1])]
        for d in range(len(up) - 2, -1, -1):
            above = torch.cat([down[0], up[d + 1]], -1)  # [B, T - d - 1, 2H]
            owned = _owned(above, length - d - 1)
            r = self.spread((above * owned).mT).mT
            r = self._settle(r, length - d)
            # a short sentence has its top below that of its batch: nothing may come down to it from there
            down.insert(0, r * (length > d + 1)[:, None, None])
        return down

    def _settle(self, x: Tensor, length: Tensor) -> Tensor:
        return self.dropout(self.shared(self.dropout(self.norm(x)), length))

    def loss(self, batch: Batch, rows: list[Tensor]) -> Tensor:
        """Cross-entropy summed over layers, places and sentences; `rows` [B, T - d] hold -100 where there is none."""
        pairs = zip(self(batch), rows, strict=True)
        return sum(functional.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum") for x, y in pairs)

    @torch.no_grad()
    def read(self, batch: Batch) -> list[list[list[int]]]:
        """Tag numbers of each sentence, layer and place."""
        best, length = [x.argmax(-1) for x in self(batch)], batch.length.tolist()
        return [[x[b, : n - d].tolist() for d, x in enumerate(best) if d < n] for b, n in enumerate(length)]


class FlatTagger(nn.Module):
    """The rival: the same encoder, and a linear-chain CRF that gives each token one tag."""

    def __init__(self, words: int, tags: int, hidden: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.encoder = Encoder(words, hidden, dropout)
        self.dropout = nn.Dropout(dropout)
        self.tag = nn.Linear(hidden, tags)
        self.step = nn.Parameter(torch.zeros(tags, tags))  # [from, to]

    def forward(self, batch: Batch) -> Tensor:
        return self.tag(self.dropout(self.encoder(batch)))  # [B, T, C]

    def loss(self, batch: Batch, rows: list[Tensor]) -> Tensor:
        """Negative log-likelihood of the tags rows[0] [B, T], summed over sentences."""
        logits, gold = self(batch), rows[0].clamp(min=0)
        owned = _owned(logits, batch.length)[..., 0]
        said = logits.gather(2, gold[..., None])[..., 0] * owned
        moved = self.step[gold[:, :-1], gold[:, 1:]] * owned[:, 1:]
        return (self.log_norm(logits, batch.length) - said.sum(1) - moved.sum(1)).sum()

    def log_norm(self, logits: Tensor, length: Tensor) -> Tensor:
        """Log of the sum over all rows of tags of exp(score), [B], by the forward algorithm."""
        alpha = logits[:, 0]
        for t in range(1, logits.shape[1]):
            new = torch.logsumexp(alpha[:, :, None] + self.step, 1) + logits[:, t]
            alpha = torch.where((t < length)[:, None], new, alpha)
        return alpha.logsumexp(-1)

    @torch.no_grad()
    def read(self, batch: Batch) -> list[list[list[int]]]:
        """The best row of tags of each sentence (Viterbi), as the only layer."""
        logits = self(batch)
        best, back = logits[:, 0], []
        for t in range(1, logits.shape[1]):
            score, source = (best[:, :, None] + self.step).max(1)  # the lowest tag wins a tie
            back.append(source)
            best = torch.where((t < batch.length)[:, None], score + logits[:, t], best)
        ends = best.argmax(-1).tolist()
        return [[_trace(back, b, n, ends[b])] for b, n in enumerate(batch.length.tolist())]


def _trace(back: list[Tensor], b: int, length: int, tag: int) -> list[int]:
    row = [tag]
    for t in range(length - 2, -1, -1):
        row.append(int(back[t][b, row[-1]]))
    return row[::-1]


def _owned(x: Tensor, length: Tensor) -> Tensor:
    """1 at the places of a row [B, T, ·] that its sentence owns, 0 at the padding, [B, T, 1]."""
    return (torch.arange(x.shape[1], device=x.device) < length[:, None])[..., None].to(x.dtype)
