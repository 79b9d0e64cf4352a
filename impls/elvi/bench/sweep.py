"""Sweep a technique over its budgets into a results file; stopped at any moment, it loses the cell in progress only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from elvi import discover, spec
from elvi.bench import provenance, results
from elvi.bench.floor import twin
from elvi.bench.kinds import head_map
from elvi.bench.measure import Protocol, measure
from elvi.core.plan import Plan
from elvi.errors import ElviError

if TYPE_CHECKING:
    from collections.abc import Callable

    from elvi.bench.results import Results
    from elvi.families.family import Family

Group = Literal["baseline", "cells", "random"]


@dataclass(frozen=True)
class Sweep:
    """A technique at several values of one of its fields, and in the `variants` that its class may name."""

    name: str
    technique: Any
    field: str
    values: tuple[Any, ...]

    @property
    def wanted(self) -> list[tuple[Group, dict[str, Any]]]:
        """(group, setting) of every cell of the results file, in the order of measuring."""
        groups: tuple[Group, ...] = ("cells", "random") if twin(self.technique, 0) else ("cells",)
        settings = [{self.field: value} for value in self.values]
        settings += getattr(self.technique, "variants", ())
        return [("baseline", {}), *((group, setting) for setting in settings for group in groups)]

    def plans(self, group: Group, setting: dict[str, Any]) -> Callable[[int], Plan]:
        """The plan to use on each clip number; random selection is drawn anew for each."""
        if group == "baseline":
            return lambda _: Plan()
        technique = dataclasses.replace(self.technique, **setting)
        if group == "cells":
            return lambda _: Plan(*spec.whole(technique))
        return lambda number: Plan(twin(technique, number))

    def check(self, family: Family) -> None:
        """Raise BudgetError or FitError before anything is measured."""
        for group, setting in self.wanted:
            self.plans(group, setting)(0).check(family)

    def steps(self, protocol: Protocol) -> int:
        """How often `tick` is called in all."""
        return sum(steps(group, protocol) for group, _ in self.wanted)


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
    tick: Callable[..., None] = lambda steps=1: None,
) -> tuple[Path, Results]:
    """Measure what is not measured yet; write `out/<hardware-id>/<model>/<technique-id>.json`; return path and content.

    tick is called with numbers of steps that add up to `sweep.steps(protocol)`.
    Raises FitError, BudgetError or ResultsError before the first measurement.
    """
    sweep.check(family)
    data = _blank(family, sweep, protocol, command)
    path = out / data["hardware"]["id"] / family.name.replace("/", "--") / f"{sweep.name}.json"
    results.check_writable(path)
    if resume:
        data = results.resume(path, data)
    for group, setting in sweep.wanted:
        if _measured(data, group, setting):
            tick(steps(group, protocol))
            continue
        plan_for = sweep.plans(group, setting)
        cell = measure(family, plan_for, protocol, setting, data["baseline"], timed=group != "random", tick=tick)
        if group == "baseline":
            data["baseline"] = cell
        else:
            data[group].append(cell)
        results.save(path, data, done=False)
    if heads := head_map(family, sweep.technique, protocol):
        data["heads"] = heads
    results.save(path, data, done=True)
    return path, data


def steps(group: Group, protocol: Protocol) -> int:
    """How often measuring a cell of this group ticks; random cells are not timed."""
    return protocol.clips + (0 if group == "random" else 2 * protocol.repeats)


def _measured(data: Results, group: Group, setting: dict[str, Any]) -> bool:
    if group == "baseline":
        return data["baseline"] is not None
    return any(cell["setting"] == setting for cell in data[group])


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
        "protocol": protocol.to_dict(family),
        "baseline": None,
        "cells": [],
        "random": [],
    }
