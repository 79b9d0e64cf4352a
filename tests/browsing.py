"""What tests of pages ask of a browser: axe-core's violations, and whether a page scrolls sideways."""

from pathlib import Path

from playwright.sync_api import Page

AXE = Path(__file__).parents[1] / "node_modules/axe-core/axe.min.js"
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]}


def violations(page: Page) -> list[tuple[str, list[str]]]:
    """(rule, elements) of everything axe-core finds on the page that is open."""
    page.add_script_tag(path=AXE)
    found = page.evaluate("rules => axe.run(document, rules)", RULES)
    return [(v["id"], [node["html"][:160] for node in v["nodes"]]) for v in found["violations"]]


def scrolls_sideways(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
