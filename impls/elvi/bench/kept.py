"""What measured techniques keep of one frame, and what evenly spaced tokens answer at their budget: `--kept`.

The result is `<out>/<hardware-id>/kept.json`, the provenance of a results file and

- `clip`: the question about a shipped clip, its number of time `steps`, and the `step` that shows the answer, with the
  `things` in it (shape, color, and the middle `at` x and y in a frame of `side` pixels);
- `techniques`, by id, of those in the results files of this machine and model that leave fewer visual tokens: the
  `setting` nearest to a quarter of the tokens and the `protocol`, both as in the file; and of the clip the `plan` as it
  ran, the `share` of the visual tokens left, the `grid` (rows, columns) of that time step, the `frame`: places (row,
  column) from which a token is left in the last layer, and how many are left of all `steps`. `even`: the `quality` of
  evenly spaced selection of as many, null where a technique selects more than once.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from elvi import demo, spec
from elvi.bench import provenance, results
from elvi.bench.floor import twin
from elvi.bench.measure import Protocol, answered, quality
from elvi.bench.results import ResultsError
from elvi.core.generate import prefill
from elvi.core.plan import Plan
from elvi.core.run import Run
from elvi.core.seams import Reduce, SelectFrames
from elvi.tiny.data import SIDE, sample_scene

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from elvi.bench.results import Cell, Results
    from elvi.families.family import Family
    from elvi.media import Clip

BUDGET = 0.25  # of the visual tokens
SCENE = demo.SCENES[0]


def run(family: Family, out: Path, *, command: str, tell: Callable[[str], None]) -> Path:
    """Measure all that is in the results files, tell each id when it is done, and save; returns the file.

    Raises ResultsError where there is nothing to go by.
    """
    machine = provenance.hardware(family.device)
    path, folder = out / machine["id"] / "kept.json", out / machine["id"] / family.name.replace("/", "--")
    results.check_writable(path)
    files = [data for file in sorted(folder.glob("*.json")) if reduces(data := results.read(file))]
    if not files:
        raise ResultsError(
            f"{folder} has no results of a technique that leaves fewer visual tokens: measure one first."
        )
    clip, found = demo.shipped(SCENE), {}
    step, shown = asked_about(clip)
    for data in files:
        found[data["technique"]] = kept(family, data, clip, step)
        tell(data["technique"])
    whole: dict[str, Any] = {
        "schema": results.SCHEMA,
        "hardware": machine,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": provenance.today(),
        "command": command,
        "model": provenance.model(family),
        "clip": {"question": clip.question, "steps": SCENE.seconds, "step": step, "side": SIDE, "things": shown},
        "techniques": found,
    }
    results.save(path, whole, done=True)
    return path


def reduces(data: Results) -> bool:
    """Whether the technique drops or merges frames or visual tokens, and did so in some cell."""
    technique = spec.parse(data["technique"])
    return isinstance(technique, Reduce | SelectFrames) and any(cell["kept_share"] < 1 for cell in data["cells"])


def nearest(data: Results) -> Cell:
    """The cell nearest to `BUDGET` of those of the swept field, with random selection beside them if any have it."""
    swept = [cell for cell in data["cells"] if cell["setting"].keys() == data["cells"][0]["setting"].keys()]
    floors = [cell["setting"] for cell in data["random"]]
    rivalled = [cell for cell in swept if cell["setting"] in floors]
    return min(rivalled or swept, key=lambda cell: abs(cell["kept_share"] - BUDGET))


def asked_about(clip: Clip) -> tuple[int, list[dict[str, Any]]]:
    """The time step that shows what the question is about, and all things in it."""
    seconds = sample_scene(SCENE.number, SCENE.kind, SCENE.seconds).seconds
    words = (clip.question or "").split()
    step = next(i for i, things in enumerate(seconds) if any(thing.shape in words for thing in things))
    return step, [{"shape": t.shape, "color": t.color, "at": list(t.at[0])} for t in seconds[step]]


def kept(family: Family, data: Results, clip: Clip, step: int) -> dict[str, Any]:
    """What one technique keeps of a time step of the clip, at its setting nearest to the budget (see above)."""
    setting = nearest(data)["setting"]
    technique = dataclasses.replace(spec.parse(data["technique"]), **setting)
    plan, even = Plan(*spec.whole(technique)), None
    protocol = Protocol(**{key: data["protocol"][key] for key in ("clips", "repeats", "first_seed")})
    if spaced := twin(technique, None):
        even = {"quality": quality(answered(family, lambda _: Plan(spaced), protocol, lambda: None))}
    grid, cells = left(family, clip, plan, step)
    total = len(left(family, clip, Plan(), step)[1])
    return {
        "setting": setting,
        "protocol": data["protocol"],
        "plan": [repr(each) for each in plan.techniques],
        "share": len(cells) / total,
        "grid": grid,
        "frame": [[y, x] for t, y, x in cells if t == step],
        "steps": [sum(t == at for t, _, _ in cells) for at in range(SCENE.seconds)],
        "even": even,
    }


@torch.inference_mode()
def left(family: Family, clip: Clip, plan: Plan, step: int) -> tuple[list[int], list[list[int]]]:
    """Rows and columns of the grid of a time step, and the cells (t, y, x) that any head of the last layer holds."""
    plan.check(family)
    run = Run(family, plan)
    with run.meter.time("first_token"):
        shown, _ = prefill(run, clip, clip.question or "")
    assert shown is not None, "the clip has frames"
    times = family.one_per_step(family.steps(clip)).times.tolist()
    at = [times.index(time) for time in family.one_per_step(shown).times.tolist()]  # a choice of frames counts anew
    held = run.store.layers[-1].row
    rows = held[held >= 0].unique()
    cells = [[at[t], y, x] for t, y, x in run.layout.cell[rows[rows < run.num_rows]].tolist() if t >= 0]
    here = [[y, x] for t, y, x in run.layout.cell.tolist() if t >= 0 and at[t] == step]
    return [max((place[axis] for place in here), default=0) + 1 for axis in (0, 1)], cells
