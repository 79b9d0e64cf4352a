"""Errors shown to people: one sentence — what was asked, why it cannot be, what to do."""

from __future__ import annotations


class ElviError(ValueError):
    """Base of every error that a user can cause; the command line prints its sentence and exits with code 2."""


class BudgetError(ElviError):
    """A field of a technique is out of its range."""


class PlanError(ElviError):
    """Two techniques of one plan cannot work together; `culprits` are their class names."""

    def __init__(self, message: str, *culprits: str) -> None:
        super().__init__(message)
        self.culprits = culprits


class FitError(ElviError):
    """A technique, model or machine lacks what was asked of it."""


def check_range(owner: object, field: str, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise BudgetError unless low <= owner.field <= high (low excluded when `open_low`)."""
    value = getattr(owner, field)
    inside = (low < value if open_low else low <= value) and value <= high
    if not inside:
        span = f"{'above' if open_low else 'from'} {low:g} to {high:g}"
        raise BudgetError(f"{type(owner).__name__} was asked for {field}={value}, which is out of range: use {span}.")


def check_choice(owner: object, field: str, *choices: object) -> None:
    """Raise BudgetError unless owner.field is one of the choices."""
    value = getattr(owner, field)
    if value not in choices:
        known = f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
        raise BudgetError(f"{type(owner).__name__} was asked for {field}={value}, which it does not know: use {known}.")


def check_asked(owner: object, question: str | None) -> None:
    """Raise FitError without a question."""
    name = type(owner).__name__
    if not question:
        raise FitError(f"{name} chooses by the question, but none was asked: ask one, or drop {name}.")
