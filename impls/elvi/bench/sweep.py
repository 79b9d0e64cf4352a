"""Sweep a technique over its budgets into a results file; stopped at any moment, it loses the cell in progress only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elvi import discover, spec
from elvi.bench import provenance, results
from elvi.bench.floor import twin
from elvi.bench.measure import Protocol, measure
from elvi.core.plan import Plan
from elvi.errors import ElviError

if TYPE_CHECKING:
    from collections.abc import Callable

    from elvi.bench.results import Results
    from elvi.families.family import Family


@dataclass(frozen=True)
class Sweep:
    """A technique at several values of one of its fields."""

    name: str
    technique: Any
    field: str
    values: tuple[Any, ...]

    @property
    def settings(self) -> list[dict[str, Any]]:
        return [{self.field: value} for value in self.values]

    def at(self, setting: dict[str, Any]) -> Any:
        return dataclasses.replace(self.technique, **setting)

    def check(self, family: Family) -> None:
        """Raise BudgetError or FitError before anything is measured."""
        for setting in self.settings:
            Plan(self.at(setting)).check(family)

    def steps(self, protocol: Protocol) -> int:
        """How often `tick` is called when nothing is resumed."""
        timed, asked = protocol.clips + 2 * protocol.repeats, protocol.clips
        return timed + len(self.values) * (timed + (asked if twin(self.technique, 0) else 0))


def parse(text: str, budgets: str | None = None) -> Sweep:
    """`ID[:field=value,…]` and the values of its swept field, comma-separated (None: the technique's own)."""
    technique = spec.parse(text)
    name = text.partition(":")[0]
    if not hasattr(technique, "sweep"):
        raise ElviError(f"{name} names no budget to vary, so it cannot be swept: give its class a `sweep`.")
    field, values = technique.sweep
    if budgets is not None:
        values = tuple(spec.convert(name, type(technique), field, value.strip()) for value in budgets.split(","))
    return Sweep(name, technique, field, tuple(dict.fromkeys(values)))


def fitting(family: Family, budgets: str | None, tell: Callable[[str], None]) -> list[Sweep]:
    """Sweeps of all techniques that work on the model; `tell` hears why the others do not."""
    found = []
    for name in discover.list_techniques():
        try:
            sweep = parse(name, budgets)
            sweep.check(family)
        except ElviError as error:
            tell(f"{name} is left out: {error}")
        else:
            found.append(sweep)
    return found


def run(
    family: Family,
    sweep: Sweep,
    protocol: Protocol,
    out: Path,
    *,
    command: str,
    resume: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Path, Results]:
    """Measure what is not measured yet and write `out/<hardware-id>/<technique-id>.json`. Returns its path and content.

    Raises FitError, BudgetError or ResultsError before the first measurement.
    """
    sweep.check(family)
    data = _blank(family, sweep, protocol, command)
    path = out / data["hardware"]["id"] / f"{sweep.name}.json"
    results.check_writable(path)
    if resume:
        data = results.resume(path, data)
    if data["baseline"] is None:
        data["baseline"] = measure(family, lambda _: Plan(), protocol, {}, None, tick=tick)
        results.save(path, data, done=False)
    for setting in sweep.settings:
        for group in ("cells", "random"):
            if all(cell["setting"] != setting for cell in data[group]):
                _add(family, sweep.at(setting), protocol, setting, data, group, tick)
                results.save(path, data, done=False)
    results.save(path, data, done=True)
    return path, data


def _add(
    family: Family,
    technique: Any,
    protocol: Protocol,
    setting: dict[str, Any],
    data: Results,
    group: str,
    tick: Callable[[], None],
) -> None:
    """Measure one cell, if there is such a cell, into its group."""
    baseline = data["baseline"]
    if group == "cells":
        plan = Plan(technique)
        data["cells"].append(measure(family, lambda _: plan, protocol, setting, baseline, tick=tick))
    elif twin(technique, 0) is not None:
        cell = measure(
            family, lambda seed: Plan(twin(technique, seed)), protocol, setting, baseline, timed=False, tick=tick
        )
        data["random"].append(cell)


def _blank(family: Family, sweep: Sweep, protocol: Protocol, command: str) -> Results:
    return {
        "schema": results.SCHEMA,
        "technique": sweep.name,
        "hardware": provenance.hardware(family.device),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": provenance.today(),
        "command": command,
        "model": provenance.model(family),
        "protocol": protocol.to_dict(),
        "baseline": None,
        "cells": [],
        "random": [],
    }
