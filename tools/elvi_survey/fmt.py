"""Canonical form of records: keys in the order of the schema, ids and dates in quotes, comments kept (ruamel.yaml)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from elvi_survey.load import catalog_files, read_text
from elvi_survey.marked import Marked, MarkedError, read_marked
from elvi_survey.problems import CatalogError, Problem
from elvi_survey.schema import Model, Record

QUOTED = {"arxiv", "doi", "openreview", "first_posted", "added"}


class _Representer(RoundTripRepresenter):
    """Writes the unknown as `null`, not as nothing."""


_Representer.add_representer(type(None), lambda rep, _: rep.represent_scalar("tag:yaml.org,2002:null", "null"))


def format_text(text: str) -> str:
    """`text` of a record in canonical form; raises MarkedError when it cannot be read."""
    marked = read_marked(text)
    if not isinstance(marked.data, dict):
        raise MarkedError("wrong-type", 1, 1, "the file is not a mapping", "write `key: value` lines")
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width, yaml.preserve_quotes, yaml.allow_unicode = 4096, True, True
    try:
        data = yaml.load(_top_in_order(text, marked))
    except (YAMLError, ValueError):
        raise MarkedError(
            "yaml-format", 1, 1, "the file cannot be rewritten", "run `elvi-survey check` first"
        ) from None
    quoted = QUOTED & {key for key, value in marked.data.items() if isinstance(value, (str, int, float))}
    texts = {key: marked.marks[(key,)].raw or marked.data[key] for key in quoted}
    data.update({key: DoubleQuotedScalarString(text) for key, text in texts.items()})
    _in_order(data, Record)
    out = io.StringIO()
    yaml.dump(data, out)
    written = read_marked(out.getvalue())
    if written.data != marked.data | texts:
        raise MarkedError("yaml-format", 1, 1, "rewriting would change a value", "run `elvi-survey check` first")
    return _top_in_order(out.getvalue(), written)  # sorting below the top may leave a blank line at an end


def format_files(root: Path, *, write: bool) -> list[Path]:
    """Records below `root` that were not canonical, rewritten when `write`; CatalogError when one cannot be read."""
    changed, problems = [], []
    for path in catalog_files(root):
        try:
            text = read_text(path)
            canonical = format_text(text)
        except MarkedError as error:
            file = path.relative_to(root).as_posix()
            problems.append(Problem(file, error.line, error.column, error.code, error.message, error.fix))
            continue
        if canonical != text:
            changed.append((path, canonical))
    if problems:
        raise CatalogError(problems)
    if write:
        for path, canonical in changed:
            path.write_text(canonical, encoding="utf-8")
    return [path for path, _ in changed]


def _top_in_order(text: str, marked: Marked) -> str:
    """`text` with its top-level entries sorted as text, so that the comments above a key move with it."""
    lines = text.splitlines(keepends=True)
    starts = {key: marked.marks[(key,)].key_line - 1 for key in marked.data}
    if any(not lines[start].startswith((key, f"'{key}", f'"{key}')) for key, start in starts.items()):
        return text  # written in braces
    for key, start in starts.items():
        while start > 0 and lines[start - 1].startswith("#"):
            start -= 1
        starts[key] = start
    ends = dict(zip(starts, [*list(starts.values())[1:], len(lines)], strict=True))
    blocks = {key: "".join(lines[starts[key] : ends[key]]).rstrip() + "\n" for key in starts}
    head = "".join(lines[: min(starts.values(), default=0)])
    return head + "".join(blocks[key] for key in sorted(blocks, key=_rank(Record)))


def _rank(kind: type[Model]) -> Callable[[object], int]:
    """Sort key: the place of a field in the schema, the last place for what is not a field."""
    order: dict[object, int] = {name: index for index, name in enumerate(kind.model_fields)}
    return lambda key: order.get(key, len(order))


def _in_order(data: Any, kind: Any) -> None:
    """Sort the keys in place, on every level, as the schema lists them; unknown keys go last."""
    if isinstance(data, list):
        for item in data:
            _in_order(item, next(iter(get_args(kind)), None))
    elif isinstance(data, CommentedMap) and isinstance(kind, type) and issubclass(kind, Model):
        keys: list[Any] = sorted(data, key=_rank(kind))
        for key in keys:
            data.move_to_end(key)
            if key in kind.model_fields:
                _in_order(data[key], kind.model_fields[key].annotation)
