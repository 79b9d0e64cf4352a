"""Speculative decoding on the pages: what was accepted, where the time went, and all of it side by side.

Numbers come from the `speculation` of a cell in a results file (see `elvi.bench.results`). Those that a page computes
from several of them, quality retained and the law of relaxation, are marked as derived.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from elvi_survey.site.figures import picture
from elvi_survey.site.results import Result, cells

KEPT = 0.98  # of the unmodified model's right answers; less is said in a sentence
WIDTH, LINE = 160.0, 14.0  # of the picture in a table row
PARTS = (
    ("draft_share", "drafting", "f-mark"),
    ("bridge_share", "between tokenizers", "f-ink"),
    ("verify_share", "verifying", "f-soft"),
)


@dataclass(frozen=True)
class Row:
    """One cell that drafts: a technique at a setting, on one model and machine."""

    result: Result
    path: str
    cell: dict[str, Any]

    @property
    def speed(self) -> float:
        return self.cell["speculation"]["speedup"]["median"]

    @property
    def retained(self) -> float | None:
        """Right answers and right caption sentences / those of the unmodified model; None where nothing is right."""
        mine, plain = (_right(cell["quality"]) for cell in (self.cell, self.result.data["baseline"]))
        return mine / plain if plain else None

    @property
    def draft_length(self) -> int | None:
        """Longest draft, as the plan that ran says."""
        found = re.search(r"num_draft=(\d+)", " ".join(self.cell["plan"]))
        return int(found[1]) if found else None


def _right(quality: dict[str, Any]) -> int:
    return quality["correct"] + quality["captions"]["correct"]


def rows(result: Result) -> list[Row]:
    """The cells of a file that draft, in its order."""
    return [Row(result, path, cell) for path, cell in cells(result, "cells") if cell.get("speculation")]


def best(result: Result) -> Row | None:
    """The fastest cell that drafts."""
    return max(rows(result), key=lambda row: row.speed, default=None)


@dataclass(frozen=True)
class Group:
    """Rows that may stand in one table: the same machine, model and questions; the fastest first."""

    rows: list[Row]

    @property
    def first(self) -> Result:
        return self.rows[0].result

    @property
    def techniques(self) -> list[str]:
        return [row.result.technique for row in self.rows]

    @property
    def slower(self) -> list[Row]:
        return [row for row in self.rows if row.speed < 1]

    @property
    def costly(self) -> list[Row]:
        """Rows that keep less than 98 % of the quality."""
        return [row for row in self.rows if row.retained is not None and row.retained < KEPT]

    def relaxed(self) -> Iterator[tuple[Row, float, float | None]]:
        """(row, share relaxed, accepted tokens by the law) of rules that relax verification, strict rows first.

        With e the rate at which drafts mismatch, a chain of K accepts sum_{i=1..K} (1 - e)^i tokens; e is solved from
        the strict row of the same technique and r e of the mismatches are let through.
        """
        for technique in dict.fromkeys(row.result.technique for row in self.rows):
            found = [
                row for row in self.rows if row.result.technique == technique and "relaxation" in row.cell["setting"]
            ]
            found.sort(key=lambda row: row.cell["setting"]["relaxation"])
            strict = found[0] if found and found[0].cell["setting"]["relaxation"] == 0 else None
            for row in found:
                share = row.cell["setting"]["relaxation"]
                yield row, share, _law(strict, share) if strict and strict.draft_length else None


def _law(strict: Row, share: float) -> float:
    length = strict.draft_length or 0
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        longer = accepted(rate, length) > strict.cell["speculation"]["accepted_per_round"]
        low, high = (rate, high) if longer else (low, rate)
    return accepted((1 - share) * low, length)


def accepted(rate: float, length: int) -> float:
    """Mean accepted tokens of a chain whose tokens mismatch independently."""
    return sum((1 - rate) ** i for i in range(1, length + 1))


def groups(results: dict[str, list[Result]], technique_ids: list[str]) -> list[Group]:
    """All rows of these techniques that can be compared, by machine, model and protocol."""
    found: dict[str, list[Row]] = {}
    for id_ in technique_ids:
        for result in results.get(id_, []):
            key = json.dumps([result.data[part] for part in ("hardware", "model", "protocol")], sort_keys=True)
            found.setdefault(key, []).extend(rows(result))
    made = [Group(sorted(each, key=lambda row: -row.speed)) for each in found.values() if each]
    return sorted(made, key=lambda group: (group.first.value("model/name") != "tiny-qwen", group.first.address))


def whiskers(row: Row, group: Group) -> Markup:
    """The measured speed-up as a dot with its quartiles; the stroke marks plain decoding."""
    spread, top = row.cell["speculation"]["speedup"], max(1.0, *(each.speed for each in group.rows)) * 1.15
    x = {key: min(spread[key] / top, 1.0) * WIDTH for key in ("q1", "median", "q3")}
    address = f"{row.result.address}#{row.path}/speculation/speedup/median"
    drawn = [
        f'<path class="l-edge" d="M0,7H{WIDTH:g}"/><path class="l-ink" d="M{WIDTH / top:.1f},1V13"/>',
        f'<path class="l-mark" stroke-width="1.6" d="M{x["q1"]:.1f},7H{x["q3"]:.1f}"/>',
        f'<circle class="f-mark" data-result-id="{escape(address)}" cx="{x["median"]:.1f}" cy="7" r="4.5"/>',
    ]
    return picture(f"0 0 {WIDTH:g} {LINE:g}", "speed-up; the number stands beside it", "decode", drawn)


def histogram(row: Row) -> Markup:
    """How many rounds accepted 0, 1, 2, ... drafted tokens."""
    counts = row.cell["speculation"]["accepted_histogram"]
    base, top, step = 150.0, 18.0, 300.0 / max(len(counts), 1)
    drawn = [f'<path class="l-rule" d="M20,{base:g}H320"/>']
    for place, count in enumerate(counts):
        x, height = 20 + place * step, (base - top) * count / max(*counts, 1)
        address = f"{row.result.address}#{row.path}/speculation/accepted_histogram/{place}"
        drawn.append(
            f'<rect class="f-mark" data-result-id="{escape(address)}" x="{x + 0.12 * step:.1f}" '
            f'y="{base - height:.1f}" width="{0.76 * step:.1f}" height="{height:.1f}"/>'
            f'<text class="mid tick" x="{x + step / 2:.1f}" y="{base + 15:g}">{place}</text>'
        )
    return picture("0 0 340 172", "Rounds by the number of drafted tokens accepted", "decode", drawn)


def time_bar(row: Row) -> Markup:
    """Where the time of decoding goes, next to plain decoding of the same tokens."""
    found = row.cell["speculation"]
    whole = 1 / found["decode_speedup"]["median"]
    scale = 300.0 / max(1.0, whole)
    drawn = [
        '<text class="tick" x="20" y="14">plain decoding</text>',
        f'<rect class="l-edge" x="20" y="20" width="{scale:.1f}" height="18"/>',
        '<text class="tick" x="20" y="64">drafting and verifying</text>',
    ]
    x = 20.0
    for key, _, css in PARTS:
        width = found[key]["median"] * whole * scale
        traced = f'data-result-id="{escape(row.result.address)}#{row.path}/speculation/{key}/median"'
        drawn.append(f'<rect class="{css}" {traced} x="{x:.1f}" y="70" width="{width:.1f}" height="18"/>')
        x += width
    rest = max(20 + whole * scale - x, 0)
    drawn.append(f'<rect class="l-edge" x="{x:.1f}" y="70" width="{rest:.1f}" height="18"/>')
    for place, (_, words, css) in enumerate((*PARTS, ("", "the loop", "l-edge"))):
        y = 108 + 17 * place
        drawn.append(f'<rect class="{css}" x="20" y="{y}" width="11" height="11"/>')
        drawn.append(f'<text x="38" y="{y + 10}">{words}</text>')
    return picture("0 0 340 176", "Time of decoding by what it was spent on", "decode", drawn)
