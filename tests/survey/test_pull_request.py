"""The whole way of a pull request against the real repository, with the commands that CI runs on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPER = """\
@misc{lovelace2025,
  title = {NewThing: Fewer Frames for the Same Answer},
  author = {Lovelace, Ada and Turing, Alan},
  year = {2025},
  eprint = {2511.00002},
  archivePrefix = {arXiv},
}
"""
TO_DO = {
    "summary": "Shows the model every second frame.",
    "training_free": "true",
    "modality": "\n- video",
    "reason": "Not written yet.",
}
DEFECTS = {
    "fastv": [("training_free: true", "training_free: maybe"), ("stage: prefill", "stage: prefil")],
    "snapkv": [("venue: ", "venue: x"), ("status: runnable", "status: runable"), ("in_survey: false", "in_survey: 0")],
    "divprune": [("modality:\n- image", "modality:\n- imgae")],
    "aks": [
        ("subcategory: training-free", "subcategory: training-fre"),
        ('first_posted: "2025-02"', 'first_posted: "2025-13"'),
    ],
    "visionzip": [("authors:\n", "authers:\n")],
    "h2o": [("year: 2023", "year: 2023\nyear: 2024")],
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What git would hand to CI: the files that the repository tracks, as they stand now."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, names):
        if name.startswith(("catalog/", "taxonomy/", "impls/", "results/", "docs/", "tests/", "mkdocs.yml")):
            target = tmp_path / "clone" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(ROOT / name) if name.endswith(".safetensors") else target.write_bytes(
                (ROOT / name).read_bytes()
            )
    return tmp_path / "clone"


def survey(clone: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "elvi_survey", *map(str, arguments)]
    path = f"{ROOT / 'impls'}:{ROOT / 'tools'}"
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, env={"PYTHONPATH": path, "PATH": ""})


def test_a_paper_from_bibtex_passes_once_its_gaps_are_filled_and_its_pages_are_listed(clone, tmp_path):
    (tmp_path / "paper.bib").write_text(PAPER)
    added = survey(
        clone, "add", "--bibtex", tmp_path / "paper.bib", "--place", "encode/keyframe-selection/training-free"
    )
    assert added.returncode == 0, added.stderr
    record = clone / "catalog/newthing.yaml"
    unfinished = survey(clone, "check")
    assert unfinished.returncode == 1
    assert set(re.findall(r"^(\S+?):\d+:\d+ (\S+)", unfinished.stdout, re.MULTILINE)) == {
        ("catalog/newthing.yaml", "to-do")
    }
    text = record.read_text()
    for field, value in TO_DO.items():
        text = re.sub(rf"({field}:)(?: TODO|\n- TODO)", rf"\1 {value}" if "\n" not in value else rf"\1{value}", text)
    record.write_text(text)
    assert survey(clone, "check").stderr.endswith(" 0 problems\n"), survey(clone, "check").stdout
    changed = survey(clone, "changed", ROOT)
    assert changed.returncode == 0, changed.stderr
    assert "<code>papers/newthing/index.md</code>" in changed.stdout
    again = survey(
        clone, "add", "--bibtex", tmp_path / "paper.bib", "--place", "encode/keyframe-selection/training-free"
    )
    assert again.returncode == 2
    assert "newthing" in again.stderr


def test_ten_defects_come_out_as_ten_annotations_at_their_lines(clone):
    expected = set()
    for name, changes in DEFECTS.items():
        path = clone / f"catalog/{name}.yaml"
        text = path.read_text()
        for before, after in changes:
            assert text.count(before) >= 1, (name, before)
            text = text.replace(before, after, 1)
        path.write_text(text)
        for _, after in changes:
            line = text[: text.index(after) + len(after.rstrip("\n"))].count("\n") + 1
            expected.add((f"catalog/{name}.yaml", line))
    found = survey(clone, "check", "--format", "github")
    assert found.returncode == 1
    places = re.findall(r"^::error file=([^,]+),line=(\d+)", found.stdout, re.MULTILINE)
    assert len(places) == sum(map(len, DEFECTS.values())) == 10, found.stdout
    assert {(file, int(line)) for file, line in places} == expected
