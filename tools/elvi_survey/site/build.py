"""`elvi-survey site build`: catalog, code facts and results become Markdown, mkdocs makes the site, Pagefind its index.

Everything is written by plain commands before and after mkdocs; nothing runs inside it, so that its successor Zensical
makes the same pages of the same sources (`--builder zensical`). The same inputs give the same bytes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

from elvi import pairs
from elvi_survey.apifacts import read_core
from elvi_survey.codefacts import read_facts, read_techniques
from elvi_survey.load import load_catalog
from elvi_survey.site import api, browse, compare, relations, timeline
from elvi_survey.site.errors import SiteError
from elvi_survey.site.explorer import script_files
from elvi_survey.site.feeds import feed_files
from elvi_survey.site.lean import lean
from elvi_survey.site.notebooks import notebook_files
from elvi_survey.site.pages import Sources, all_pages, compare_page
from elvi_survey.site.render import environment, markdown
from elvi_survey.site.results import load_machines, load_results

UNUSED = ("assets/javascripts", "assets/stylesheets")
UNUSED_INDEX = "search.json"
BUILDERS = {"mkdocs": ("build", "--strict"), "zensical": ("build", "--strict", "--clean")}
PORT = 8000


def collect(root: Path) -> Sources:
    """All inputs of the site below a repository's root. Raises CatalogError or SiteError."""
    catalog, techniques = load_catalog(root), read_techniques(root)
    for record in catalog.records.values():
        if record.implementation.status == "runnable" and record.id not in techniques:
            raise SiteError(
                f"{record.id} is marked runnable but {record.module} does not exist; add it or mark it planned."
            )
    results = root / "results"
    return Sources(
        catalog,
        techniques,
        read_facts(root),
        load_results(results),
        core=read_core(root),
        machines=load_machines(results),
        pairs=pairs.load(root / pairs.FILE) if (root / pairs.FILE).is_file() else None,
    )


def write_sources(root: Path, folder: Path) -> None:
    """Write the Markdown of every page and copy the hand-written ones with the look's files."""
    sources = collect(root)
    site, repository = _setting(root, "site_url"), _setting(root, "repo_url")
    made = environment(sources, repository)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "docs/pages", folder)
    shutil.copytree(root / "docs/look", folder / "look")
    found = [*all_pages(sources), *browse.pages(sources), *api.pages(sources)]
    found += [*timeline.pages(sources.catalog), *relations.pages(sources.catalog)]
    for page in found:
        path = folder / page.source
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(markdown(made, page), encoding="utf-8")
    columns = compare.script_files(sources, made, compare_page(sources))
    notebooks = notebook_files(sources, site, repository)
    for name, text in [*script_files(sources.catalog), *columns, *notebooks]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "feeds").mkdir()
    for name, text in feed_files(sources.catalog, site):
        (folder / name).write_text(text, encoding="utf-8")


def _setting(root: Path, name: str) -> str:
    """An address of mkdocs.yml: `repo_url`, where links into the repository start, or `site_url`, that of the site."""
    found = re.search(rf"^{name}: (\S+)$", (root / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SiteError(f"mkdocs.yml names no {name}; add that address.")
    return found[1]


def build(root: Path, out: Path, builder: str = "mkdocs") -> None:
    """Build the site of the repository at `root` into `out`. Raises SiteError, or CatalogError on a bad catalog."""
    _refuse_foreign(out)
    if find_spec(builder) is None:
        raise SiteError(f"{builder} was asked to build the site but is not installed: run `make {builder}`.")
    folder, target = out.with_name(f"{out.name}-source"), str(out.resolve())
    write_sources(root, folder)
    places = {"ELVI_SITE_SOURCE": folder, "ELVI_SITE": out}  # Zensical takes no absolute ones
    paths = {name: os.path.relpath(place, root) for name, place in places.items()}
    environ = os.environ | paths | {"SOURCE_DATE_EPOCH": "0"}
    _run(builder, *BUILDERS[builder], "--config-file", str(root / "mkdocs.yml"), environ=environ)
    for unused in UNUSED:
        shutil.rmtree(out / unused, ignore_errors=True)
    (out / UNUSED_INDEX).unlink(missing_ok=True)
    for path in out.rglob("*.html"):
        path.write_text(lean(path.read_text(encoding="utf-8")), encoding="utf-8")
    _run("pagefind", "--site", target, environ=environ)


def _refuse_foreign(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "sitemap.xml").is_file()):
        raise SiteError(f"{out} holds something that is not a built site; name an empty or new folder with --out.")


def _run(module: str, *arguments: str, environ: dict[str, str]) -> None:
    """Run a tool of this Python's environment and show what it says only when it fails."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise SiteError(f"`{module}` failed on the written pages; its messages stand above.")


def serve(out: Path, port: int = PORT) -> None:
    """Show a built site on this machine until interrupted; port 0 is a free one. Raises SiteError for a taken one."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(out))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise SiteError(f"Port {port} cannot be served on ({error}); choose another with --port.") from error
    with server:
        print(f"http://127.0.0.1:{server.server_port}/ (stop with Ctrl+C)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()  # what the terminal shows of Ctrl+C has a line of its own


def main(argv: list[str] | None = None) -> int:
    """`site build [--out DIR] [--builder NAME]` and `site serve [--out DIR] [--port N]`."""
    parser = argparse.ArgumentParser(prog="elvi-survey site", description="Build the site, or build and show it.")
    parser.add_argument("action", choices=["build", "serve"])
    parser.add_argument("--out", type=Path, default=Path("build/site"), help="folder of the built site")
    parser.add_argument("--builder", choices=sorted(BUILDERS), default="mkdocs")
    parser.add_argument("--port", type=int, default=PORT)
    asked = parser.parse_args(argv)
    build(Path.cwd(), asked.out, asked.builder)
    print(f"The site is in {asked.out}; open it with `elvi-survey site serve`.")
    if asked.action == "serve":
        serve(asked.out, asked.port)
    return 0
