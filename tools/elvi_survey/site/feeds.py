"""Atom feeds (RFC 4287) of the catalog, whole and by stage, newest entry first.

Entries keep their id for ever: it comes from the record's id, not from an address. `updated` is the day on which a
record entered the catalog, from the record itself, so that the same records give the same bytes.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from elvi_survey.schema import Catalog, Record
from elvi_survey.site.pages import newest_first, record_url
from elvi_survey.site.text import one_line

ATOM = "http://www.w3.org/2005/Atom"
TAG = "tag:elvi-survey.github.io,2026"  # never changes, wherever the site moves
ALL = "all"


def feed_url(name: str) -> str:
    return f"feeds/{name}.xml"


def feed_files(catalog: Catalog, site: str) -> Iterator[tuple[str, str]]:
    """(path below the site's root, text) of every feed; `site` is the address of the root."""
    whole = list(catalog.records.values())
    yield feed_url(ALL), feed(ALL, "ELVI: all papers", whole, site)
    for stage in catalog.stages.values():
        yield feed_url(stage.id), feed(stage.id, f"ELVI: {stage.title}", catalog.in_path(stage.id), site)


def updated(record: Record) -> str:
    """The day a record was added, or else that of the paper, as far as it is known."""
    month = record.first_posted or f"{record.year}-01"
    return f"{record.added or f'{month}-01'}T00:00:00Z"


def feed(name: str, title: str, records: list[Record], site: str) -> str:
    """One feed as text."""
    ordered = sorted(newest_first(records), key=updated, reverse=True)
    root = ET.Element("feed", xmlns=ATOM)
    newest = max(map(updated, ordered), default="2026-01-01T00:00:00Z")
    _texts(root, id=f"{TAG}:feed/{name}", title=title, updated=newest)
    ET.SubElement(root, "link", rel="self", type="application/atom+xml", href=site + feed_url(name))
    ET.SubElement(root, "link", rel="alternate", type="text/html", href=site if name == ALL else f"{site}{name}/")
    _texts(ET.SubElement(root, "author"), name="The ELVI authors")
    for record in ordered:
        entry = ET.SubElement(root, "entry")
        head = f"{record.name}: {record.title.removeprefix(f'{record.name}: ')}" if record.name else record.title
        _texts(entry, id=f"{TAG}:paper/{record.id}", title=head, updated=updated(record), summary=record.summary)
        ET.SubElement(entry, "link", rel="alternate", type="text/html", href=site + record_url(record))
        ET.SubElement(entry, "link", rel="related", href=record.url)
        for author in record.authors:
            _texts(ET.SubElement(entry, "author"), name=author)
        for stage in dict.fromkeys(path[0] for path in record.paths):
            ET.SubElement(entry, "category", term=stage)
    ET.indent(root, " ")
    return ET.tostring(root, encoding="unicode", xml_declaration=True).replace("'utf-8'", "'UTF-8'", 1) + "\n"


def _texts(parent: ET.Element, **texts: str) -> None:
    for name, text in texts.items():
        ET.SubElement(parent, name).text = one_line(text)
