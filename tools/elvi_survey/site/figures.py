"""Pictures of the pages, drawn from data as inline SVG: the life of a request, and where a technique acts.

Shapes carry the classes of `look.css` and never a colour. Widths are about 340 units, shown at 0.9 to 1.15, so that
text keeps its size on a phone.
"""

from dataclasses import dataclass

from markupsafe import Markup, escape

GLYPHS = {
    "encode": "M0 0h5v5H0zM7 0h5v5H7zM0 7h5v5H0zM7 7h5v5H7z",
    "prefill": "M0 0v12h12z",
    "decode": "M6 0a6 6 0 1 1 0 12A6 6 0 0 1 6 0z",
    "serve": "M6 0l6 6-6 6-6-6z",
    "frontier": "M6 0a6 6 0 1 1 0 12A6 6 0 0 1 6 0zm0 2.4a3.6 3.6 0 1 0 0 7.2 3.6 3.6 0 0 0 0-7.2z",
}
BAR = "M0 4h12v4H0z"


@dataclass(frozen=True)
class Request:
    """The request of the home picture: 8 frames of 448 x 448 to Qwen2.5-VL-7B, whose published configuration this is.

    `pairs` follows from the tower's 3-D patches, which take two frames each; `head` is the head width, `number` the
    bytes of one cached value (fp16).
    """

    frames: int = 8
    side: int = 448
    patch: int = 14
    merge: int = 2
    text: int = 32
    output: int = 64
    layers: int = 28
    kv_heads: int = 4
    head: int = 128
    number: int = 2

    @property
    def patches(self) -> int:
        return self.frames // 2 * (self.side // self.patch) ** 2

    @property
    def visual(self) -> int:
        return self.patches // self.merge**2

    @property
    def cache_bytes(self) -> int:
        return (self.visual + self.text) * self.layers * 2 * self.kv_heads * self.head * self.number


def glyph(stage: str) -> Markup:
    """The shape of a stage, sized by the text around it."""
    return Markup('<svg class="gl" viewBox="0 0 12 12" aria-hidden="true"><path d="{}"/></svg>').format(
        GLYPHS.get(stage, BAR)
    )


def picture(box: str, label: str, stage: str, parts: list[str]) -> Markup:
    """An SVG that stands for its label; `parts` are finished elements."""
    head = f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}" data-stage="{escape(stage)}">'
    return Markup(head + "".join(parts) + "</svg>")


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def _tokens(x: float, y: float, side: int, stage: str) -> str:
    """A square of small squares; one of them stands for 4 tokens and is 4 units wide."""
    return (
        f'<defs><pattern id="tokens-{stage}" width="4" height="4" patternUnits="userSpaceOnUse">'
        f'<rect class="f-mark" width="3" height="3"/></pattern></defs>'
        f'<rect x="{x:g}" y="{y:g}" width="{side}" height="{side}" fill="url(#tokens-{stage})"/>'
    )


def _lines(x0: float, x1: float, request: Request) -> str:
    path = "".join(f"M{x0:g},{43 + 4.4 * layer:.1f}H{x1:g}" for layer in range(request.layers))
    return f'<path data-stage="decode" class="l-mark" stroke-width="1.1" d="{path}"/>'


def _frames(count: int) -> str:
    """Overlapping frames with a disc that moves and a square that stays."""
    drawn = []
    for i in range(count):
        x, y = 14 + 8 * i, 126 - 11 * i
        drawn.append(
            f'<rect class="f-paper" x="{x}" y="{y}" width="42" height="42"/>'
            f'<rect class="l-mark" x="{x + 0.5}" y="{y}" width="41" height="41"/>'
            f'<circle class="f-mark" cx="{x + 8 + 3.6 * i:.1f}" cy="{y + 27 - 1.5 * i:.1f}" r="5"/>'
            f'<path class="f-mark" opacity=".45" d="M{x + 27},{y + 9}h8v8h-8z"/>'
        )
    return "".join(drawn)


def _encode(request: Request) -> str:
    side = 4 * round((request.patches / 4) ** 0.5)
    return (
        '<path class="f-mark" opacity=".14" d="M116,70L166,34V162L58,168V126z"/>'
        + _frames(request.frames)
        + _tokens(166, 34, side, "encode")
        + '<path class="f-mark" opacity=".22" d="M294,34L372,66V130L294,162z"/>'
        + _text(14, 192, f"{request.frames} frames")
        + _text(166, 192, f"{request.patches:,} patches")
        + _text(362, 192, f"merge {request.merge} × {request.merge}", "end")
    )


