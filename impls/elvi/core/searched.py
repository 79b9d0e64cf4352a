"""Tables of what `elvi search` found out about models, one per technique: {model name: rows of numbers}."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elvi.errors import FitError

if TYPE_CHECKING:
    from pathlib import Path

    from elvi.families.family import Family


def searched(source: Path, family: Family, shape: tuple[int, int], command: str, asker: object) -> Tensor:
    """What `elvi search COMMAND` found for a model: float64 of that shape.

    Raises FitError where the file holds no table, none for this model, or one of another shape.
    """
    name, remedy = type(asker).__name__, f"run `elvi search {command} --model {family.name}`"
    try:
        found = {
            model: torch.tensor(rows, dtype=torch.float64) for model, rows in json.loads(source.read_text()).items()
        }
        if not all(bool(rows.isfinite().all()) for rows in found.values()):
            raise ValueError(source)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):
        raise FitError(
            f"{name} was asked to read a table from {source}, which holds none: name a file that "
            f"`elvi search {command}` wrote."
        ) from None
    if family.name not in found:
        raise FitError(f"{name} was asked of {family.name}, but {source.name} knows {', '.join(found)} only: {remedy}.")
    if found[family.name].shape != shape:
        raise FitError(
            f"{name} was asked of {family.name}, which needs a table of {' x '.join(map(str, shape))} numbers, but "
            f"{source.name} holds one of {' x '.join(map(str, found[family.name].shape))}: {remedy} again."
        )
    return found[family.name]
