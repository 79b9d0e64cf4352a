"""Every command that a page shows is run here, or has a reason why not and is read by the parser of its program."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest
from commands import ROOT, TECHNIQUES, changes_figures, commands, every_technique
from replies import Stand

from elvi import cli, demo, discover, spec
from elvi_survey import add as adding
from elvi_survey import cli as survey
from elvi_survey.codefacts import RELATED
from elvi_survey.site.results import load_results

# What is run, and words of what it must say then. Commands of records are run by a test of their own.
RUN = {
    "elvi list": "fastv",
    "elvi estimate --model qwen2-5-vl-72b --frames 64 --keep 0.25": "prefill",
    'elvi run visionzip:keep_ratio=0.3 snapkv speculative-sampling --video my.mp4 --prompt "describe the clip"': "plan",
    'elvi run skipbert --prompt "A dull film ."': "A dull film .",
    "elvi-survey add 2403.06764": "catalog/image-worth-1-2.yaml is written",
    "elvi-survey add --bibtex paper.bib --id short-name": "catalog/short-name.yaml is written",
    "elvi-survey fmt": "",
    "elvi-survey check": "",
    "elvi-survey export --format record-schema -o build/record.schema.json": "",
    "elvi-survey site build": "The site is in build/site",
}
# What is not, and why; each is a pattern of whole commands.
ONLY_READ = {
    r"elvi run fastv --model Qwen/\S+ .*": "weights of a hub are fetched from the network",
    r"elvi run skipbert:table=FOLDER .*": "the table is built for minutes; tests/related has a small one",
    r"elvi pairs --write \S+": "runs every pair for minutes; the battery holds its file to what happens",
    r"elvi (bench|train|search) \S.*": "measures or trains for minutes; other tests do less of each",
    r"python -m elvi\.(tiny\.(train|evaluate)|related\.skipbert\.table)\b.*": "trains or measures for minutes",
    r"python -m elvi\.related\.skipbert\.data \S+ \S+": "the archive with the sentences is fetched from the network",
    r"elvi-survey from-issue FILE \| git apply": "tests/survey turns forms into patches that git applies",
}
NAMED = r"elvi(-survey)? [\w-]+"  # a command by its name, with nothing to do it with
# Pages that a test of their own runs from end to end.
BY_ITSELF = {"write-a-technique.md": "tests/core/test_tutorial.py"}
FILLED = {"<id>": "fastv", "COMMAND": "btp", "FILE": "file", "FOLDER": "folder", "DIR": "folder", "[": "", "]": ""}


@pytest.fixture(scope="session")
def pages(written) -> dict[str, list[str]]:
    """Address -> commands, of the pages of the site and of the other texts for people."""
    texts = {path.relative_to(written).parent.as_posix(): path for path in written.rglob("index.md")}
    texts |= {path.name: path for path in written.glob("*.md") if path.name != "index.md"}
    others = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob(".github/*.md"), *ROOT.glob("impls/**/*.md")]
    texts |= {path.relative_to(ROOT).as_posix(): path for path in others}
    for name, test in BY_ITSELF.items():
        assert texts.pop(name).name in (ROOT / test).read_text(encoding="utf-8")
    return {name: found for name, path in texts.items() if (found := commands(path.read_text(encoding="utf-8")))}


@pytest.fixture(autouse=True)
def models(monkeypatch):
    """The same command line, except that a model stays loaded."""
    monkeypatch.setattr(cli, "_load", _loaded)


_loaded = cache(cli._load)


def run(capsys, command: str) -> str:
    """What a command prints; it must succeed."""
    program, *arguments = shlex.split(command)
    code = {"elvi": cli.main, "elvi-survey": survey.main}[program](arguments)
    out, err = capsys.readouterr()
    assert code == 0, f"{command}: {err}"
    return out


@pytest.mark.parametrize("name", every_technique())
def test_the_commands_of_a_record_run_and_show_what_it_does(name, pages, capsys):
    shown = [command for command in pages[f"papers/{name}"] if command.startswith("elvi run ")]
    if TECHNIQUES[name].stage == RELATED:
        assert shown[0] == f"elvi run {name}"
        for command in shown:
            assert len(re.findall(r"\d\.\d", run(capsys, command))) > 3
        return
    [command] = shown
    said, figures = _answers(run(capsys, command))
    assert f"{discover.technique(name).__name__}(" in said["plan"]
    assert said["answer"]
    assert said["baseline"] == said["expected"]
    for label, (baseline, plan, ratio) in figures.items():
        assert ratio == pytest.approx(plan / baseline, abs=0.03 + 0.02 * ratio), label
    counted = {label: ratio for label, (_, _, ratio) in figures.items() if not label.startswith("time")}
    assert (set(counted.values()) != {1.0}) == changes_figures(TECHNIQUES[name])


def _answers(out: str) -> tuple[dict[str, str], dict[str, tuple[float, ...]]]:
    """What `elvi run --baseline` says under its labels, and its figures where there is a ratio of them."""
    above, below = re.split(r"\n *\n", out.strip())
    said, label = {}, ""
    for line in above.splitlines():
        label = line[:10].strip() or label
        said[label] = f"{said.get(label, '')} {line[10:].strip()}".strip()
    rows = [re.split(r" {2,}", line.strip()) for line in below.splitlines()[1:]]
    return said, {row[0]: tuple(float(cell.split()[0]) for cell in row[1:]) for row in rows if row[-1] != "-"}


def test_every_command_of_every_page_is_run_or_has_a_reason(pages):
    new = [
        (command, name)
        for name, shown in pages.items()
        for command in shown
        if not (name.removeprefix("papers/") in TECHNIQUES and command.startswith("elvi run "))
        and _of_a_record(command) is None
        and command not in RUN
        and not any(re.fullmatch(pattern, command) for pattern in (*ONLY_READ, NAMED, r"make [a-z ]+"))
    ]
    assert new == []


def test_every_rule_is_of_a_command_that_is_still_shown(pages):
    shown = {command for found in pages.values() for command in found}
    assert set(RUN) <= shown
    assert [pattern for pattern in ONLY_READ if not any(re.fullmatch(pattern, each) for each in shown)] == []


def _of_a_record(command: str) -> str | None:
    """The record whose command this is, word for word."""
    return next((id_ for id_, code in TECHNIQUES.items() if command == _command(code)), None)


def _command(code) -> str:
    if code.stage == RELATED:
        return f"elvi run {code.id}"
    return code.example.command


@pytest.mark.parametrize("command", RUN)
def test_a_command_of_a_page_runs(command, scratch_root, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(scratch_root)
    shutil.copy(demo.SCENES[1].path, "my.mp4")
    Path("build").mkdir()
    Path("paper.bib").write_text("@article{x, title={Quite another}, author={A B}, year={2025}, journal={CoRR}}")
    monkeypatch.setattr(adding, "Web", lambda: Stand({"arxiv": "arxiv-paper.xml"}).web(tmp_path / "cache"))
    if command == "elvi-survey check":  # of the real catalog: that of the fixture has no tests
        monkeypatch.chdir(ROOT)
    elif command.startswith("elvi-survey add"):  # it refuses a paper that is there
        Path("catalog/fastv.yaml").unlink()
    assert RUN[command] in run(capsys, command)


def test_what_is_only_read_is_understood(pages, capsys):
    shown = {command for found in pages.values() for command in found} - set(RUN)
    asked = sorted(each for each in shown if any(re.fullmatch(pattern, each) for pattern in (*ONLY_READ, NAMED)))
    assert len(asked) > 20
    for command in asked:
        _read(command, capsys)


def _read(command: str, capsys) -> None:
    """Let the parser of its program read a command, and the techniques that it names be made."""
    for word, value in FILLED.items():
        command = command.replace(word, value)
    program, *arguments = shlex.split(command.partition(" | ")[0])
    if program == "python":
        _, module, *arguments = arguments
        assert set(re.findall(r"--[\w-]+", command)) <= set(re.findall(r"--[\w-]+", _help(module, capsys))), command
    elif len(arguments) == 1:
        with pytest.raises(SystemExit) as left:
            (cli if program == "elvi" else survey).main([*arguments, "--help"])
        assert left.value.code == 0
    else:
        options = (cli if program == "elvi" else survey)._parser().parse_args(arguments)
        for text in [*getattr(options, "ids", []), *([options.id] if hasattr(options, "id") else [])]:
            assert program != "elvi" or spec.parse(text)


def _help(module: str, capsys) -> str:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it is imported already
        patch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_module(module, run_name="__main__")
    return capsys.readouterr().out


def test_every_target_of_make_is_there(pages):
    targets = {
        word
        for found in pages.values()
        for command in found
        if command.startswith("make ")
        for word in command.split()[1:]
    }
    assert {"demo", "test", "ci"} <= targets
    for target in sorted(targets):
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_measuring_command_of_the_results_is_understood(capsys):
    results = [result for found in load_results(ROOT / "results").values() for result in found]
    assert len(results) > 50
    for command in {result.value("command") for result in results}:
        _read(command, capsys)


def test_settings_that_pages_show_are_the_defaults(written):
    for id_ in TECHNIQUES:
        page = (written / f"papers/{id_}/index.md").read_text(encoding="utf-8")
        for text in re.findall(rf"Set a field with a colon: <code>({re.escape(id_)}:[^<]+)</code>", page):
            assert spec.parse(text) == discover.technique(id_)()


def test_what_show_prints_is_the_command_of_the_page(pages, capsys):
    for id_, code in TECHNIQUES.items():
        importlib.import_module(code.path.removeprefix("impls/").removesuffix(".py").replace("/", "."))
        assert run(capsys, f"elvi show {id_}").rstrip().endswith(_command(code))
        assert _command(code) in pages[f"papers/{id_}"]


def test_a_command_of_a_new_kind_is_seen():
    page = """```sh\nelvi fly --far  # to the moon\n```\n<pre><code>$ make\n$ <span>cargo</span> run</code></pre>
    `elvi run <id>` and <code>elvi <span>bench</span> x</code> but `model.run`\n```python\nelvi = 3\n```"""
    assert commands(page) == ["make", "cargo run", "elvi fly --far", "elvi run <id>", "elvi bench x"]
