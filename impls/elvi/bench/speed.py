"""Ratios of speed and memory of elvi itself, each with the bar it has to meet: `elvi bench --speed [THEME,...]`.

Both sides of a ratio are measured in turns, one after the other; the value is the median over such turns. The result
is `<out>/<hardware-id>/speed.json`: the provenance of a results file, and `ratios`, a list of Ratio as JSON, each with
the commit, date and command of its own. Themes measured alone replace their ratios in that file and leave the others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from elvi.bench import provenance, results
from elvi.bench.results import ResultsError
from elvi.errors import ElviError
from elvi.families.load import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from elvi.bench.results import Spread
    from elvi.families.family import Family

MODEL = "tiny-qwen"
THEMES = ("generation", "pruning", "sparse", "speculation", "kv", "kvpress")  # modules of elvi.bench.ratios
SAME = ("hardware", "versions", "model")  # what all ratios of a file share
ORIGIN = ("commit", "date", "command")  # what each has of its own


@dataclass(frozen=True)
class Ratio:
    """One ratio, and the range low … high it has to lie in (None: no limit on that side)."""

    name: str
    what: str
    value: Spread
    low: float | None
    high: float | None

    @property
    def met(self) -> bool:
        median = self.value["median"]
        return (self.low is None or median >= self.low) and (self.high is None or median <= self.high)

    def __str__(self) -> str:
        limits = [f"at {word} {bar:g}" for word, bar in (("least", self.low), ("most", self.high)) if bar is not None]
        verdict = ("met" if self.met else "MISSED") if limits else ""
        value, bars = self.value, " and ".join(limits) or "no bar"
        quartiles = f"{value['q1']:.3f} to {value['q3']:.3f}, n={value['n']}"
        return f"{verdict:6} {value['median']:8.3f} ({quartiles}), {bars}: {self.what}"


def themes(text: str) -> Sequence[str]:
    """The themes named, separated by commas; all of them where none is. Raises ElviError for others."""
    named = [name.strip() for name in text.split(",") if name.strip()]
    for name in named:
        if name not in THEMES:
            raise ElviError(f"--speed was asked for {name!r}, which it does not measure: use {', '.join(THEMES)}.")
    return named or THEMES


def run(out: Path, *, command: str, tell: Callable[[str], None], only: Sequence[str] = THEMES) -> Path:
    """Measure these themes, tell each ratio as it is known, and save them all; returns the file. Raises ResultsError.

    What other themes have left in the file stays, if it was measured on the same machine with the same versions.
    """
    family = load(MODEL)
    machine = provenance.hardware(family.device)
    path = out / machine["id"] / "speed.json"
    results.check_writable(path)
    data: dict[str, Any] = {
        "schema": results.SCHEMA,
        "hardware": machine,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": provenance.today(),
        "command": command,
        "model": provenance.model(family),
    }
    found = {} if set(only) == set(THEMES) else _earlier(path, data)
    origin = {key: data[key] for key in ORIGIN}
    for ratio in measured(only, family, tell):
        tell(str(ratio))
        found[ratio.name] = {**asdict(ratio), "met": ratio.met, **origin}
    results.save(path, {**data, "ratios": [*found.values()]}, done=True)
    return path


def measured(only: Sequence[str], family: Family, tell: Callable[[str], None]) -> Iterator[Ratio]:
    """All ratios of these themes; what cannot be measured on this machine is left out, and that is told."""
    for theme in only:
        yield from import_module(f"elvi.bench.ratios.{theme}").measured(family, tell)


def _earlier(path: Path, fresh: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The ratios in the file by name, each with its origin; they must not be mixed with those of other conditions."""
    if not path.is_file():
        return {}
    data: dict[str, Any] = {**results.read(path)}
    for key in SAME:
        if data[key] != fresh[key]:
            raise ResultsError(
                f"{path} cannot be added to, its {key} was {data[key]} and is now {fresh[key]}: "
                "measure everything again with --speed alone."
            )
    origin = {key: data[key] for key in ORIGIN}
    return {ratio["name"]: {**origin, **ratio} for ratio in data["ratios"]}
