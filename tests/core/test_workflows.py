import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
BIN = Path(sys.executable).parent
STAND_IN = """name: stand-in
description: does nothing
runs:
  using: composite
  steps:
    - run: "true"
      shell: bash
"""


def uses(workflow: Path) -> list[str]:
    return re.findall(r"uses: (\S+)", workflow.read_text())


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_permissions_start_from_none(workflow):
    loaded = yaml.safe_load(workflow.read_text())
    assert loaded["permissions"] == {}
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in uses(workflow))
    assert "pull_request_target" not in workflow.read_text()


def test_only_main_deploys_and_pull_requests_get_no_secret():
    site = yaml.safe_load((ROOT / ".github/workflows/site.yml").read_text())
    assert site["jobs"]["deploy"]["if"] == "github.event_name == 'push' && github.ref == 'refs/heads/main'"
    assert site["jobs"]["build"]["permissions"] == {"contents": "read"}
    assert all("secrets." not in workflow.read_text() for workflow in WORKFLOWS)


def test_zizmor_finds_nothing():
    out = subprocess.run([BIN / "zizmor", "--offline", ROOT / ".github/workflows"], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


@pytest.mark.slow
@pytest.mark.parametrize("job", ["fast", "slow", "quality"])
def test_the_test_workflow_runs_locally(job, tmp_path):
    """Run a job's own steps on this machine; pytest is narrowed to one file so that the suite does not run itself."""
    clone, home = tmp_path / "clone", tmp_path / "home"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    home.mkdir()
    (tmp_path / "action.yml").write_text(STAND_IN)
    command = [BIN / "act", "push", "--job", job, "--workflows", ".github/workflows/tests.yml"]
    command += ["-P", "ubuntu-latest=-self-hosted", "--env", f"VENV={venv(tmp_path)}"]
    command += ["--env", "PYTEST_ADDOPTS=tests/core/test_media.py -p no:cacheprovider"]
    for action in set(uses(ROOT / ".github/workflows/tests.yml")):
        command += ["--local-repository", f"{action}={tmp_path}"]
    environment = os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    out = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=900)
    assert out.returncode == 0, out.stdout[-4000:] + out.stderr[-2000:]
    assert "Job succeeded" in out.stdout


def venv(folder: Path) -> Path:
    """The running environment, dressed up as the one that make would have set up."""
    link = folder / "venv"
    shutil.copytree(BIN.parent, link, symlinks=True, ignore=shutil.ignore_patterns("lib*", "include"))
    for name in ("lib", "lib64", "include"):
        if (BIN.parent / name).exists():
            (link / name).symlink_to((BIN.parent / name).resolve())
    (link / ".done").touch()
    tomorrow = time.time() + 86_400  # act copies the clone file by file, so its files look new
    os.utime(link / ".done", (tomorrow, tomorrow))
    return link


def touched(*arguments: str, cwd: Path = ROOT) -> list[str]:
    out = subprocess.run([sys.executable, ROOT / ".ci/touched", *arguments], cwd=cwd, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


CATALOG, SITE, BATTERY = "tests/survey", "tests/site", "tests/battery"


@pytest.mark.parametrize(
    ("paths", "tests"),
    [
        (["catalog/new.yaml"], [SITE, CATALOG]),
        (["taxonomy/stages.yaml", "docs/pages/about.md"], [SITE, CATALOG]),
        (["README.md"], ["tests/core/test_readme.py", "tests/site/test_commands.py", CATALOG]),
        (["CHANGELOG.md"], [CATALOG]),
        ([".github/workflows/site.yml"], ["tests/core/test_workflows.py", CATALOG]),
        (
            ["catalog/a.yaml", "impls/elvi/decode/a.py", "tests/decode/test_a.py"],
            [BATTERY, "tests/decode", SITE, CATALOG],
        ),
        (["impls/elvi/core/walk.py"], []),
        (["impls/elvi/decode/__init__.py"], []),
        (["catalog/new.yaml", "pyproject.toml"], []),
        (["a name with blanks\nand a line.py"], []),
    ],
)
def test_a_pull_request_runs_what_it_touches(tmp_path, paths, tests):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "base"], check=True)
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "change"], check=True)
    assert touched("HEAD^1", cwd=tmp_path) == tests
    assert touched(cwd=tmp_path) == []
    assert touched("no-such-commit", cwd=tmp_path) == []


def test_every_test_folder_that_a_rule_names_is_there():
    named = re.findall(r'"(tests/[\w/.]+)"', (ROOT / ".ci/touched").read_text())
    assert len(named) >= 4
    assert all((ROOT / name).exists() for name in named)


def test_github_accepts_the_workflows():
    vendored = resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/github-workflows.json")
    validator = Draft7Validator(json.loads(vendored.read_text()))
    for workflow in WORKFLOWS:
        loaded = yaml.safe_load(workflow.read_text())
        loaded["on"] = loaded.pop(True)  # YAML 1.1 reads `on` as a truth value
        assert [error.message for error in validator.iter_errors(loaded)] == [], workflow.name


def test_only_the_release_writes_and_only_for_a_tag():
    written = {}
    for workflow in WORKFLOWS:
        loaded = yaml.safe_load(workflow.read_text())
        for name, job in loaded["jobs"].items():
            granted = {scope for scope, level in job["permissions"].items() if level == "write"}
            if granted:
                written[workflow.stem, name] = granted
    assert written == {("site", "deploy"): {"pages", "id-token"}, ("release", "publish"): {"contents"}}
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert release[True] == {"push": {"tags": ["v*"]}}


def test_discovery_is_scheduled_and_may_only_read():
    discover = yaml.safe_load((ROOT / ".github/workflows/discover.yml").read_text())
    assert set(discover[True]) == {"schedule", "workflow_dispatch"}
    assert [job["permissions"] for job in discover["jobs"].values()] == [{"contents": "read"}]
    assert "GITHUB_STEP_SUMMARY" in (ROOT / ".github/workflows/discover.yml").read_text()


def test_every_checkout_leaves_no_credentials_and_no_step_pastes_an_event():
    for workflow in WORKFLOWS:
        steps = [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]
        checkouts = [step for step in steps if "actions/checkout@" in step.get("uses", "")]
        assert all(step["with"]["persist-credentials"] is False for step in checkouts), workflow.name
        assert not [step for step in steps if "${{" in step.get("run", "")], workflow.name
