"""Techniques as people write them on the command line: `fastv`, or `fastv:layer=2,keep_ratio=0.5`."""

from __future__ import annotations

import dataclasses
from typing import Any

from elvi import discover
from elvi.errors import ElviError


class SpecError(ElviError):
    """A technique that was written down wrongly: an unknown field, or a value of the wrong type."""


def parse(text: str) -> Any:
    """The technique that `ID[:field=value,…]` describes. Raises UnknownTechniqueError, SpecError or BudgetError."""
    name, _, settings = text.partition(":")
    cls = discover.technique(name)
    values = {}
    for setting in filter(None, settings.split(",")):
        field, equals, value = setting.partition("=")
        if not equals:
            raise SpecError(f"{setting!r} in {text!r} sets nothing: write field=value, such as {_example(name, cls)}.")
        values[field.strip()] = convert(name, cls, field.strip(), value.strip())
    return cls(**values)


def whole(technique: Any) -> list[Any]:
    """The technique with those it cannot act without, which its class may name as `companions`."""
    return [*map(parse, getattr(technique, "companions", ())), technique]


def convert(name: str, cls: type[Any], field: str, text: str) -> Any:
    """The value of one field, of the type that the field is declared with."""
    declared = {item.name: str(item.type) for item in dataclasses.fields(cls)}
    if field not in declared:
        have = f"it has {', '.join(declared)}" if declared else "it has none"
        raise SpecError(f"{name} has no field {field!r}: {have}.")
    kinds = declared[field].replace(" ", "").split("|")
    for kind in sorted(kinds, key=lambda kind: kind == "str"):  # any text is a str, so the others are tried first
        try:
            return _READERS[kind](text)
        except ValueError:
            continue
    raise SpecError(
        f"{name} takes {declared[field]} for {field}, and {text!r} is not one: write {_example(name, cls)}."
    )


def _none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError(text)


def _bool(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


_READERS = {"bool": _bool, "int": int, "float": float, "None": _none, "str": str}


def _example(name: str, cls: type[Any]) -> str:
    settings = ",".join(f"{field.name}={field.default}" for field in dataclasses.fields(cls))
    return f"{name}:{settings}" if settings else name
