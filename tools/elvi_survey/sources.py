"""Bibliographic facts of a paper from arXiv, Crossref and OpenReview.

The services' descriptions: arXiv API user manual (Atom), Crossref REST API (works), OpenReview API 2 (notes).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from elvi_survey.web import DAY, Web, WebError

ARXIV = "https://export.arxiv.org/api/query"
ARXIV_APART = 3.0  # seconds between requests, as its terms of use ask
_ID = re.compile(
    r"(?:arxiv:|https?://(?:www\.)?arxiv\.org/(?:abs|pdf|html)/)?(\d{4}\.\d{4,5})(?:v\d+)?(?:\.pdf)?/?", re.I
)
_ATOM = "{http://www.w3.org/2005/Atom}"
_ARXIV = "{http://arxiv.org/schemas/atom}"
_KINDS = {"proceedings-article": "conference", "journal-article": "journal", "posted-content": "preprint"}
T = TypeVar("T")


@dataclass(frozen=True)
class Paper:
    """What a source says; None where it says nothing.  `venue` is in its words, `posted` is YYYY-MM-DD."""

    origin: str
    title: str
    authors: tuple[str, ...] = ()
    authors_truncated: bool = False
    year: int | None = None
    month: int | None = None
    posted: str | None = None
    venue: str | None = None
    venue_type: str | None = None
    arxiv: str | None = None
    doi: str | None = None
    openreview: str | None = None
    url: str | None = None
    comment: str | None = None


def arxiv_id(words: str) -> str | None:
    """The id without version in an id or address of arXiv."""
    found = _ID.fullmatch(words.strip())
    return found[1] if found else None


def from_arxiv(web: Web, id_: str) -> Paper:
    """Raises WebError when arXiv cannot be asked or has no such paper."""
    papers = web.ask(f"{ARXIV}?{urlencode({'id_list': id_})}", arxiv_feed, apart=ARXIV_APART)
    if not papers:
        raise WebError(f"arXiv has no paper {id_}; check the id.")
    return papers[0]


def search_arxiv(web: Web, query: str, start: int, count: int) -> list[Paper]:
    """`count` papers that match, the newest first, from the `start`-th on.  Raises WebError."""
    asked = {"search_query": query, "sortBy": "submittedDate", "sortOrder": "descending"}
    address = f"{ARXIV}?{urlencode(asked | {'start': start, 'max_results': count})}"
    return web.ask(address, arxiv_feed, apart=ARXIV_APART, max_age=DAY / 24)


def from_doi(web: Web, doi: str) -> Paper:
    """Facts that Crossref holds; a DOI of arXiv's own is asked there.  Raises WebError."""
    if found := re.fullmatch(r"10\.48550/arxiv\.(\d{4}\.\d{4,5})", doi, re.I):
        return from_arxiv(web, found[1])
    return web.ask(f"https://api.crossref.org/works/{quote(doi, safe='/')}", _usable("Crossref", _crossref), apart=1.0)


def from_openreview(web: Web, forum: str) -> Paper:
    """Facts of a forum's first note.  Raises WebError."""
    address = f"https://api2.openreview.net/notes?{urlencode({'id': forum})}"
    return web.ask(address, _usable("OpenReview", _openreview), apart=1.0)


def arxiv_feed(body: bytes) -> list[Paper]:
    """The papers of an Atom reply; raises WebError when it is no feed, or a feed that reports an error."""
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise WebError("arXiv answered with something that is not an Atom feed; try again later.")
    try:
        entries = ElementTree.fromstring(body).findall(f"{_ATOM}entry")
    except (ElementTree.ParseError, ValueError, LookupError):
        words = one_line(body[:80].decode("utf-8", "replace"))
        raise WebError(f"arXiv answered with {words!r} instead of an Atom feed; try again in a minute.") from None
    return [_usable("arXiv", _entry)(entry) for entry in entries]


def _entry(entry: ElementTree.Element) -> Paper:
    def words(tag: str) -> str | None:
        return one_line(entry.findtext(tag) or "") or None

    address = words(f"{_ATOM}id") or ""
    if "/api/errors" in address or words(f"{_ATOM}title") == "Error":
        raise WebError(f"arXiv refuses the request ({words(f'{_ATOM}summary')}); check the id or the query.")
    id_ = arxiv_id(address)
    posted = datetime.fromisoformat(words(f"{_ATOM}published") or "").strftime("%Y-%m-%d")
    names = (one_line(author.findtext(f"{_ATOM}name") or "") for author in entry.findall(f"{_ATOM}author"))
    return Paper(
        origin="arXiv API",
        title=words(f"{_ATOM}title") or "",
        authors=tuple(filter(None, names)),
        year=int(posted[:4]),
        posted=posted,
        venue=words(f"{_ARXIV}journal_ref"),
        venue_type="preprint",
        arxiv=id_,
        doi=words(f"{_ARXIV}doi"),
        url=f"https://arxiv.org/abs/{id_}" if id_ else address,
        comment=words(f"{_ARXIV}comment"),
    )


def _crossref(body: bytes) -> Paper:
    work = json.loads(body)["message"]
    date = next(work[key]["date-parts"][0] for key in ("published-print", "issued") if key in work)
    names = (author.get("name") or f"{author.get('given', '')} {author['family']}" for author in work.get("author", []))
    places = [*work.get("container-title", []), work.get("event", {}).get("name")]
    return Paper(
        origin="Crossref",
        title=_unmarked(": ".join([*work["title"], *work.get("subtitle", [])])),
        authors=tuple(map(_unmarked, names)),
        year=date[0],
        month=date[1] if len(date) > 1 else None,
        venue="; ".join(_unmarked(place) for place in places if place) or None,
        venue_type=_KINDS.get(work.get("type")),
        doi=work["DOI"],
        url=f"https://doi.org/{work['DOI']}",
    )


def _openreview(body: bytes) -> Paper:
    note = json.loads(body)["notes"][0]

    def content(key: str) -> Any:
        value = note["content"].get(key)
        return value["value"] if isinstance(value, dict) else value

    venue, when = content("venue"), note.get("pdate") or note.get("cdate")
    year = re.search(r"\b(?:19|20)\d{2}\b", venue or "")
    return Paper(
        origin="OpenReview",
        title=one_line(content("title")),
        authors=tuple(map(one_line, content("authors") or [])),
        year=int(year[0]) if year else datetime.fromtimestamp(when / 1000, UTC).year,
        venue=venue,
        openreview=note.get("forum") or note["id"],
        url=f"https://openreview.net/forum?id={note.get('forum') or note['id']}",
    )


def _usable(service: str, read: Callable[[Any], T]) -> Callable[[Any], T]:
    """`read`, with one sentence for every shape of reply that it does not expect."""

    def checked(body: Any) -> T:
        try:
            return read(body)
        except WebError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError, OverflowError):
            raise WebError(f"{service}'s reply cannot be read; try again later, or give a BibTeX file.") from None

    return checked


def one_line(words: str) -> str:
    """Words with single spaces, without line breaks and control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in words).split())


def _unmarked(words: str) -> str:
    """Words without the tags and entities that publishers leave in titles."""
    return one_line(html.unescape(re.sub(r"</?[A-Za-z][^<>]*>", "", words)))
