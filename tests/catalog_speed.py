"""How long `elvi-survey check` takes for N generated records, from a cold start without torch: prints the curve."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SIZES = (0, 1000, 3000, 10_000)  # 0: the shipped records alone


def generated(root: Path, count: int) -> None:
    """`count` distinct planned records after a shipped one."""
    record = yaml.safe_load((ROOT / "catalog/fastv.yaml").read_text(encoding="utf-8"))
    record["implementation"] = {"status": "planned", "reason": "Generated."}
    record["doi"], record["relations"] = None, []
    for number in range(count):
        record["title"] = f"Generated paper number {number} on fewer tokens"
        record["arxiv"] = f"{10 + number // 60_000}{number // 5000 % 12 + 1:02d}.{number % 5000:05d}"
        record["first_posted"] = f"20{record['arxiv'][:2]}-{record['arxiv'][2:4]}"
        text = yaml.dump(record, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
        (root / f"catalog/generated-{number}.yaml").write_text(text, encoding="utf-8")


def seconds(root: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one run in a process of its own."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'impls'}{os.pathsep}{ROOT / 'tools'}"}
    before, start = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "elvi_survey", "--root", str(root), "check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stdout[:500]
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu


def main() -> None:
    print("records  wall [s]  CPU [s]  CPU per record [ms]")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name in ("catalog", "taxonomy", "impls", "tests"):
                shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("weights", "__pycache__"))
            shipped = len(list((root / "catalog").glob("*.yaml")))
            count = max(size, shipped)
            generated(root, count - shipped)
            wall, cpu = min(seconds(root) for _ in range(3))
            print(f"{count:7}  {wall:8.2f}  {cpu:7.2f}  {1000 * cpu / count:19.3f}", flush=True)


if __name__ == "__main__":
    main()
