"""Pages to Markdown files: front matter for the theme, then HTML that Markdown leaves alone."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from elvi_survey.export import bibtex
from elvi_survey.site import api, browse, compression, heads, roofline, speculation
from elvi_survey.site.figures import glyph, lifecycle, token_path
from elvi_survey.site.keptmaps import frame, kept_map, things
from elvi_survey.site.notebooks import notebook_name
from elvi_survey.site.pages import Page, Sources, category_url, measured_url, places, record_url, subtitle, training
from elvi_survey.site.plots import charts
from elvi_survey.site.reduction import rate
from elvi_survey.site.results import Result, budget_axis, rows
from elvi_survey.site.seams import seam_panel, task_cells
from elvi_survey.site.text import beyond_markdown, inline, one_line, prose

MODEL, SAMPLE = "tiny-qwen", 10003


def environment(sources: Sources, repository: str) -> Environment:
    """Templates that escape every value, with the helpers they use; links into the repository start at `repository`."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.globals.update(_helpers(sources, repository))
    return made


def _helpers(sources: Sources, repository: str) -> dict[str, Any]:
    catalog = sources.catalog
    return {
        "glyph": glyph,
        "lifecycle": lifecycle,
        "token_path": token_path,
        "prose": prose,
        "inline": inline,
        "api_url": api.module_url,
        "bibtex": lambda record: bibtex(record, catalog.venues[record.venue].title),
        "training": training,
        "subtitle": subtitle,
        "record_url": record_url,
        "measured_url": measured_url,
        "category_url": category_url,
        "places": lambda record: places(catalog, record),
        "venue": lambda record: f"{catalog.venues[record.venue].title} {record.year}",
        "model_title": lambda model: catalog.models[model].title if model else "not named",
        "command": lambda record: sources.techniques[record.id].example.command,
        "notebook_name": notebook_name,
        "catalog": catalog,
        "composed": sources.pairs,
        "time": roofline.time,
        **browse.helpers(catalog),
        "curve_panel": compression.panel,
        "seam_panel": seam_panel,
        "task_cells": task_cells,
        "kept_map": kept_map,
        "frame": frame,
        "things": things,
        "needle_rate": rate,
        "fastest": speculation.best,
        "drafting_rows": speculation.rows,
        "head_kinds": heads.kinds,
        "head_layers": heads.layers,
        "head_map": heads.head_map,
        "histogram": speculation.histogram,
        "time_bar": speculation.time_bar,
        "whiskers": speculation.whiskers,
        "source": lambda path, line=None: f"{repository}/blob/main/{path}{f'#L{line}' if line else ''}",
        "form": lambda record: f"{repository}/issues/new?template=fix-entry.yml&record={record.id}",
        "edit": lambda record: f"{repository}/edit/main/catalog/{record.id}.yaml",
        "charts": lambda result, record: charts(result, record.stage, record.display_name),
        "axis": budget_axis,
        "drafted": drafted,
        "rows": rows,
        "worse": worse,
    }


def drafted(result: Result) -> bool:
    """Whether any cell accepted drafted tokens."""
    return any(cell["acceptance_length"] is not None for cell in result.data["cells"])


def worse(result: Result) -> list[tuple[str, str, str]]:
    """(path, path of the random selection, what was asked) wherever random selection got more right at equal budget."""
    found = []
    for path, _, rival in rows(result):
        for where, what in (("quality", "questions"), ("quality/captions", "caption sentences")):
            if rival and result.value(f"{rival}/{where}/correct") > result.value(f"{path}/{where}/correct"):
                found.append((f"{path}/{where}", f"{rival}/{where}", what))
    return found


def markdown(made: Environment, page: Page) -> str:
    """One page as the text of its Markdown file."""
    body = made.get_template(page.template).render(page=page, **page.context)
    head = {"title": one_line(page.title), "description": one_line(page.description), "generated": True}
    if "stage" in page.context:
        head["stage"] = page.context["stage"].id
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    return f"---\n{front}\n---\n\n{beyond_markdown(body).strip()}\n"
