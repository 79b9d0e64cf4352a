"""The networks: a BERT-like teacher, the tri-gram encoder of the lower layers, and the upper layers of a student.

Letters: B sentences, T tokens, W width, M tri-grams. Token 0 is padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -1e4  # score of a padded key; losses ignore scores at or below -100


class Layer(nn.Module):
    """A transformer layer, normalised after each half as in BERT; it also returns its scores before the softmax."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, T, W), mask (B, T) of keys that exist -> h, scores (B, heads, T, T)."""
        B, T, W = h.shape
        q, k, v = self.qkv(h).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT * (W // self.heads) ** -0.5).masked_fill(~mask[:, None, None], MASKED)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, W)
        h = self.norm1(h + self.dropout(self.out(mixed)))
        return self.norm2(h + self.dropout(self.down(F.gelu(self.up(h))))), scores


class Embedding(nn.Module):
    """Words and positions, normalised."""

    def __init__(self, vocabulary: int, positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.dropout(self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]]))


class Upper(nn.Module):
    """Layers over the whole sentence, each with a classifier (pooler on token 0), so that one may stop after any."""

    def __init__(self, layers: int, length: int, width: int, heads: int, dropout: float, classes: int = 2) -> None:
        super().__init__()
        self.positions, self.norm = nn.Embedding(length, width), nn.LayerNorm(width)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.poolers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))

    def enter(self, u: Tensor) -> Tensor:
        """Step 6: the sum of tri-gram rows (B, T, W) gets the order of the sentence."""
        return self.norm(u + self.positions.weight[: u.shape[1]])

    def classify(self, layer: int, h: Tensor) -> Tensor:
        return self.heads[layer](torch.tanh(self.poolers[layer](h[:, 0])))

    def forward(self, u: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits (B, classes) and scores per layer, and hidden states, those that enter first."""
        hidden, scores, logits = [self.enter(u)], [], []
        for place, layer in enumerate(self.layers):
            h, s = layer(hidden[-1], mask)
            hidden.append(h)
            scores.append(s)
            logits.append(self.classify(place, h))
        return logits, hidden, scores


class Teacher(nn.Module):
    """All layers over the whole sentence; a classifier after the last."""

    def __init__(self, vocabulary: int, layers: int, length: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, length, width, dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits (B, 2), the embedding and the hidden state of every layer, scores per layer."""
        hidden, scores = [self.embedding(ids)], []
        for layer in self.layers:
            h, s = layer(hidden[-1], ids > 0)
            hidden.append(h)
            scores.append(s)
        return self.head(torch.tanh(self.pooler(hidden[-1][:, 0]))), hidden, scores


class Local(nn.Module):
    """The lower layers on isolated tri-grams, and the gate: all that the table stores."""

    def __init__(self, vocabulary: int, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, 3, width, dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.gate = nn.Linear(width, 1)

    def forward(self, grams: Tensor, drop: float = 0.0) -> Tensor:
        """Steps 2-4: tri-grams (M, 3) -> rows g (M, 3, W). Outer slots are hidden with probability `drop`."""
        mask = grams > 0
        if drop:
            mask = mask & (torch.rand(grams.shape) >= drop)
            mask[:, 1] = True
        h = self.embedding(grams)
        for layer in self.layers:
            h, _ = layer(h, mask)
        return h * torch.sigmoid(self.gate(h)) * (mask & (grams[:, 1:2] > 0))[..., None]


def trigrams(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Step 1: (M, 3) tri-grams of (B, T) sentences, an all-zero one after each, and the flat place of each (-1)."""
    B, T = ids.shape
    around = F.pad(ids, (1, 2))  # one more column: the separator
    grams = torch.stack([around[:, :-2], around[:, 1:-1], around[:, 2:]], -1)  # [B, T+1, 3]
    lengths = (ids > 0).sum(1)
    steps = torch.arange(T + 1)
    grams[steps == lengths[:, None]] = 0
    place = torch.where(steps < lengths[:, None], torch.arange(B)[:, None] * T + steps, -1)
    there = steps <= lengths[:, None]
    return grams[there], place[there]


def aggregate(g: Tensor, place: Tensor, shape: tuple[int, int]) -> Tensor:
    """Step 5: each token as the centre of its tri-gram, in the next one's and in the previous one's -> (B, T, W)."""
    zero = g.new_zeros(1, g.shape[-1])
    u = g[:, 1] + torch.cat([g[1:, 0], zero]) + torch.cat([zero, g[:-1, 2]])
    there = place >= 0
    return g.new_zeros(shape[0] * shape[1], g.shape[-1]).index_copy(0, place[there], u[there]).view(*shape, -1)


def shallow(local: Local, ids: Tensor, drop: float = 0.0) -> Tensor:
    """Steps 1-5 without a table: (B, T) -> (B, T, W)."""
    grams, place = trigrams(ids)
    return aggregate(local.embedding.dropout(local(grams, drop)), place, tuple(ids.shape))
