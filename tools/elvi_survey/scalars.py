"""The scalar types of the schema: what each string or number must look like, and what to write instead."""

from __future__ import annotations

import re
from typing import Annotated, LiteralString

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def _matching(pattern: str, code: LiteralString, message: str, fix: str) -> AfterValidator:
    """Validator that wants the whole string to match `pattern` and reports under `code` when it does not."""
    compiled = re.compile(pattern)

    def validate(value: str) -> str:
        if not compiled.fullmatch(value):
            raise PydanticCustomError(code, "{value} {message}", {"value": repr(value), "message": message, "fix": fix})
        return value

    return AfterValidator(validate)


_HOST, _PATH = r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:\d+)?", r"(/[^\s<>\"'`\\{}|^]*)?"
_TRIMMED = _matching(r"\S(?s:.*\S)?", "wrong_value", "starts or ends with white space", "remove the white space")
_WEB = _matching(rf"https?://{_HOST}{_PATH}", "bad_url", "is not a web address", "write the full https:// address")
_ARXIV = _matching(
    r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}", "bad_id", "is not an arXiv id", "write YYMM.NNNNN, without version"
)
_DOI = _matching(r"10\.\d{4,9}/[^\s<>\"{}]+", "bad_id", "is not a DOI", "write 10.1234/abc, without https://doi.org/")
_FORUM = _matching(
    r"[A-Za-z0-9_-]{6,20}", "bad_id", "is not an OpenReview id", "write what follows ?id= in the address"
)
_MONTH = _matching(r"(19|20)\d{2}-(0[1-9]|1[0-2])", "bad_date", "is not a month", "write YYYY-MM")
_DAY = _matching(r"20\d{2}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", "bad_date", "is not a day", "write YYYY-MM-DD")
_KEBAB = _matching(ID.pattern, "bad_id", "is not an id", "use lower-case letters, digits and single hyphens")

Text = Annotated[str, StringConstraints(min_length=1, max_length=4000), _TRIMMED]
Url = Annotated[str, StringConstraints(max_length=500), _WEB]
Arxiv = Annotated[str, _ARXIV]
Doi = Annotated[str, _DOI]
OpenReview = Annotated[str, _FORUM]
YearMonth = Annotated[str, _MONTH]
Day = Annotated[str, _DAY]
Id = Annotated[str, _KEBAB]
Year = Annotated[int, Field(ge=1990, le=2100)]
Month = Annotated[int, Field(ge=1, le=12)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
