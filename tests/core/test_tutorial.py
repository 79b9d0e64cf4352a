"""The page "Write a technique" works: every block is run in order in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/pages/write-a-technique.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
COPIED = ("catalog", "impls", "results", "taxonomy", "tests", "tools", "pyproject.toml")
RUN = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of its own with what the page asks for."""
    for name in COPIED:
        source = REPOSITORY / name
        ignored = shutil.ignore_patterns("__pycache__")
        (shutil.copytree(source, tmp_path / name, ignore=ignored) if source.is_dir() else shutil.copy(source, tmp_path))
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Before"]):
        subprocess.run(["git", *command], cwd=tmp_path, env=environment(tmp_path), check=True)
    return tmp_path


def environment(clone: Path) -> dict[str, str]:
    """The clone's code instead of the installed one, the tools of this Python, and someone who commits."""
    someone = {f"GIT_{role}_{part}": "tutorial" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    paths = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(clone / "impls"), str(clone / "tools")]),
    }
    return os.environ | paths | someone


def changed(text: str, diff: str) -> str:
    """`text` after every run of `-` lines, which stands there once, became the `+` lines below it."""
    for removed, added in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", diff, re.MULTILINE):
        old, new = (re.sub("^[-+]", "", part, flags=re.MULTILINE) for part in (removed, added))
        assert f"\n{text}".count(f"\n{old}") == 1, old
        text = f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]
    return text


@pytest.mark.slow
def test_every_block_of_the_page_runs_in_order_and_prints_what_is_shown(clone):
    page, compare, printed = PAGE.read_text(encoding="utf-8"), OutputChecker(), ""
    blocks = BLOCK.findall(page)
    assert len(blocks) == len(re.findall("^```", page, re.MULTILINE)) / 2 > 15
    for language, file, text in blocks:
        if language == "text":
            assert compare.check_output(text, printed, ELLIPSIS | NORMALIZE_WHITESPACE), printed
        elif file:
            path = clone / file
            path.write_text(changed(path.read_text("utf-8"), text) if language == "diff" else text, "utf-8")
        else:
            done = subprocess.run(
                [*RUN[language], text], cwd=clone, env=environment(clone), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
            printed = done.stdout
