"""Which pages of the site a change touches: the written pages of two checkouts, compared as text."""

from __future__ import annotations

import difflib
import re
import tempfile
from pathlib import Path

from elvi.errors import ElviError
from elvi_survey.site.build import write_sources

LINES = 40  # of the diff of one page
PAGES = 30  # whose diff is shown


def changed_pages(base: Path, root: Path) -> str:
    """Markdown: the pages that `root` adds, changes and removes against `base`, with the start of each diff."""
    with tempfile.TemporaryDirectory() as folder:
        new = _pages(root, Path(folder) / "new")
        try:
            old = _pages(base, Path(folder) / "old")
        except ElviError as error:
            return f"The pages cannot be compared: the base has problems ({_fenced(str(error), '')}).\n"
    return report(old, new)


def report(old: dict[str, str], new: dict[str, str]) -> str:
    """The comparison of two sets of pages, by path."""
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not changed:
        return "No page changes.\n"
    counts = [sum(name not in old for name in changed), sum(name not in new for name in changed)]
    counts.insert(1, len(changed) - sum(counts))
    words = ("added", "changed", "removed")
    lines = [", ".join(f"{count} {word}" for count, word in zip(counts, words, strict=True)) + "\n"]
    for name in changed[:PAGES]:
        before, after = old.get(name, ""), new.get(name, "")
        diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1))[2:]
        cut = [f"... {len(diff) - LINES} more lines"] if len(diff) > LINES else []
        body = "\n".join(line[:300] for line in [*diff[:LINES], *cut])
        lines.append(f"<details><summary><code>{name}</code></summary>\n\n{_fenced(body, 'diff')}\n\n</details>\n")
    if len(changed) > PAGES:
        lines.append(f"... and {len(changed) - PAGES} more pages\n")
    return "\n".join(lines)


def _pages(root: Path, folder: Path) -> dict[str, str]:
    write_sources(root, folder)
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.md")}


def _fenced(text: str, language: str) -> str:
    """A code block that its content cannot end."""
    ticks = "`" * (max(map(len, re.findall(r"`+", text)), default=0) + 3)
    return f"{ticks}{language}\n{text}\n{ticks}"
