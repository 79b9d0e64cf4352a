"""Which two techniques work together on the shipped models: `elvi pairs`, and the file of its verdicts.

The verdicts follow from the contracts (`Plan.check`). tests/battery runs every pair and holds the file to what happens;
the site shows the file. Reading it needs no torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elvi import discover, terminal
from elvi.errors import ElviError, PlanError

if TYPE_CHECKING:
    import argparse

    from elvi.core.plan import Plan
    from elvi.families.family import Family

SCHEMA = 1
MODELS = ("tiny-qwen", "tiny-llava")
FILE = Path("results/compositions.json")
REFRESH = f"write it again with `elvi pairs --write {FILE}`"
KINDS = ("works", "needs", "refused", "unfit")


@dataclass(frozen=True)
class Verdict:
    """What comes of a pair on a model, and the sentence of the error where there is one.

    works; needs: it works beside the companions of one of them, and is refused without; refused: the two go against
    each other; unfit: one of them cannot act on this model at all.
    """

    kind: str
    sentence: str | None = None


class Pairs:
    """The verdicts of a file. `techniques` has name, seam and companions by id, `models` the models' names in order."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.techniques: dict[str, dict[str, Any]] = data["techniques"]
        self.models: list[str] = list(data["models"])
        self._found = {model: self._verdicts(kinds) for model, kinds in data["models"].items()}

    def _verdicts(self, kinds: dict[str, Any]) -> dict[tuple[str, str], Verdict]:
        return {
            (first, second): Verdict(kind, sentence)
            for kind, sentences in kinds.items()
            for sentence, found in sentences.items()
            for first, others in found.items()
            for second in others
        }

    def words(self, sentence: str, first: str, second: str) -> str:
        """A sentence of the file, of these two."""
        names = {"{first}": self.techniques[first]["name"], "{second}": self.techniques[second]["name"]}
        return re.sub(r"\{first\}|\{second\}", lambda match: names[match[0]], sentence)

    def reason(self, model: str, first: str, second: str) -> Verdict:
        """The verdict with its sentence as the file has it, of {first} and {second}."""
        return self._found[model].get((first, second), Verdict("works"))

    def verdict(self, model: str, first: str, second: str) -> Verdict:
        found = self.reason(model, first, second)
        return found if found.sentence is None else Verdict(found.kind, self.words(found.sentence, first, second))

    def ordered(self) -> list[tuple[str, str]]:
        return ordered({name: tuple(known["seam"]) for name, known in self.techniques.items()})


def load(path: Path) -> Pairs:
    """The verdicts that a file holds. Raises ElviError for one of another schema."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if data.get("schema") != SCHEMA:
        raise ElviError(f"{path} is not of schema {SCHEMA}: {REFRESH}.")
    return Pairs(data)


def ordered(seams: dict[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """All pairs in the order in which the two act; at one seam, where the order is the plan's, both orders."""
    return [(first, second) for first, second in permutations(seams, 2) if seams[first] <= seams[second]]


def together(first: str, second: str) -> Plan:
    """Two techniques at their defaults, with what they cannot act without unless one at its seam is there already."""
    from elvi.core.plan import Plan, seam
    from elvi.spec import whole

    parts = [discover.technique(first)(), discover.technique(second)()]
    for companion in [each for part in parts for each in whole(part)[:-1]]:
        if seam(companion) not in map(seam, parts):
            parts.append(companion)
    return Plan(*parts)


def verdict(family: Family, first: str, second: str) -> Verdict:
    """What comes of two techniques, by their contracts; tests/battery shows that it does."""
    from elvi.core.plan import Plan

    refusal = _refusal(family, together(first, second))
    if refusal is None:
        bare = _refusal(family, Plan(discover.technique(first)(), discover.technique(second)()))
        return Verdict("works") if bare is None else Verdict("needs", str(bare))
    return Verdict("refused" if isinstance(refusal, PlanError) else "unfit", str(refusal))


def _refusal(family: Family, plan: Plan) -> ElviError | None:
    try:
        plan.check(family)
    except ElviError as error:
        return error
    return None


def compute(families: list[Family]) -> dict[str, Any]:
    """What the file holds: what each technique is, and for each model the sentences of all pairs that do not work.

    A sentence has {first} and {second} for the names, so that it stands once for all pairs that it is said of:
    {kind: {sentence: {first: [second, ...]}}}.
    """
    from elvi.core.plan import seam

    made = {name: discover.technique(name)() for name in discover.list_techniques()}
    techniques = {
        name: {
            "name": type(each).__name__,
            "seam": list(seam(each)),
            "companions": list(getattr(each, "companions", ())),
        }
        for name, each in made.items()
    }
    models: dict[str, Any] = {family.name: {kind: {} for kind in KINDS[1:]} for family in families}
    for first, second in ordered({name: seam(each) for name, each in made.items()}):
        for family in families:
            found = verdict(family, first, second)
            if found.sentence is not None:
                names = {techniques[first]["name"]: "{first}", techniques[second]["name"]: "{second}"}
                pattern = "|".join(rf"\b{re.escape(name)}\b" for name in names)
                sentence = re.sub(pattern, lambda match, names=names: names[match[0]], found.sentence)
                models[family.name][found.kind].setdefault(sentence, {}).setdefault(first, []).append(second)
    return {"schema": SCHEMA, "techniques": techniques, "models": models}


def write(data: dict[str, Any], path: Path) -> None:
    """The same data gives the same bytes: sorted, one line for each technique and each list of partners."""
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False)
    for lines in (r"\[\n[^\[\]]*\]", r'\{\n\s*"companions"[^{}]*\}'):  # short lists, then what a technique is
        text = re.sub(lines, lambda match: re.sub(r"(?<!,)\n\s*|(?<=,)\n +(?= )", "", match[0]), text)
    path.write_text(text + "\n", encoding="utf-8")


def add_parser(commands: Any) -> None:
    """The command `pairs` of the command line."""
    command = commands.add_parser("pairs", help="which two techniques work together on the shipped models")
    command.add_argument("--write", metavar="FILE", type=Path, help=f"write the verdicts, as {FILE} holds them")
    command.set_defaults(command=run)


def run(options: argparse.Namespace) -> None:
    """Print how many pairs come to what on each model, and write the verdicts if a file is named."""
    from rich.table import Table

    from elvi.families.load import load as load_family

    data = compute([load_family(name) for name in MODELS])
    pairs, table = Pairs(data), Table(box=None, pad_edge=False)
    for heading in ("model", *KINDS):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model in pairs.models:
        kinds = [pairs.verdict(model, *pair).kind for pair in pairs.ordered()]
        table.add_row(model, *(str(kinds.count(kind)) for kind in KINDS))
    terminal.echo(table)
    if options.write is not None:
        write(data, options.write)
        print(options.write)
