import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

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
