"""Review sentences with their mean human valence, the split, and the vocabulary.

The shipped text is from the source distribution of `vaderSentiment` 3.3.2 (MIT, C.J. Hutto): sentences of film and
product reviews whose mean rating by people lies at least 0.5 from neutral (see data/README.md). This makes it again:
`pip download --no-deps --no-binary :all: vaderSentiment==3.3.2`, then
`python -m elvi.related.skipbert.data vaderSentiment-3.3.2.tar.gz reviews.tsv.gz`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import tarfile
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from elvi.errors import ElviError

SHIPPED = Path(__file__).parent / "data" / "reviews.tsv.gz"
SOURCES = ("movieReviewSnippets", "amazonReviewSnippets")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
NEUTRAL = 0.5

Sentence = tuple[str, int]  # text, and 1 if it is positive


def read(path: Path | None = None) -> list[Sentence]:
    """Sentences of a file of lines `valence<TAB>text` (gzip or plain); near-neutral ones are left out.

    Raises ElviError for a file that cannot be read so.
    """
    path = path or SHIPPED
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ElviError(f"{path} cannot be read as text ({error}): give lines of `valence<TAB>sentence`.") from error
    found = []
    for number, line in enumerate(lines, 1):
        valence, tab, text = line.partition("\t")
        try:
            value = float(valence)
        except ValueError:
            tab = ""
        if not tab or not text.strip():
            raise ElviError(f"Line {number} of {path} is no `valence<TAB>sentence`: write a number, a tab and a text.")
        if abs(value) >= NEUTRAL:
            found.append((text.strip(), int(value > 0)))
    if len({label for _, label in found}) < 2:
        raise ElviError(f"{path} holds no sentences of both signs: give positive and negative ones.")
    return found


def split(sentences: list[Sentence]) -> dict[str, list[Sentence]]:
    """80 / 10 / 10 % by a checksum of the text, so that equal texts fall together."""
    parts: dict[str, list[Sentence]] = {"train": [], "dev": [], "test": []}
    for text, label in sentences:
        parts[{8: "dev", 9: "test"}.get(zlib.crc32(text.encode()) % 10, "train")].append((text, label))
    return parts


def vocabulary(texts: list[str], size: int, length: int) -> Tokenizer:
    """Lower-case byte pairs learned from texts; sentences become [CLS] ... [SEP], at most `length` tokens."""
    made = Tokenizer(models.BPE(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    made.decoder = decoders.Metaspace()
    # Not word pieces: the order in which their trainer numbers inner letters changes from run to run.
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    made.train_from_iterator(texts, trainer)
    ends = [(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    made.enable_truncation(length)
    made.enable_padding(pad_id=0, pad_token="[PAD]")
    return made


def encode(pieces: Tokenizer, texts: list[str]) -> torch.Tensor:
    """(B, T) token ids, padded with 0 to the longest sentence."""
    return torch.tensor([coded.ids for coded in pieces.encode_batch(texts)])


def extract(archive: Path, out: Path) -> int:
    """Write the sentences that ship from the source distribution; returns their number."""
    inner = "additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive) as outer:
        name = next(name for name in outer.getnames() if name.endswith(inner))
        nested = io.BytesIO(outer.extractfile(name).read())
    lines = []
    with tarfile.open(fileobj=nested) as files:
        for source in SOURCES:
            text = files.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt").read().decode()
            for line in text.splitlines():
                _, valence, words = line.split("\t", 2)
                if abs(float(valence)) >= NEUTRAL and words.strip():
                    lines.append(f"{float(valence):.2f}\t{words.strip()}\n")
    out.write_bytes(gzip.compress("".join(lines).encode(), 9, mtime=0))
    return len(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m elvi.related.skipbert.data", description="Make the text again.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    print(f"{extract(asked.archive, asked.out):,} sentences")
