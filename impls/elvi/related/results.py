"""Results of a related system, `results/<hardware-id>/related/<id>.json` (schema 1 of `elvi.bench.results`).

Provenance (`hardware`, `versions`, `commit`, `date`, `command`) stands as in other results; then come `tables`, each
with `title`, `columns`, `rows` and `note`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from elvi.bench import provenance, results

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from elvi.related import System, Table


def measure(
    name: str, system: System, out: Path, *, command: str, tick: Callable[[int, int], None]
) -> tuple[Path, list[Table]]:
    """Run the experiment of a system and write its file; returns path and tables. Raises ResultsError before it."""
    hardware = provenance.hardware(torch.device("cpu"))
    path = out / hardware["id"] / "related" / f"{name}.json"
    results.check_writable(path)
    tables = system.bench(tick)
    data = {
        "schema": results.SCHEMA,
        "technique": name,
        "hardware": hardware,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": provenance.today(),
        "command": command,
        "tables": [asdict(table) for table in tables],
    }
    results.save(path, data, done=True)
    return path, tables
