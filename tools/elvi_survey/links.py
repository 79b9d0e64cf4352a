"""Health of external links: ok, dead or unknown, judged from a history so that one bad day condemns nothing.

404 and 410 are strikes; the third in a row, on three days, makes a link dead.  A refusal (401, 403, 429), a server's
error and a host that does not answer say nothing about the page: the link is unknown and keeps its strikes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from elvi.errors import ElviError
from elvi_survey.schema import Catalog, Record
from elvi_survey.web import Web, WebError

STRIKES = 3
APART = 1.0  # seconds between requests to one host
GONE = (404, 410)
_HOST = re.compile(r"[A-Za-z0-9.-]+")
State = Literal["ok", "dead", "unknown"]


@dataclass(frozen=True)
class Health:
    """State of one address; `reply` is the last status or what went wrong, dates are YYYY-MM-DD."""

    state: State = "unknown"
    strikes: int = 0
    checked: str | None = None
    last_ok: str | None = None
    reply: str | None = None


@dataclass
class History:
    """What earlier runs saw, by address."""

    links: dict[str, Health] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> History:
        """The history in `path`, empty when there is no such file; raises ElviError when it is something else."""
        if not path.exists():
            return cls()
        try:
            links = json.loads(path.read_text(encoding="utf-8"))["links"]
            return cls({str(url): Health(**health) for url, health in links.items()})
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ElviError(f"{path} is not a history of links; name another file with --history.") from None

    def write(self, path: Path) -> None:
        data = {"links": {url: asdict(health) for url, health in sorted(self.links.items())}}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ElviError(f"{path} cannot be written ({error.strerror}); name another file with --history.") from None


def addresses(catalog: Catalog) -> dict[str, list[str]]:
    """Every external address of the records, with the ids of the records that name it."""
    found: dict[str, list[str]] = {}
    for record in catalog.records.values():
        for url in dict.fromkeys(_of(record)):
            found.setdefault(url, []).append(record.id)
    return found


def _of(record: Record) -> list[str]:
    return [record.url, *([record.project_page] if record.project_page else []), *(link.url for link in record.links)]


def look(web: Web, url: str) -> int | str:
    """The status of `url`, or why there is none; asks for the body only where a server refuses to answer HEAD."""
    host = urlsplit(url).hostname or ""
    if not _HOST.fullmatch(host):
        return "no host"
    try:
        web.space(host, APART)
        status = web.opener(url, "HEAD").status
        if status in (*GONE, 400, 403, 405, 501):
            web.space(host, APART)
            status = web.opener(url, "GET").status
    except WebError as error:
        return str(error)
    return status


def judged(before: Health, seen: int | str, today: str) -> Health:
    """The health after one more look; several looks on one day are one strike."""
    after = replace(before, checked=today, reply=str(seen))
    if isinstance(seen, int) and 200 <= seen < 400:
        return replace(after, state="ok", strikes=0, last_ok=today)
    if seen in GONE:
        struck = before.reply in ("404", "410") and before.checked == today
        strikes = before.strikes + (0 if struck else 1)
        return replace(after, strikes=strikes, state="dead" if strikes >= STRIKES else "unknown")
    return replace(after, state="dead" if before.strikes >= STRIKES else "unknown")


def check_links(
    web: Web, catalog: Catalog, history: History, today: str, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Health]:
    """Look at every address once and note it in `history`, which forgets what the catalog no longer names."""
    links = {}
    for url in addresses(catalog):
        links[url] = judged(history.links.get(url, Health()), look(web, url), today)
        tell(url)
    history.links = links
    return links


def summary(links: Mapping[str, Health], catalog: Catalog) -> str:
    """Counts, then every link that is not ok with its records."""
    states = [health.state for health in links.values()]
    lines = [
        f"{len(links)} links: " + ", ".join(f"{states.count(state)} {state}" for state in ("ok", "dead", "unknown"))
    ]
    named = addresses(catalog)
    for url, health in sorted(links.items(), key=lambda item: (item[1].state, item[0])):
        if health.state != "ok":
            strikes = f", strike {health.strikes} of {STRIKES}" if health.strikes else ""
            lines.append(f"{health.state} {url} ({health.reply}{strikes}) in {', '.join(named.get(url, []))}")
    return "\n".join(lines) + "\n"
