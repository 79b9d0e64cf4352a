"""Evaluate proposals side by side: in this process, or on a Ray cluster when there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elvi.errors import ElviError

Mapper = Callable[[Callable[[Any], Any], list], list]


def mapper(address: str) -> Mapper:
    """A map over a list that keeps its order. "" is serial, "local" starts Ray here, else the address of a cluster.

    Raises ElviError where Ray is not installed.
    """
    if not address:
        return lambda function, items: list(map(function, items))
    try:
        import ray
    except ImportError as error:
        raise ElviError(f"Trait was asked for ray={address}, which is not installed: `pip install ray`.") from error
    if not ray.is_initialized():
        ray.init(address=None if address == "local" else address)
    return lambda function, items: ray.get([ray.remote(function).remote(item) for item in items])
