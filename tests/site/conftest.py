"""A small repository with a hostile record, built once for all tests of the site."""

import shutil
from pathlib import Path

import pytest

from elvi_survey.site.build import build

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


def make_root(folder: Path) -> Path:
    """The fixture's catalog, code and results beside the real pages, look and configuration."""
    shutil.copytree(HERE / "data", folder)
    shutil.copytree(REPOSITORY / "docs", folder / "docs")
    shutil.copy(REPOSITORY / "mkdocs.yml", folder)
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("site") / "root")


@pytest.fixture(scope="session")
def site(root: Path) -> Path:
    build(root, root / "build/site")
    return root / "build/site"


@pytest.fixture
def scratch_root(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return make_root(tmp_path / "root")
