"""A folder as a zip with the same bytes for the same files; a built site also so that it opens without a server."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

_LINK = re.compile(r'(?<=href=")(?![a-z]+:|//)[^"?#]+')


def pack(folder: Path, target: Path, *, offline: bool = False) -> int:
    """Write every file below `folder` into `target`, in order and without times; returns how many."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            body = path.read_bytes()
            if offline and path.suffix == ".html":
                body = with_file_names(body.decode("utf-8")).encode("utf-8")
            name = f"{target.stem}/{path.relative_to(folder).as_posix()}"
            archive.writestr(zipfile.ZipInfo(name), body, zipfile.ZIP_DEFLATED)
    return len(files)


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
