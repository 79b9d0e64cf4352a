"""What a module says about itself is read without importing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from elvi_survey.codefacts import CodeFactsError, FieldFacts, read_facts, read_techniques


def test_fields_facts_and_methods_are_read(tree: Path) -> None:
    technique = read_techniques(tree)["fast-thing"]
    assert (technique.name, technique.stage, technique.path) == (
        "FastThing",
        "prefill",
        "impls/elvi/prefill/fast_thing.py",
    )
    assert (technique.line, technique.lines) == (13, 27)
    assert technique.summary == "Drops half of the tokens."
    assert technique.doc == "Drops half of the tokens.\n\nWhere we differ: nowhere."
    assert technique.main.doc == "Ranks tokens once."
    assert (technique.needs, technique.breaks, technique.methods) == (["QUESTION_KNOWN", "GRID"], ["GRID"], ["reduce"])
    assert technique.fields == [
        FieldFacts("layer", "int", "2", 18, "first layer on the survivors"),
        FieldFacts("keep_ratio", "float", "0.5", 19, None),
        FieldFacts("heads", "tuple[int, ...]", "()", 20, None),
        FieldFacts("model", "str", None, 21, None),
    ]


def test_the_first_public_class_with_needs_is_the_main_one(tree: Path) -> None:
    path = tree / "impls/elvi/prefill/fast_thing.py"
    source = path.read_text()
    mark = "@dataclass(frozen=True)\n"
    helper = f"{mark}class Helper:\n    size: int = 1\n\n\n{mark}class _Hidden:\n    needs = ()\n\n\n"
    second = f"\n\n{mark}class Second:\n    needs = ()\n\n    def start(self):\n        pass\n"
    path.write_text(source.replace(mark, helper + mark) + second)
    technique = read_techniques(tree)["fast-thing"]
    assert [(part.name, part.methods) for part in technique.classes] == [
        ("FastThing", ["reduce"]),
        ("Second", ["start"]),
    ]


def test_a_module_that_would_fail_on_import_is_read(tree: Path, put) -> None:
    source = (tree / "impls/elvi/prefill/fast_thing.py").read_text()
    put({"impls/elvi/prefill/fast_thing.py": source + "\nraise SystemExit\n"})
    assert read_techniques(tree)["fast-thing"].name == "FastThing"


def test_facts_are_names_and_sentences(tree: Path) -> None:
    assert read_facts(tree) == {"GRID": "the tokens form a grid", "QUESTION_KNOWN": "the question is known"}


def test_a_module_without_technique_raises_with_file_and_line(tree: Path, put) -> None:
    put({"impls/elvi/prefill/fast_thing.py": '"""Doc."""\n'})
    with pytest.raises(
        CodeFactsError, match=r"^impls/elvi/prefill/fast_thing.py:1 the module has no public technique class"
    ):
        read_techniques(tree)


def test_facts_of_the_real_core_match_its_enum(repository: Path) -> None:
    from elvi.core.facts import Fact

    assert read_facts(repository) == {fact.name: fact.value for fact in Fact}
