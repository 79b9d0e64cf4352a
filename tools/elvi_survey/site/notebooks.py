"""A notebook per technique: its command in Python, beside the unmodified model, and its budget varied.

They are written as nbformat 4.5 by hand: the cells are few, and the same sources give the same bytes.
"""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from elvi_survey.codefacts import RELATED, Technique
from elvi_survey.schema import Record
from elvi_survey.site.pages import Sources, record_url
from elvi_survey.site.text import one_line

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|$~])")
_SEE = """import elvi
import numpy as np
from PIL import Image

model = elvi.load("{model}")
clip = elvi.sample({sample})
print(f"{{clip.question}} Expected: {{clip.expected}}")
Image.fromarray(np.hstack(clip.frames[::2]))"""
_SHOW = '''def figures(out):
    """What a run kept and what it cost."""
    report = out.report
    return {
        "visual tokens from the encoder": report.visual_tokens["encoded"],
        "visual tokens per layer, mean": report.visual_tokens["prefill_mean"],
        "visual tokens in the cache, mean": report.visual_tokens["cache_mean"],
        "MFLOP of encoder and prefill": report.flops / 1e6,
        "KV cache after the prompt, KiB": report.kv_bytes / 1024,
        "KV read per decoding forward, KiB": report.kv_read_bytes / 1024,
        "decoding forwards": report.forwards,
    }


def show(runs):
    """The answer of each run, then a column of its figures."""
    for name, out in runs.items():
        print(f"{name}: {out.text}")
    print("", " " * 34 + "".join(f"{name:>22}" for name in runs), sep="\\n")
    for figure in figures(out):
        print(f"{figure:34}" + "".join(f"{figures(out)[figure]:22.1f}" for out in runs.values()))'''
_RUN = '''technique = elvi.technique("{id}")
{beside}

def run(**settings):
    """The answer at these settings; what is not set has its default."""
    return elvi.generate(model, clip, plan=elvi.Plan({others}technique(**settings)))


unmodified = elvi.generate(model, clip)
show({{"unmodified": unmodified, "{name}": run({settings})}})'''
_VARY = 'show({{"unmodified": unmodified}} | {{f"{field}={{value}}": run({field}=value) for value in {values}}})'
_SYSTEM = '''import elvi
from elvi import tables, terminal

system = elvi.technique("{id}")


def show(found):
    """Print the tables of a run."""
    for table in found:
        terminal.echo(tables.related(table))


show(system().run(None))'''
_VARY_SYSTEM = """for value in {values}:
    print(f"{field}={{value}}")
    show(system({field}=value).run(None))"""


def notebook_name(record: Record) -> str:
    """Its notebook stands beside its page."""
    return f"{record.id}.ipynb"


def notebook_files(sources: Sources, site: str, repository: str) -> Iterator[tuple[str, str]]:
    """(path, text) of the notebook of every record that runs; links start at `site`, elvi is got from `repository`."""
    for record in sources.catalog.records.values():
        if record.implementation.status == "runnable":
            cells = _cells(record, sources.techniques[record.id], site, repository)
            yield f"{record_url(record)}{notebook_name(record)}", json.dumps(_notebook(cells), indent=1) + "\n"


def _cells(record: Record, code: Technique, site: str, repository: str) -> Iterator[dict[str, Any]]:
    name, page = _plain(record.display_name), f"{site}{record_url(record)}"
    system = code.stage == RELATED
    beside = "on what ships with it" if system else f"beside the unmodified model, as `{code.example.command}` does"
    words = f"# {name}\n\n{_plain(record.summary)}\n\n[Its page]({page}) says more. This notebook runs it {beside}."
    yield _markdown("intro", words)
    yield _code("install", f'%pip install --quiet "elvi @ git+{repository}"', tags=["install"])
    if system:
        yield _code("run", _SYSTEM.format(id=record.id))
        if code.main.prompt:
            yield _markdown("own", "## An input of your own")
            yield _code("prompt", f"show(system().run({code.main.prompt!r}))")
    else:
        yield from _beside(code)
    if code.main.sweep:
        field, values = code.main.sweep
        yield _markdown("change", f"## Another `{field}`")
        yield _code("vary", (_VARY_SYSTEM if system else _VARY).format(field=field, values=values))


def _beside(code: Technique) -> Iterator[dict[str, Any]]:
    yield _code("see", _SEE.format(model=code.example.model, sample=code.example.sample))
    yield _code("show", _SHOW)
    yield _markdown("beside", "## Beside the unmodified model")
    *others, spec = code.example.plan
    beside = f"beside = [{', '.join(map(_called, others))}]  # it cannot act alone\n" if others else ""
    told = {"beside": beside, "others": "*beside, " if others else "", "settings": _settings(spec)}
    yield _code("run", _RUN.format(id=code.id, name=code.name, **told))


def _called(spec: str) -> str:
    """`id:field=value` in Python."""
    return f'elvi.technique("{spec.partition(":")[0]}")({_settings(spec)})'


def _settings(spec: str) -> str:
    pairs = [setting.partition("=") for setting in spec.partition(":")[2].split(",") if setting]
    return ", ".join(f"{field}={_literal(value)}" for field, _, value in pairs)


def _literal(text: str) -> str:
    """The value as Python writes it; what is no literal is a string."""
    try:
        return repr(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return json.dumps(text)


def _plain(words: str) -> str:
    return _MARKDOWN.sub(r"\\\1", one_line(words))


def _markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}


def _code(name: str, text: str, tags: list[str] | None = None) -> dict[str, Any]:
    run = {"execution_count": None, "outputs": []}
    return _markdown(name, text) | {"cell_type": "code", "metadata": {"tags": tags} if tags else {}} | run


def _notebook(cells: Iterator[dict[str, Any]]) -> dict[str, Any]:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
