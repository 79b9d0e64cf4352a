"""A folder as a zip with the same bytes for the same files; a built site also so that it opens without a server.

Without a server no script may fetch a file, so the index of Pagefind is left out and the words of all pages are in a
script of their own.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from html import unescape
from pathlib import Path

_LINK = re.compile(r'(?<=href=")(?![a-z]+:|//)[^"?#]+')


def pack(folder: Path, target: Path, *, offline: bool = False) -> int:
    """Write every file below `folder` into `target`, in order and without times; returns how many."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    bodies = {name: path.read_bytes() for name, path in files.items() if not (offline and name.startswith("pagefind/"))}
    if offline:
        html = {name: body.decode("utf-8") for name, body in bodies.items() if name.endswith(".html")}
        bodies |= {name: with_file_names(page).encode("utf-8") for name, page in html.items()}
        bodies["search/pages.js"] = search_script(html).encode("utf-8")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(bodies):
            archive.writestr(zipfile.ZipInfo(f"{target.stem}/{name}"), bodies[name], zipfile.ZIP_DEFLATED)
    return len(bodies)


def search_script(pages: dict[str, str]) -> str:
    """A script with [address, title, words] of every page that Pagefind would index."""
    found = []
    for name, html in sorted(pages.items()):
        body = re.search(r"data-pagefind-body.*</main>", html, re.DOTALL)
        heading = re.search(r"<h1[^>]*>(.*?)</h1>", html, re.DOTALL)
        if body and heading:
            found.append([name, _words(heading[1]), _words(f"<{body[0]}")])
    return f"window.elviPages={json.dumps(found, ensure_ascii=False, separators=(',', ':'))}\n"


def _words(html: str) -> str:
    shown = re.sub(r"<(script|svg|nav)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", shown)).split())


def with_file_names(html: str) -> str:
    """`html` whose links to folders name the page in them: without a server a folder shows its list of files."""
    return _LINK.sub(lambda match: _page(match[0]), html)


def _page(path: str) -> str:
    if path.endswith("/"):
        return f"{path}index.html"
    return f"{path}/index.html" if path.rpartition("/")[2] in (".", "..") else path


if __name__ == "__main__":
    count = pack(Path(sys.argv[1]), Path(sys.argv[2]), offline="--offline" in sys.argv[3:])
    print(f"{sys.argv[2]}: {count} files")
