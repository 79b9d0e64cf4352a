"""Fewer visual tokens on the pages: quality against what is left of them, for every technique that drops or merges any.

Numbers come from the cells of results files (see `elvi.bench.results`), evenly spaced selection and what is kept of one
frame from `kept.json` (`elvi.bench.kept`), what choosing costs from `speed.json` (`elvi.bench.speed`). Which techniques
stand here follows from the methods in their code and from what their results files hold.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from elvi_survey.codefacts import Technique
from elvi_survey.site.results import Result, rows

URL = "reduction/"
LINK = "Compared with the other techniques that leave fewer visual tokens"
BUDGET = 0.25  # share of the visual tokens at which techniques are compared with the floors
TASKS = (
    ("quality", "questions"),
    ("quality/by_kind/needle", "needles"),
    ("quality/captions", "caption sentences"),
)
SEAMS = {  # by what a technique does first: (stage of its colour, words)
    "frames": ("encode", "Frames, before the vision encoder"),
    "encode": ("encode", "Tokens of the vision encoder"),
    "prefill": ("prefill", "Tokens in the language model"),
    "decode": ("decode", "Tokens in the prompt and rows of the cache"),
}


@dataclass(frozen=True)
class Row:
    """One cell: a technique at a setting. `rival`: the path of random selection of as many, None without one."""

    result: Result
    path: str
    cell: dict[str, Any]
    rival: str | None

    @property
    def share(self) -> float:
        return self.cell["kept_share"]

    def right(self, task: str) -> int:
        return self.result.value(f"{self.path}/{task}/correct")

    def by_chance(self, task: str) -> int | None:
        return self.result.value(f"{self.rival}/{task}/correct") if self.rival else None


@dataclass(frozen=True)
class Curve:
    """A technique on one model and machine: the rows that differ in its swept field alone, fewest tokens first."""

    rows: list[Row]
    seam: str
    asks: bool  # whether it has to know the question

    @property
    def result(self) -> Result:
        return self.rows[0].result

    @property
    def id(self) -> str:
        return self.result.technique

    @property
    def near(self) -> Row:
        """The row nearest to `BUDGET`, of those with random selection if there are any."""
        rivalled = [row for row in self.rows if row.rival]
        return min(rivalled or self.rows, key=lambda row: abs(row.share - BUDGET))


@dataclass(frozen=True)
class Group:
    """Curves of the same machine, model and questions, and of an unmodified model that answered the same."""

    curves: list[Curve]
    kept: Result | None
    speed: Result | None

    @property
    def first(self) -> Result:
        return self.curves[0].result

    @property
    def asked(self) -> list[tuple[str, str]]:
        """(path, words) of the tasks that were asked at all."""
        return [(task, words) for task, words in TASKS if _asked(self.first, task)]

    @property
    def seams(self) -> list[tuple[str, str, list[Curve]]]:
        """(stage, words, curves) of every seam at which something acts, in the order of a request."""
        found = [(*SEAMS[seam], [curve for curve in self.curves if curve.seam == seam]) for seam in SEAMS]
        return [each for each in found if each[2]]

    @property
    def longest(self) -> int:
        """How many settings the technique with most of them has."""
        return max(len(curve.rows) for curve in self.curves)

    @property
    def unrivalled(self) -> list[Curve]:
        return [curve for curve in self.curves if not curve.near.rival]

    def against_chance(self, task: str) -> dict[str, list[Row]]:
        """Rows next to `BUDGET` that get more right than random selection, as many, or fewer."""
        found: dict[str, list[Row]] = {"above": [], "equal": [], "below": []}
        for row in (curve.near for curve in self.curves):
            chance = row.by_chance(task)
            if chance is not None:
                ahead = row.right(task) - chance
                found["above" if ahead > 0 else "below" if ahead < 0 else "equal"].append(row)
        return found

    def below_even(self, task: str) -> list[tuple[Row, str]]:
        """(row, path in `kept`) of rows that get fewer right than evenly spaced selection of as many."""
        pairs = [(curve.near, even) for curve in self.curves if (even := self.even(curve))]
        kept = self.kept
        return [(row, even) for row, even in pairs if kept and row.right(task) < kept.value(f"{even}/{task}/correct")]

    def even(self, curve: Curve) -> str | None:
        """Path in `kept` of what evenly spaced selection answers to the same at the setting next to `BUDGET`."""
        found, result = self._kept_of(curve), curve.result
        told = (curve.near.cell["setting"], result.data["protocol"])
        same = found is not None and found["even"] and (found["setting"], found["protocol"]) == told
        return f"techniques/{curve.id}/even" if same else None

    def maps(self, curves: list[Curve]) -> list[Curve]:
        """Those of which `kept` has a frame."""
        return [curve for curve in curves if self._kept_of(curve)]

    def _kept_of(self, curve: Curve) -> dict[str, Any] | None:
        return self.kept.data["techniques"].get(curve.id) if self.kept else None

    def ratio(self, name: str) -> str | None:
        """Path of a ratio in `speed`, by its name."""
        names = [ratio["name"] for ratio in self.speed.data["ratios"]] if self.speed else []
        return f"ratios/{names.index(name)}" if name in names else None

    @property
    def example(self) -> str | None:
        """Path of the first of the ratios of selection."""
        return next((path for curve in self.curves if (path := self.ratio(f"overhead-{curve.id}"))), None)

    @property
    def kernels(self) -> list[str]:
        """Paths of the ratios of compiled loops."""
        ratios = self.speed.data["ratios"] if self.speed else []
        return [f"ratios/{i}" for i, ratio in enumerate(ratios) if ratio["name"].endswith("-kernel")]

    def missed(self, prefix: str) -> list[tuple[Curve, str]]:
        """(curve, path in `speed`) of ratios of this kind that miss their bar."""
        pairs = [(curve, path) for curve in self.curves if (path := self.ratio(f"{prefix}-{curve.id}"))]
        return [(curve, path) for curve, path in pairs if self.speed and not self.speed.value(f"{path}/met")]

    @property
    def needles(self) -> "list[Needles]":
        """Needles found next to `BUDGET`, then at the smallest budget of each; empty where none was asked for."""
        if not _asked(self.first, NEEDLE):
            return []
        places = (
            (f"about {100 * BUDGET:g} % of the visual tokens", [curve.near for curve in self.curves]),
            ("the smallest budget of each", [curve.rows[0] for curve in self.curves]),
        )
        found = []
        for words, near in places:
            aware, blind = (
                [row for row, curve in zip(near, self.curves, strict=True) if curve.asks is asks]
                for asks in (True, False)
            )
            if aware and blind:
                found.append(Needles(words, aware, blind))
        return found


NEEDLE = TASKS[1][0]


@dataclass(frozen=True)
class Needles:
    """What question-aware and question-blind techniques found of the needles, at one budget (in words)."""

    where: str
    aware: list[Row]
    blind: list[Row]

    @property
    def ahead(self) -> bool:
        return rate(self.aware) > rate(self.blind)

    @property
    def chance(self) -> float | None:
        """The share of the needles that random selection of as many finds, over all that have such a floor."""
        rows = [row for row in (*self.aware, *self.blind) if row.rival]
        asked = sum(row.result.value(f"{row.rival}/{NEEDLE}/of") for row in rows)
        return sum(row.by_chance(NEEDLE) or 0 for row in rows) / asked if asked else None

    @property
    def behind(self) -> list[Row]:
        """Question-aware rows that found fewer than the question-blind ones do on average."""
        return [row for row in self.aware if rate([row]) < rate(self.blind)]


def rate(found: list[Row]) -> float:
    """Needles found / needles asked for."""
    return sum(row.right(NEEDLE) for row in found) / sum(row.result.value(f"{row.path}/{NEEDLE}/of") for row in found)


def _asked(result: Result, task: str) -> bool:
    kinds = result.value("baseline/quality/by_kind")
    return ("needle" in kinds) if task == NEEDLE else bool(result.value(f"baseline/{task}/of"))


def reduces(code: Technique | None) -> bool:
    """Whether its code drops or merges frames or visual tokens."""
    return code is not None and any({"reduce", "select_frames"} & set(part.methods) for part in code.classes)


def curves(code: Technique | None, results: Iterable[Result]) -> Iterator[Curve]:
    """The curves of a technique; none where its code leaves the tokens alone, or no cell has fewer."""
    if code is None or not reduces(code):
        return
    seam = "frames" if any("select_frames" in part.methods for part in code.classes) else code.stage
    asks = any("QUESTION_KNOWN" in part.needs for part in code.classes)
    for result in results:
        swept = result.data["cells"][0]["setting"].keys() if result.data["cells"] else None
        found = [Row(result, *rest) for rest in rows(result) if rest[1]["setting"].keys() == swept]
        if seam in SEAMS and any(row.share < 1 for row in found):
            yield Curve(sorted(found, key=lambda row: row.share), seam, asks)


def groups(
    results: dict[str, list[Result]], techniques: dict[str, Technique], machines: dict[str, list[Result]]
) -> list[Group]:
    """All that can be compared, by machine, model, protocol and answers of the unmodified model."""
    found: dict[str, list[Curve]] = {}
    for id_ in sorted(results):
        for curve in curves(techniques.get(id_), results[id_]):
            same = [curve.result.data[part] for part in ("hardware", "model", "protocol")]
            key = json.dumps([*same, curve.result.value("baseline/quality")], sort_keys=True)
            found.setdefault(key, []).append(curve)
    made = [_group(sorted(each, key=_kept_most), machines) for each in found.values()]
    return sorted(made, key=lambda group: (group.first.value("model/name") != "tiny-qwen", group.first.address))


def _group(found: list[Curve], machines: dict[str, list[Result]]) -> Group:
    def beside(name: str) -> Result | None:
        same = [each for each in machines.get(name, []) if each.value("hardware/id") == first.value("hardware/id")]
        return next(iter(same), None)

    first, kept = found[0].result, None
    if (near := beside("kept")) and near.value("model/name") == first.value("model/name"):
        kept = near
    return Group(found, kept, beside("speed"))


def _kept_most(curve: Curve) -> tuple[int, float, str]:
    row = curve.near
    return -row.right("quality") - row.right("quality/captions"), row.share, curve.id
