"""Counts of the catalog: per stage, category, year and state of the implementation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from elvi_survey.schema import Catalog, Record


def stats(catalog: Catalog) -> dict[str, Any]:
    """Numbers of records.  A record that stands in two places counts once in each, and once in what is above both."""
    records = catalog.records.values()
    return {
        "records": len(catalog.records),
        "implementation": _by(record.implementation.status for record in records),
        "years": dict(sorted(Counter(str(record.year) for record in records).items())),
        "stages": {
            stage.id: {
                **_counts(stage.title, catalog.in_path(stage.id)),
                "categories": {
                    category.id: _counts(category.title, catalog.in_path(stage.id, category.id))
                    for category in stage.categories.values()
                },
            }
            for stage in catalog.stages.values()
        },
    }


def text(counts: dict[str, Any]) -> str:
    """The same, one line per stage and category."""
    lines = [f"{counts['records']} records: {_listed(counts['implementation'])}"]
    for stage in counts["stages"].values():
        lines.append(_line("", stage))
        lines += [_line("  ", category) for category in stage["categories"].values()]
    lines.append(f"Years: {', '.join(f'{year} {count}' for year, count in counts['years'].items())}")
    return "\n".join(lines) + "\n"


def _counts(title: str, records: list[Record]) -> dict[str, Any]:
    runnable = sum(record.implementation.status == "runnable" for record in records)
    return {"title": title, "records": len(records), "runnable": runnable}


def _by(values: Iterable[Any]) -> dict[Any, int]:
    """Counts, the largest first; equal ones by value."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _line(indent: str, node: dict[str, Any]) -> str:
    runnable = f" ({node['runnable']} runnable)" if node["runnable"] else ""
    return f"{indent}{node['title']}: {node['records']}{runnable}"
