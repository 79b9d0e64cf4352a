"""Visual tokens of known content, as reducers of videos are shown them."""

import torch

from elvi.core.tokens import Tokens


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shown(hidden: torch.Tensor, rows: int = 1) -> Tokens:
    """One text token, frames of tokens [T, n, D] in so many rows each, one text token."""
    frames, length, width = hidden.shape
    count = torch.arange(frames * length + 2, device=hidden.device)
    place = (count - 1) % length
    cell = torch.stack([(count - 1) // length, place // (length // rows), place % (length // rows)], dim=1)
    cell[[0, -1]] = -1
    states = torch.cat([hidden.new_zeros(1, width), hidden.flatten(0, 1), hidden.new_ones(1, width)])
    return Tokens(states, count[None], count, cell, torch.ones_like(states[:, 0]), count)
