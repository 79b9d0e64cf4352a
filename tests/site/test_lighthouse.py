"""Lighthouse on the real site, as a host serves it: compressed, to a slow phone and to a desktop."""

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from elvi_survey.site.build import build

REPOSITORY = Path(__file__).parents[2]
LIGHTHOUSE = REPOSITORY / "node_modules/.bin/lighthouse"
CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PAGES = ["", "papers/", "papers/fastv/", "decode/", "roofline/", "about/"]
LOADS = [(page, "phone") for page in PAGES] + [(page, "desktop") for page in PAGES[:2]]  # a phone is slower anyway
TRIES = 3


class Compressed(SimpleHTTPRequestHandler):
    """Sends text compressed, as the hosts of static sites do."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if path.suffix not in {".html", ".css", ".js", ".svg", ".json"} or not path.is_file():
            super().do_GET()
            return
        body = gzip.compress(path.read_bytes(), mtime=0)
        self.send_response(200)
        for name, value in [("Type", self.guess_type(str(path))), ("Encoding", "gzip"), ("Length", str(len(body)))]:
            self.send_header(f"Content-{name}", value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[str]:
    site = tmp_path_factory.mktemp("real") / "site"
    build(REPOSITORY, site)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Compressed, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def scores(address: str, form: str, report: Path) -> dict[str, float]:
    """Lighthouse's scores of a page, in percent."""
    command = [
        LIGHTHOUSE,
        address,
        "--quiet",
        "--output=json",
        f"--output-path={report}",
        "--no-enable-error-reporting",
    ]
    command += ["--only-categories=performance,accessibility", f"--chrome-flags={CHROMIUM}"]
    command += ["--preset=desktop"] if form == "desktop" else []
    environment = os.environ | {"CHROME_PATH": shutil.which("chromium") or "chromium"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    found = json.loads(report.read_text(encoding="utf-8"))
    return {name: round(100 * category["score"]) for name, category in found["categories"].items()}


@pytest.mark.slow
@pytest.mark.parametrize(("address", "form"), LOADS)
def test_lighthouse_gives_at_least_95_for_performance_and_100_for_accessibility(served, address, form, tmp_path):
    """The best of three tries counts for performance: what else the machine does only slows a page down."""
    best = 0.0
    for _ in range(TRIES):
        found = scores(served + address, form, tmp_path / "report.json")
        assert found["accessibility"] == 100
        best = max(best, found["performance"])
        if best >= 95:
            return
    assert best >= 95
