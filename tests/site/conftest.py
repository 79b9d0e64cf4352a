"""A small repository with a hostile record, built once for all tests of the site."""

import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from elvi_survey.site.build import build, write_sources

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


def make_root(folder: Path) -> Path:
    """The fixture's catalog, code and results beside the real pages, look, core, configuration and vocabularies."""
    shutil.copytree(HERE / "data", folder)
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    for path in sorted((REPOSITORY / "impls/elvi/core").glob("[!_]*.py")):
        if path.name != "facts.py":
            shutil.copy(path, folder / "impls/elvi/core")
    shutil.copy(REPOSITORY / "mkdocs.yml", folder)
    for name in ("models", "hardware", "relations"):
        shutil.copy(REPOSITORY / f"taxonomy/{name}.yaml", folder / "taxonomy")
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("site") / "root")


@pytest.fixture(scope="session")
def site(root: Path) -> Path:
    build(root, root / "build/site")
    return root / "build/site"


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of the real catalog, before the builder."""
    folder = tmp_path_factory.mktemp("written") / "pages"
    write_sources(REPOSITORY, folder)
    return folder


@pytest.fixture
def scratch_root(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return make_root(tmp_path / "root")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    assert executable, "install chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()
