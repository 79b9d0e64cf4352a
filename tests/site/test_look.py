"""Colours can be read and told apart, and the theme still has the places that the look fills."""

import re
from itertools import combinations
from pathlib import Path

import material
import pytest

REPOSITORY = Path(__file__).parents[2]
CSS = (REPOSITORY / "docs/look/look.css").read_text(encoding="utf-8")
TOKENS = {name: (light, dark) for name, light, dark in re.findall(r"--([\w-]+):light-dark\((#\w+),(#\w+)\)", CSS)}
STAGES = ("encode", "prefill", "decode", "serve", "frontier", "context")


def linear(colour: str) -> list[float]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two colours."""
    weights = (0.2126, 0.7152, 0.0722)
    dark, light = sorted(sum(w * part for w, part in zip(weights, linear(c), strict=True)) for c in (one, other))
    return (light + 0.05) / (dark + 0.05)


def oklab(colour: str) -> list[float]:
    r, g, b = linear(colour)
    cone = [
        (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3),
        (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3),
        (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3),
    ]
    rows = [(0.2104542553, 0.793617785, -0.0040720468), (1.9779984951, -2.428592205, 0.4505937099),
            (0.0259040371, 0.7827717662, -0.808675766)]  # fmt: skip
    return [sum(weight * part for weight, part in zip(row, cone, strict=True)) for row in rows]


def test_the_contrast_formula_knows_black_on_white():
    assert contrast("#000000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["paper", "sunk"])
@pytest.mark.parametrize("text", ["ink", "soft", "faint"])
def test_text_can_be_read_on_page_and_code(theme, ground, text):
    assert contrast(TOKENS[text][theme], TOKENS[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("stage", STAGES)
def test_words_and_shapes_of_a_stage_can_be_read_on_page_and_wash(theme, stage):
    for ground in ("paper", f"{stage}-wash"):
        assert contrast(TOKENS[f"{stage}-ink"][theme], TOKENS[ground][theme]) >= 4.5
        assert contrast(TOKENS[f"{stage}-mark"][theme], TOKENS[ground][theme]) >= 3


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_marks_of_the_lifecycle_can_be_told_apart(theme):
    marks = [oklab(TOKENS[f"{stage}-mark"][theme]) for stage in STAGES[:4]]
    nearest = min(sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) ** 0.5 for pair in combinations(marks, 2))
    assert nearest >= 0.15


def test_every_block_that_the_look_fills_exists_in_the_theme():
    base = (Path(material.__file__).parent / "templates/base.html").read_text(encoding="utf-8")
    ours = (REPOSITORY / "docs/theme/main.html").read_text(encoding="utf-8")
    filled = set(re.findall(r"{% block (\w+) %}", ours))
    assert len(filled) > 8
    assert filled <= set(re.findall(r"{% block (\w+) %}", base))


def test_every_font_of_the_look_is_shipped_with_a_licence():
    fonts = set(re.findall(r"url\(fonts/([^)]+)\)", CSS))
    assert fonts == {path.name for path in (REPOSITORY / "docs/look/fonts").glob("*.woff2")}
    assert "SIL OPEN FONT LICENSE" in (REPOSITORY / "docs/look/fonts/LICENSES.txt").read_text(encoding="utf-8").upper()
