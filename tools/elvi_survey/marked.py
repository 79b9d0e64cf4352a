"""YAML with a line and column for every value: 1.2 core scalars, no duplicate keys, anchors, tags, second documents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
MAX_DEPTH = 12
_INT = re.compile(r"[-+]?\d{1,18}")
_FLOAT = re.compile(r"[-+]?(\.\d+|\d+\.\d*)([eE][-+]?\d{1,3})?|[-+]?\d+[eE][-+]?\d{1,3}")
_STRANGE_BREAK = re.compile("[\x85\u2028\u2029]|\r(?!\n)")  # a line to YAML, not to editors and git
_UNSEEN = ("a character stands here that cannot be seen, as one that turns text round", "remove it")
_WORDS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """Where a value and its key stand (from 1); `raw` is an unquoted scalar as typed."""

    line: int
    column: int
    key_line: int
    key_column: int
    raw: str | None = None


@dataclass(frozen=True)
class Marked:
    """`data` is plain dicts, lists and scalars; `marks` maps the path to each value (the document itself is `()`)."""

    data: Any
    marks: dict[Path, Mark]

    def nearest(self, path: Path) -> Mark:
        """The mark of `path`, or of its closest ancestor when the value is absent."""
        while path not in self.marks:
            path = path[:-1]
        return self.marks[path]


class MarkedError(ValueError):
    """The text cannot be read; carries code, position and fix."""

    def __init__(self, code: str, line: int, column: int, message: str, fix: str) -> None:
        super().__init__(message)
        self.code, self.line, self.column, self.message, self.fix = code, line, column, message, fix


@dataclass
class _Builder:
    events: Iterator[Any]
    marks: dict[Path, Mark] = field(default_factory=dict)

    def document(self) -> Any:
        start = next(self.events)
        if isinstance(start, yaml.StreamEndEvent):
            raise MarkedError("yaml-empty", 1, 1, "the file is empty", "write the record or delete the file")
        data = self.value(next(self.events), (), None)
        end, extra = next(self.events), next(self.events)
        for event in (start, end, extra):
            if not isinstance(event, yaml.StreamEndEvent) and event.explicit:
                raise _at(event, "yaml-document", "a document marker stands here", "delete `---`, `...` and directives")
        return data

    def value(self, event: Any, path: Path, key: Any) -> Any:
        _refuse(event, len(path))
        raw = event.value if isinstance(event, yaml.ScalarEvent) and not event.style else None
        start, key_start = event.start_mark, (key or event).start_mark
        self.marks[path] = Mark(start.line + 1, start.column + 1, key_start.line + 1, key_start.column + 1, raw)
        if isinstance(event, yaml.ScalarEvent):
            return event.value if raw is None else _scalar(raw)
        if isinstance(event, yaml.SequenceStartEvent):
            items = enumerate(_until(self.events, yaml.SequenceEndEvent))
            return [self.value(item, (*path, index), None) for index, item in items]
        return self.mapping(path)

    def mapping(self, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key in _until(self.events, yaml.MappingEndEvent):
            _refuse(key, len(path))
            if not isinstance(key, yaml.ScalarEvent):
                raise _at(key, "yaml-key", "a key is not a word", "write `key: value`")
            if key.value in data:
                raise _at(key, "duplicate-key", f"{key.value!r} is set twice", "delete one of the two")
            data[key.value] = self.value(next(self.events), (*path, key.value), key)
        return data


def _until(events: Iterator[Any], end: type) -> Iterator[Any]:
    """Events up to the first of type `end`; the consumer may itself draw from `events` between two of them."""
    for event in events:
        if isinstance(event, end):
            return
        yield event


def read_marked(text: str) -> Marked:
    """Read one YAML document; raises MarkedError at the first place that cannot be accepted."""
    if found := _STRANGE_BREAK.search(text):
        line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
        raise MarkedError(
            "yaml-character", line, column, "a line ends in an unusual character", "end it with a newline"
        )
    if (at := _unseen(text)) is not None:
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise MarkedError("yaml-character", line, column, *_UNSEEN)
    events = yaml.parse(text, Loader=yaml.CSafeLoader)
    try:
        next(events)  # the stream start
        builder = _Builder(events)
        return Marked(builder.document(), builder.marks)
    except yaml.MarkedYAMLError as error:
        opened = (error.context or "").startswith(("while scanning", "while parsing a flow"))
        started = error.context_mark if opened else None
        mark = started or error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        fix = "check indentation, quotes and colons"
        raise MarkedError("yaml-syntax", line, column, error.problem or "not YAML", fix) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise MarkedError("yaml-character", line, 1, "a control character stands in the file", "remove it") from None


def _unseen(text: str) -> int | None:
    """Where the first character stands that only changes how its neighbours look, as their direction."""
    if text.isascii():
        return None
    return next((at for at, letter in enumerate(text) if unicodedata.category(letter) == "Cf"), None)


def _scalar(raw: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar after the YAML 1.2 core schema (so `no` and `012:30` are strings)."""
    if raw in _WORDS:
        return _WORDS[raw]
    if _INT.fullmatch(raw):
        return int(raw)
    return float(raw) if _FLOAT.fullmatch(raw) else raw


def _refuse(event: Any, depth: int) -> None:
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise _at(event, "yaml-alias", "anchors and aliases are not read", "write the value out")
    if event.tag is not None:
        raise _at(event, "yaml-tag", f"the tag {event.tag!r} is not read", "delete the tag")
    if isinstance(event, yaml.ScalarEvent) and _unseen(event.value) is not None:  # written as an escape
        raise _at(event, "yaml-character", *_UNSEEN)
    if depth > MAX_DEPTH:
        raise _at(event, "yaml-depth", f"nested more than {MAX_DEPTH} levels deep", "flatten it")


def _at(event: Any, code: str, message: str, fix: str) -> MarkedError:
    return MarkedError(code, event.start_mark.line + 1, event.start_mark.column + 1, message, fix)
