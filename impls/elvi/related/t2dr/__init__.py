"""T2DR: sentiment from text, audio and vision of which frames or whole modalities are missing.

Lin et al., Findings of ACL 2025, 2025.findings-acl.452. Two tiers for two kinds of missing data. Inside a modality,
Intra-Attn leans on the frames that are present without suppressing the others too hard. Between modalities, absent ones
are predicted from what modalities share (SFP), and Inter-Attn weighs all by the scores of a capability-aware scorer
(CAS).

(R) A reconstruction from the abstract: nothing else is public. Ours are the bias -lambda r (1 - F) of missing keys, the
split into shared and private parts, the form of prediction and scorer, all losses and weights, every size and rate, and
the data: a seeded generator stands in for CMU-MOSI and CMU-MOSEI, whose features have to be fetched by hand.

Where we differ: besides the losses of the specification, the unimodal heads that tell the scorer what each modality is
capable of are trained on their own error. No number of the paper was seen, so none is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from elvi.errors import ElviError, check_range
from elvi.related import Table

WEIGHTS = Path(__file__).parent / "weights" / "t2dr.safetensors"
FRESH, LISTED = 500, 6


@dataclass(frozen=True)
class T2DR:
    """Sentiments of samples of which a share `missing` of the frames and the modalities `absent` are taken away.

    `absent` is none, or names joined by +, such as audio+vision. `weights` is a file of `elvi train`, empty for the
    shipped ones; `data` a file whose test split is read, empty for the generator. The other fields shape training.
    Raises BudgetError for values out of range.
    """

    missing: float = 0.5
    absent: str = "none"
    weights: str = ""
    data: str = ""
    hidden: int = 32
    samples: int = 3000
    epochs: int = 8
    seed: int = 0
    seeds: int = 3

    prompt: ClassVar[str | None] = None
    sweep: ClassVar[tuple[str, tuple[float, ...]]] = ("missing", (0.0, 0.5, 0.9))

    def __post_init__(self) -> None:
        check_range(self, "missing", 0, 0.95)
        for field in ("hidden", "samples", "epochs", "seeds"):
            check_range(self, field, 2, float("inf"))
        if self.hidden % 4:
            raise ElviError(
                f"T2DR was asked for hidden={self.hidden}, which its heads cannot share: use a multiple of 4."
            )

    def run(self, prompt: str | None) -> list[Table]:
        """Sentiments and weights of a few samples, and the error over many, with and without the parts taken away."""
        import torch

        from elvi.related.t2dr.data import MODALITIES, corpus, drop_frames, read, without
        from elvi.related.t2dr.train import load

        if prompt is not None:
            raise ElviError("T2DR was given a prompt, but reads feature sequences: set missing and absent instead.")
        absent = () if self.absent == "none" else tuple(self.absent.split("+"))
        for name in absent:
            if name not in MODALITIES:
                raise ElviError(f"T2DR was asked for absent={name}, which is no modality: use {', '.join(MODALITIES)}.")
        fusion = load(Path(self.weights) if self.weights else WEIGHTS)
        whole = read(Path(self.data))["test"] if self.data else corpus("test", FRESH, self.seed)
        part = drop_frames(without(whole, absent), self.missing, torch.Generator().manual_seed(self.seed))
        said, w = fusion.read(part)
        rows = [
            (i, *(round(float(x), 2) for x in (whole.target[i], said[i], *w[i])))
            for i in range(min(LISTED, len(whole)))
        ]
        columns = ("sample", "sentiment", "read as", *(f"weight of {m}" for m in MODALITIES))
        errors = [
            ("everything", fusion.error(whole)),
            (f"missing {self.missing:g}, absent {self.absent}", fusion.error(part)),
        ]
        return [
            Table("Sentiments", columns, rows, f"Missing frames {self.missing:g}, absent modalities: {self.absent}."),
            Table(f"Error over {len(whole)} samples", ("present", "MAE"), [(name, round(e, 3)) for name, e in errors]),
        ]

    def bench(self, tick: Callable[[int, int], None]) -> list[Table]:
        """Error against missing rate of T2DR, its ablations and simpler fusions, over `seeds` seeds."""
        from elvi.related.t2dr.bench import bench

        return bench(self, tick)

    def train(self, out: Path, data: Path | None, *, resume: bool, tick: Callable[[int, int], None]) -> None:
        """Write `t2dr.safetensors` to `out`, from the generator or from a MOSI- or MOSEI-like file `data`."""
        from elvi.related.t2dr.data import corpus, read
        from elvi.related.t2dr.train import fit, save

        train = corpus("train", self.samples, self.seed) if data is None else read(data)["train"]
        how = {"hidden": self.hidden, "epochs": self.epochs, "seed": self.seed, "resume": resume, "tick": tick}
        save(fit("T2DR", train, checkpoint=out / "t2dr.pt", **how), out / "t2dr.safetensors")
