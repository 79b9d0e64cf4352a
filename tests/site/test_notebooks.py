"""The notebooks are valid, and their cells run in order and show what a technique changes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from commands import TECHNIQUES, changes_figures, every_technique

from elvi_survey.codefacts import RELATED
from elvi_survey.site.build import collect, write_sources
from elvi_survey.site.notebooks import notebook_files


def notebook(folder: Path, name: str) -> dict:
    return json.loads((folder / f"papers/{name}/{name}.ipynb").read_text(encoding="utf-8"))


def executed(cells: list[dict], capsys: pytest.CaptureFixture[str]) -> tuple[dict, dict[str, str]]:
    """The names that the code defines, and what each cell prints; the one that installs is left out."""
    names: dict = {}
    said = {}
    for cell in cells:
        if cell["cell_type"] == "code" and "install" not in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
            said[cell["id"]] = capsys.readouterr().out
    return names, said


def columns(out: str) -> dict[str, list[float]]:
    """The figures of a printed table, by label."""
    rows = re.findall(r"^(\w[^:]*?) {2,}(\d.*)$", out, re.MULTILINE)
    return {label: [float(number) for number in numbers.split()] for label, numbers in rows}


@pytest.mark.parametrize("name", every_technique())
def test_the_cells_of_a_notebook_run_in_order(name, written, capsys):
    code = TECHNIQUES[name]
    names, said = executed(notebook(written, name)["cells"], capsys)
    if code.stage == RELATED:
        assert all(len(re.findall(r"\d\.\d", out)) > 3 for out in said.values())
        assert ("prompt" in said) == (code.main.prompt is not None)
        return
    assert names["unmodified"].text == names["clip"].expected
    beside, varied = columns(said["run"]), columns(said["vary"])
    assert len(beside) == len(varied) == 7
    field, values = code.main.sweep
    assert all(f"{field}={value}" in said["vary"] for value in values)
    assert {len(row) for row in varied.values()} == {1 + len(values)}
    assert any(len(set(row)) > 1 for row in beside.values()) == changes_figures(code)
    assert any(len(set(row[1:])) > 1 for row in varied.values()) == changes_figures(code)


def test_every_notebook_is_valid_and_begins_with_its_page(written):
    for name in TECHNIQUES:
        found = notebook(written, name)
        nbformat.validate(found)
        assert f"https://elvi-survey.github.io/elvi/papers/{name}/" in "".join(found["cells"][0]["source"])
        [install] = [cell for cell in found["cells"] if "install" in cell["metadata"].get("tags", [])]
        assert "".join(install["source"]) == '%pip install --quiet "elvi @ git+https://github.com/elvi-survey/elvi"'


def test_every_page_that_has_a_notebook_links_it_and_no_other(written):
    linked = {
        path.parent.name
        for path in written.glob("papers/*/index.md")
        if f'<a href="{path.parent.name}.ipynb" download>' in path.read_text(encoding="utf-8")
    }
    assert linked == {path.parent.name for path in written.rglob("*.ipynb")} == set(TECHNIQUES)


def test_words_of_a_record_stay_words(scratch_root):
    path = scratch_root / "catalog/fastv.yaml"
    text = re.sub(r"^summary: .*$", 'summary: "<script> *x* [a](b) `c` $d$"', path.read_text(), flags=re.MULTILINE)
    path.write_text(text)
    files = dict(notebook_files(collect(scratch_root), "https://example.org/", "https://example.org/r"))
    intro = json.loads(files["papers/fastv/fastv.ipynb"])["cells"][0]["source"]
    assert intro[2] == r"\<script\> \*x\* \[a\](b) \`c\` \$d\$" + "\n"


def test_settings_of_what_goes_with_a_technique_are_written_as_python(scratch_root):
    path = scratch_root / "impls/elvi/prefill/fastv.py"
    said = 'companions: ClassVar = ("other:depth=3,kind=chain",)'
    path.write_text(path.read_text().replace("    needs: ", f"    {said}\n    needs: ", 1))
    write_sources(scratch_root, scratch_root / "pages")
    cells = {cell["id"]: "".join(cell["source"]) for cell in notebook(scratch_root / "pages", "fastv")["cells"]}
    assert 'beside = [elvi.technique("other")(depth=3, kind="chain")]' in cells["run"]
    assert "elvi.Plan(*beside, technique(**settings))" in cells["run"]
