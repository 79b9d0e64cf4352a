"""One entry of a BibTeX file as the facts of a paper."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from bibtexparser.entrypoint import parse_string
from bibtexparser.middlewares.names import parse_single_name_into_parts, split_multiple_persons_names
from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.latexwalker import LatexWalkerParseError

from elvi.errors import ElviError
from elvi_survey.load import read_text
from elvi_survey.marked import MarkedError
from elvi_survey.sources import Paper, arxiv_id, one_line

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
logging.getLogger("bibtexparser").setLevel(logging.CRITICAL)  # what failed, `failed_blocks` says as well
_KINDS = {"inproceedings": "conference", "conference": "conference", "article": "journal", "misc": "preprint"}


class BibError(ElviError):
    """The file holds no entry that could be read."""


def read_bibtex(path: Path, key: str | None = None) -> Paper:
    """The only entry of the file, or the one named `key`; raises BibError."""
    try:
        return parse_bibtex(read_text(path), path.name, key)
    except MarkedError as error:
        raise BibError(f"{path} cannot be read, {error.message}; {error.fix}.") from None


def parse_bibtex(text: str, name: str, key: str | None = None) -> Paper:
    """The only entry of `text`, or the one named `key`; `name` is what messages call it.  Raises BibError."""
    entries, failed = _blocks(text, name)
    if not entries:
        where = f"line {failed[0]} of {name} is not BibTeX" if failed else f"{name} holds no entry"
        raise BibError(f"{where[0].upper()}{where[1:]}; write one @article or @inproceedings with a title.")
    if key is None and len(entries) > 1:
        raise BibError(f"{name} holds {len(entries)} entries ({', '.join(list(entries)[:8])}); choose one with --key.")
    key = key or next(iter(entries))
    if key not in entries:
        raise BibError(f"{name} has no entry {key!r}; it has {', '.join(list(entries)[:8])}.")
    return _paper(*entries[key], origin=f"BibTeX entry {_words(key)[:100]}".strip())


def _blocks(text: str, name: str) -> tuple[dict[str, tuple[str, dict[str, str]]], list[int]]:
    """Type and fields of each entry by key, and the lines of what could not be read."""
    try:
        library = parse_string(text)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, AssertionError):
        raise BibError(f"{name} is not BibTeX; write one @article or @inproceedings with a title.") from None
    entries = {
        entry.key: (entry.entry_type.lower(), {field.key.lower(): str(field.value) for field in entry.fields})
        for entry in library.entries
    }
    return entries, [(block.start_line or 0) + 1 for block in library.failed_blocks]


def _paper(kind: str, fields: dict[str, str], origin: str) -> Paper:
    title = _words(fields.get("title", ""))
    if not title:
        raise BibError(f"{origin} has no title; add `title = {{...}}`.")
    names = [name for name in map(_name, _split(fields.get("author", ""))) if name]
    venue = _words(fields.get("booktitle") or fields.get("journal") or "") or None
    ids = [fields.get("eprint", ""), *re.findall(r"\d{4}\.\d{4,5}", f"{venue or ''} {fields.get('url', '')}")]
    arxiv = next(filter(None, map(arxiv_id, map(str.strip, ids))), None)
    preprint = kind == "misc" or bool(venue and re.search(r"arxiv|corr", venue, re.I))
    year = re.search(r"\b(?:19|20)\d{2}\b", fields.get("year", "") or fields.get("date", ""))
    return Paper(
        origin=origin,
        title=title,
        authors=tuple(name for name in names if name != "others"),
        authors_truncated="others" in names,
        year=int(year[0]) if year else None,
        month=_month(fields.get("month", "")),
        venue=venue,
        venue_type="preprint" if preprint else _KINDS.get(kind),
        arxiv=arxiv,
        doi=re.sub(r"^https?://(dx\.)?doi\.org/", "", _address(fields.get("doi", ""))) or None,
        openreview=next(iter(re.findall(r"openreview\.net/\w+\?id=([\w-]+)", fields.get("url", ""))), None),
        url=_address(fields.get("url", "")) or (f"https://arxiv.org/abs/{arxiv}" if arxiv else None),
    )


def _split(authors: str) -> list[str]:
    return split_multiple_persons_names(" ".join(authors.split()))


def _name(words: str) -> str:
    """`Last, First` and `First Last` as `First Last`; a name in braces stays as it is."""
    if words.startswith("{"):
        return _words(words)
    parts = parse_single_name_into_parts(words, strict=False)
    return _words(" ".join([*parts.first, *parts.von, *parts.last, *parts.jr]))


def _words(latex: str) -> str:
    """LaTeX as plain words on one line, without control characters."""
    for command, letter in (("textbraceleft", r"\{"), ("textbraceright", r"\}"), ("textasciicircum", r"\^")):
        latex = latex.replace(rf"\{command}{{}}", letter)  # the decoder does not know them
    try:
        text = LatexNodes2Text(math_mode="verbatim", keep_comments=True).latex_to_text(latex, tolerant_parsing=True)
    except (LatexWalkerParseError, ValueError, LookupError, RecursionError, AttributeError, TypeError):
        text = latex.replace("{", "").replace("}", "")
    return one_line(text)


def _address(latex: str) -> str:
    """A web address or DOI, in which only the escapes of LaTeX are undone: `%` starts no comment there."""
    inside = re.sub(r"^\\url\{(.*)\}$", r"\1", latex.strip())
    return re.sub(r"\\([%&#_$~])", r"\1", inside).strip("{} ")


def _month(words: str) -> int | None:
    start = words.strip().lower()[:3]
    number = int(start) if start.isascii() and start.isdigit() else 0
    return _MONTHS.index(start) + 1 if start in _MONTHS else number if 1 <= number <= 12 else None
