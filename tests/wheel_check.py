"""Unpack the built wheel and look: only `elvi` is in it, with its weights, and it imports without torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WEIGHTS = ("tiny-qwen", "tiny-llava", "tiny-clip")


def main(folder: str) -> int:
    (wheel,) = Path(folder).glob("*.whl")
    with tempfile.TemporaryDirectory() as target:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        tops = {path.name for path in Path(target).iterdir() if not path.name.endswith(".dist-info")}
        assert tops == {"elvi"}, f"the wheel ships {sorted(tops)}, and only elvi belongs into it"
        for name in WEIGHTS:
            assert (Path(target) / "elvi/tiny/weights" / name / "model.safetensors").is_file(), f"{name} has no weights"
        code = f"""
import sys
sys.path.insert(0, {target!r})
import elvi
elvi.list_techniques()
from elvi.estimate import Request, bound
assert bound("qwen2-5-vl-72b", "a100-80gb-sxm", Request())["kv_bytes_per_token"] == 327680
assert "torch" not in sys.modules, "importing elvi imported torch"
print(elvi.__file__)
"""
        out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        assert out.stdout.startswith(target), f"imported {out.stdout.strip()} instead of the wheel"
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, only elvi, imports without torch")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
