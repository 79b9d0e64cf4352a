"""Canonical form of records: keys in the order of the schema, ids and dates in quotes, comments kept (ruamel.yaml)."""

from __future__ import annotations

import io
import types
from pathlib import Path
from typing import Any, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from elvi_survey.load import catalog_files, read_text
from elvi_survey.marked import MarkedError, read_marked
from elvi_survey.problems import CatalogError, Problem
from elvi_survey.schema import Model, Record

QUOTED = {"arxiv", "doi", "openreview", "first_posted"}


def format_text(text: str) -> str:
    """`text` of a record in canonical form; raises MarkedError when it cannot be read."""
    if not isinstance(read_marked(text).data, dict):
        raise MarkedError("wrong-type", 1, 1, "the file is not a mapping", "write `key: value` lines")
    yaml = YAML()
    yaml.width, yaml.preserve_quotes, yaml.allow_unicode = 4096, True, True
    yaml.representer.add_representer(type(None), lambda rep, _: rep.represent_scalar("tag:yaml.org,2002:null", "null"))
    data = yaml.load(text)
    _canonical(data, Record)
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


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


def _canonical(data: Any, kind: Any) -> None:
    """Reorder and quote in place, following the annotations of the schema."""
    if isinstance(data, list):
        for item in data:
            _canonical(item, next(iter(get_args(kind)), None))
    if not isinstance(data, CommentedMap) or not (isinstance(kind, type) and issubclass(kind, Model)):
        return
    order = {name: index for index, name in enumerate(kind.model_fields)}
    for key in sorted(data, key=lambda key: order.get(key, len(order))):
        data.move_to_end(key)
        if key in QUOTED and isinstance(data[key], (str, float, int)):
            data[key] = DoubleQuotedScalarString(data[key])
        if key in order:
            _canonical(data[key], _bare(kind.model_fields[key].annotation))


def _bare(annotation: Any) -> Any:
    """The annotation without `Annotated` and `| None`."""
    if get_origin(annotation) is types.UnionType:
        return _bare(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation
