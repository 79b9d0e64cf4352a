"""Built pages without what the theme writes for scripts that the site does not ship, and without its indentation."""

import re

_UNUSED = re.compile(
    r"<script>(?:__md_scope|var target=).*?</script>"
    r'|<input class="md-toggle"[^>]*>|<label class="md-overlay"[^>]*></label>'
    r'|<div data-md-component="(?:skip|announce)">.*?</div>'
    r'|<div class="md-dialog"[^>]*>\s*<div class="md-dialog__inner md-typeset"></div>\s*</div>',
    re.DOTALL,
)
_LINES = re.compile(r"\s*\n\s*")


def lean(html: str) -> str:
    """`html` of one page; what stands in its main part is left as it is."""
    head, main, rest = html.partition("<main")
    body, foot, end = rest.rpartition("</main>")
    if not foot:
        return html
    body = _UNUSED.sub("", body) if "__tabbed_" in body else body
    return _bare(head) + main + body + foot + _bare(end)


def _bare(html: str) -> str:
    return _LINES.sub("\n", _UNUSED.sub("", html)).lstrip("\n")