def _prefill(request: Request) -> str:
    side = 4 * round((request.visual / 4) ** 0.5)
    shadows = "".join(f"M{162.5 - 4 * i},{22.5 + 4 * i}v132h132z" for i in range(3))
    return (
        '<path data-stage="encode" class="f-mark" opacity=".22" d="M0,66H24V130H0z"/>'
        + _tokens(24, 66, side, "prefill")
        + '<rect class="f-ink" x="24" y="133" width="64" height="2.5"/>'
        + '<path class="f-mark" opacity=".2" d="M88,66L150,34V166L88,135.5z"/>'
        + f'<path class="l-mark" opacity=".55" d="{shadows}"/>'
        + '<path class="f-mark" d="M150,34V162H278z"/><path class="f-ink" d="M150,162.6H278.6l3.4,3.4H150z"/>'
        + f'<g opacity=".75">{_lines(306, 372, request)}</g>'
        + _text(14, 192, f"{request.visual:,} visual + {request.text} text")
        + _text(150, 192, f"attention, {request.layers} layers")
    )


def _decode(request: Request) -> str:
    dots = "".join(
        f'<circle cx="{222 + 13 * (i % 8)}" cy="{59 + 13 * (i // 8)}" r="4"/>' for i in range(request.output)
    )
    return (
        _lines(0, 132, request)
        + f'<path class="f-mark" opacity=".2" d="M132,42V163L214,154V55z"/><g class="f-mark">{dots}</g>'
        + _text(14, 192, f"KV cache, {request.cache_bytes / 1e6:.1f} MB")
        + _text(214, 192, f"{request.output} tokens, one by one")
    )


def lifecycle(stage: str, request: Request) -> Markup:
    """One of the three pictures of the home page; their edges meet, so the flow crosses the columns."""
    body = {"encode": _encode, "prefill": _prefill, "decode": _decode}[stage](request)
    return Markup(f'<svg viewBox="0 0 372 206" aria-hidden="true" data-stage="{escape(stage)}">{body}</svg>')


STATIONS = ("frames", "tower", "tokens", "layers", "cache", "output")
PROTOCOLS = {
    "select_frames": ("frames", "chooses the frames that the vision tower will see"),
    "resize": ("frames", "chooses which frames the vision tower will see, and how large"),
    "reduce": ("tokens", "drops or merges tokens before the language model reads them"),
    "attend": ("layers", "decides what each query row reads inside the layers"),
    "keep": ("cache", "chooses which rows stay in the key-value cache"),
    "fetch": ("cache", "chooses which rows of its second tier each query row reads"),
    "pack": ("cache", "stores the key-value cache in fewer bits"),
    "start": ("output", "drafts several tokens for the model to verify at once"),
    "judge": ("output", "decides which drafted tokens stand"),
}


def acts_at(methods: list[str], stage: str) -> list[tuple[str, str, str]]:
    """(method, station, sentence) of each protocol method; a reduction in the prefill stage sits between the layers."""
    found = []
    for method in dict.fromkeys(methods):
        if method in PROTOCOLS:
            station, words = PROTOCOLS[method]
            if method == "reduce" and stage == "prefill":
                station, words = "layers", "drops or merges tokens on their way through the language model"
            found.append((method, station, words))
    return found


def token_path(stations: set[str], stage: str) -> Markup:
    """The way from frames to output with the touched stations filled in the stage's shape and colour."""
    drawn = ['<path class="l-edge" d="M10,30H330"/>']
    for i, name in enumerate(STATIONS):
        x, hit = 24 + 58.4 * i, name in stations
        if hit:
            mark = f'<path class="f-mark" transform="translate({x - 9:g} 21) scale(1.5)" d="{GLYPHS.get(stage, BAR)}"/>'
            drawn.append(f'<circle class="f-paper" cx="{x:g}" cy="30" r="15"/>' + mark)
        else:
            drawn.append(f'<circle class="dot" cx="{x:g}" cy="30" r="5"/>')
        drawn.append(_text(x, 62, name, "mid t-s" if hit else "mid"))
    label = f"Acts on: {', '.join(s for s in STATIONS if s in stations)}; the path is {', '.join(STATIONS)}"
    return picture("0 0 340 72", label, stage, drawn)
