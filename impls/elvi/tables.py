"""What the command line prints for people, as rich tables."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from elvi.example import example
from elvi.related import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from elvi.bench.results import Results, Spread
    from elvi.related import Table as Related

SEAMS = {
    "encoded": "visual tokens from the encoder",
    "reduced": "visual tokens before the language model",
    "prefill_mean": "visual tokens per layer, mean",
    "cache_mean": "visual tokens in the cache, mean",
}


def techniques(rows: Iterable[dict[str, str]]) -> Table:
    """`elvi list`: rows of id, stage, summary."""
    table = _table("technique", "stage", "")
    for row in rows:
        table.add_row(row["id"], row["stage"], escape(row["summary"]))
    return table


def technique(name: str, cls: type[Any]) -> Group:
    """`elvi show`: docstring, fields with defaults, what it needs and breaks, and how to run it."""
    facts = _table("", "")
    for label, values in (("needs that", cls.needs), ("ends that", cls.breaks)):
        for fact in sorted(values, key=lambda fact: fact.name):
            facts.add_row(label, fact.value)
    answer = "is the unmodified model's" if cls().lossless else "may differ from the unmodified model's"
    facts.add_row("the answer", answer)
    needs = [fact.name for fact in cls.needs]
    shown_by = example(name, needs, dir(cls), getattr(cls, "companions", ()), getattr(cls, "sweep", None))
    return Group(_doc(cls), "", _fields(cls), facts, "", shown_by.command)


def system(name: str, cls: type[Any]) -> Group:
    """`elvi show` of a related system: docstring, fields with defaults, and how to run it."""
    return Group(_doc(cls), "", _fields(cls), "", f"elvi run {name}")


def related(table: Related) -> Group:
    """One table of a related system."""
    made = _table(*table.columns)
    for column in made.columns[1:]:
        column.justify = "right"
    for row in table.rows:
        made.add_row(*(escape(shown(value)) for value in row))
    return Group(f"[bold]{escape(table.title)}[/bold]", made, escape(table.note), *[""] * bool(table.note))


def _doc(cls: type[Any]) -> str:
    return escape(inspect.getdoc(inspect.getmodule(cls)) or "")


def _fields(cls: type[Any]) -> Table:
    fields = _table("field", "type", "default")
    for field in dataclasses.fields(cls):
        default = "required" if field.default is dataclasses.MISSING else repr(field.default)
        fields.add_row(field.name, escape(str(field.type)), escape(default))
    return fields


def answers(result: dict[str, Any]) -> Group:
    """`elvi run`: the plan, question and answers, and what they cost, next to the baseline when it was run too."""
    baseline = result.get("baseline")
    said = _table("", "")
    for place, line in enumerate(result["plan"] or ["nothing: this is the unmodified model"]):
        said.add_row("" if place else "plan", escape(line))
    lines = {"question": result["question"], "expected": result["expected"], "answer": result["answer"]}
    if baseline is not None:
        lines["baseline"] = baseline["answer"]
    for label, line in lines.items():
        if line is not None:
            said.add_row(label, escape(line))
    return Group(said, "", _costs(result["report"], None if baseline is None else baseline["report"]))


def _costs(report: dict[str, Any], baseline: dict[str, Any] | None) -> Table:
    """One row per figure; ratios are plan / baseline."""
    headings = ("plan",) if baseline is None else ("baseline", "plan", "ratio")
    table = _table("", *headings)
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, figure: Callable[[dict[str, Any]], float | None], form: str, unit: float = 1.0) -> None:
        values = [figure(source) for source in (baseline, report) if source is not None]
        cells = ["-" if value is None else form.format(value * unit) for value in values]
        if baseline is not None:
            plain, mine = values
            cells.append(f"{mine / plain:.2f}" if plain and mine is not None else "-")
        table.add_row(name, *cells)

    for seam, name in SEAMS.items():
        if seam in report["visual_tokens"]:
            row(name, lambda source, seam=seam: source["visual_tokens"][seam], "{:.1f}")
    row("time to first token", lambda source: source["ttft_s"], "{:.1f} ms", 1000)
    row("time per output token", lambda source: source["tpot_s"], "{:.2f} ms", 1000)
    row("KV cache after the prompt", lambda source: source["kv_bytes"], "{:.2f} MiB", 2**-20)
    if report["kv_far_bytes"]:
        row("second tier of the KV cache", lambda source: source["kv_far_bytes"], "{:.2f} MiB", 2**-20)
    row("KV read per decoding forward", lambda source: source["kv_read_bytes"], "{:.2f} MiB", 2**-20)
    row("decoding forwards", lambda source: source["forwards"], "{:.0f}")
    row("tokens per decoding forward", lambda source: source["acceptance_length"], "{:.2f}")
    return table


def sweep(data: Results) -> Table:
    """`elvi bench`: a row per cell; shares of right answers, with those of random selection in brackets."""
    table = _table(data["technique"], "questions", "captions", "kept", "KV bytes", "TTFT", "TPOT", "accepted")
    rivals = [(cell["setting"], cell["quality"]) for cell in data["random"]]
    for cell in [data["baseline"], *data["cells"]]:
        if cell is None:
            continue
        rival = next((quality for setting, quality in rivals if setting == cell["setting"]), None)
        setting = ", ".join(f"{field}={value}" for field, value in cell["setting"].items()) or "unmodified model"
        quality = (_scores(cell["quality"], rival), _scores(cell["quality"]["captions"], rival and rival["captions"]))
        memory = (cell["kept_share"], cell["kv_ratio"])
        times = (_spread(cell["ttft_ratio"]), _spread(cell["tpot_ratio"]))
        table.add_row(setting, *quality, *map(_plain, memory), *times, _plain(cell["acceptance_length"]))
    return table


def _scores(mine: Mapping[str, Any], rival: Mapping[str, Any] | None) -> str:
    return f"{mine['accuracy']:.3f}" + ("" if rival is None else f" ({rival['accuracy']:.3f})")


def _spread(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread['median']:.2f} ({spread['q1']:.2f} to {spread['q3']:.2f})"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(*headings: str) -> Table:
    return Table(*headings, box=None, pad_edge=False, show_header=any(headings))
