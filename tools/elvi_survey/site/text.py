"""From words to HTML: docstrings with code and mathematics, and generated HTML that Markdown must leave alone."""

import re
import textwrap

from latex2mathml.converter import convert
from markupsafe import Markup, escape

INLINE = re.compile(r"``(?P<double>[^`]+)``|`(?P<single>[^`]+)`|\$(?P<math>[^$\n]+)\$")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u2028\u2029]")


def inline(words: str) -> Markup:
    """Escaped text in which `code` becomes code and $mathematics$ becomes MathML."""
    parts, end = [], 0
    for match in INLINE.finditer(words):
        parts.append(escape(words[end : match.start()]))
        code = match["double"] or match["single"]
        parts.append(Markup("<code>{}</code>").format(code) if code else Markup(convert(match["math"])))
        end = match.end()
    return Markup("").join([*parts, escape(words[end:])])


def prose(docstring: str) -> Markup:
    """A docstring as paragraphs and lists, bulleted or numbered; an indented block keeps its lines as code."""
    blocks = [_block(block) for block in re.split(r"\n\s*\n", textwrap.dedent(docstring).strip("\n")) if block.strip()]
    return Markup("\n").join(blocks)


def _block(block: str) -> Markup:
    lines = block.split("\n")
    if all(line.startswith("    ") for line in lines):
        return Markup('<pre tabindex="0" class="sunk"><code>{}</code></pre>').format(textwrap.dedent(block))
    numbered = re.search(r"^\s*1\. ", block, flags=re.MULTILINE)
    lead, *items = re.split(r"^\s*\d+\. " if numbered else r"^\s*[-*] ", block, flags=re.MULTILINE)
    paragraph = Markup('<p class="prose">{}</p>').format(inline(" ".join(lead.split()))) if lead.strip() else Markup("")
    if not items:
        return paragraph
    listed = Markup("").join(Markup("<li>{}</li>").format(inline(" ".join(item.split()))) for item in items)
    if numbered:
        return paragraph + Markup('<ol class="prose dots">{}</ol>').format(listed)
    return paragraph + Markup('<ul class="prose dots">{}</ul>').format(listed)


def one_line(words: str) -> str:
    """Words without line breaks and control characters."""
    return " ".join(CONTROL.sub(" ", words).split())


def beyond_markdown(html: str) -> str:
    """HTML that comes out of Markdown as it went in.

    A block of raw HTML is left alone by Markdown, but fences are looked for before blocks are, so the characters that
    open them are written as entities. Control characters, which Markdown uses as markers of its own, become spaces.
    """
    return CONTROL.sub(" ", html).replace("`", "&#96;").replace("~", "&#126;")
