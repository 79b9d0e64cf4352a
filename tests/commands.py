"""The commands that a page shows, be it Markdown or HTML, and which techniques stand for the others in quick tests."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from elvi_survey.codefacts import RELATED, Technique, read_techniques
from elvi_survey.site.figures import PROTOCOLS

ROOT = Path(__file__).parents[1]
TECHNIQUES = read_techniques(ROOT)
SHELLS = ("", "sh", "bash", "shell", "console")
PROGRAMS = ("elvi", "elvi-survey", "make", "python", "pip", "git", "npm")
_PRE = re.compile(r"<pre[^>]*>\s*<code[^>]*>(.*?)</code>\s*</pre>", re.DOTALL)
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(rf"`((?:{'|'.join(PROGRAMS)})\s[^`]+)`|<code>((?:{'|'.join(PROGRAMS)})\s.+?)</code>", re.DOTALL)
_INDENTED = re.compile(rf"^    ((?:{'|'.join(PROGRAMS)}) .+)$", re.MULTILINE)


def commands(text: str) -> list[str]:
    """Every command of a page, once: lines of shell blocks, code that begins with a program and goes on, and indented
    lines that do. Comments are left out."""
    page = re.sub(r"</?span\b[^>]*>", "", text)
    found = [line[2:] for block in _PRE.findall(page) for line in unescape(block).splitlines() if line[:2] == "$ "]
    found += [line for language, block in _FENCE.findall(page) if language in SHELLS for line in block.splitlines()]
    rest = _FENCE.sub("", _PRE.sub("", page))
    found += [unescape(html) or ticked for ticked, html in _CODE.findall(rest)]
    found += _INDENTED.findall(rest)
    plain = (" ".join(re.sub(r"(^|\s)#.*", "", each).split()) for each in found)
    return [each for each in dict.fromkeys(plain) if each]


def seams(code: Technique) -> set[tuple[str, str]]:
    """Where a technique acts; that of a related system is its stage."""
    return {(code.stage, method) for method in code.methods if method in PROTOCOLS or code.stage == RELATED}


def every_technique() -> list:
    """Parameters of a test: all ids. The first of every seam is quick, and all others are slow."""
    first: dict[tuple[str, str], str] = {}
    for id_, code in TECHNIQUES.items():
        for seam in seams(code):
            first.setdefault(seam, id_)
    return [pytest.param(id_, marks=() if id_ in first.values() else pytest.mark.slow) for id_ in TECHNIQUES]


def changes_figures(code: Technique) -> bool:
    """Whether a report has figures that a technique changes: not where all it decides is what rows read in a layer."""
    return {method for _, method in seams(code)} != {"attend"}
