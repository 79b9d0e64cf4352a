"""What people who write techniques may call: one page per module of the core, in the order in which they need it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup, escape

from elvi_survey.apifacts import Module
from elvi_survey.site.pages import Page, Sources

URL = "api/"
GROUPS = {
    "Where a technique acts": ("seams", "facts"),
    "What it is given": ("tokens", "views", "store", "rows", "run"),
    "Choosing and merging": (
        "scores",
        "budgets",
        "blocks",
        "match",
        "merge",
        "cluster",
        "spread",
        "segments",
        "partition",
        "connected",
        "frames",
    ),
    "Codes, heads and tables": ("bits", "heads", "searched"),
    "Drafting and accepting": ("accept", "draft", "bridge", "warp"),
    "What runs it": ("plan", "generate", "stream", "walk", "pieces", "meter"),
}
OTHERS = "What else there is"


@dataclass(frozen=True)
class Links:
    """From types in signatures to where they are explained."""

    page: Page
    homes: dict[str, str]

    def linked(self, signature: str, own: str = "") -> Markup:
        """The signature, with every class of the core but its `own` as a link."""
        parts = re.split(r"(\w+)", signature)
        return Markup("").join(self._word(part) if part != own else escape(part) for part in parts)

    def _word(self, word: str) -> Markup:
        home = self.homes.get(word)
        link = Markup('<a href="{}#{}">{}</a>')
        return link.format(self.page.to(module_url(home)), word, word) if home else escape(word)


def module_url(name: str) -> str:
    return f"{URL}{name}/"


def grouped(core: dict[str, Module]) -> dict[str, list[Module]]:
    """The modules under their titles; a module that no group names stands in the last one."""
    named = {name for names in GROUPS.values() for name in names}
    groups = {title: [core[name] for name in names if name in core] for title, names in GROUPS.items()}
    groups[OTHERS] = [module for name, module in core.items() if name not in named]
    return {title: modules for title, modules in groups.items() if modules}


def pages(sources: Sources) -> Iterator[Page]:
    """The overview, then a page for each module."""
    groups = grouped(sources.core)
    words = "The core of elvi, for people who write techniques: what they implement, are given and may call."
    yield Page(URL, "api_index.html", "The core", words, {"groups": groups})
    homes = {
        name.name: module.name for module in sources.core.values() for name in module.names if name.kind == "class"
    }
    for title, modules in groups.items():
        for module in modules:
            context = {"module": module, "group": title, "beside": modules}
            page = Page(module_url(module.name), "api.html", f"elvi.core.{module.name}", module.summary, context)
            context["linked"] = Links(page, homes).linked
            yield page
