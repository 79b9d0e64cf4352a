"""Two tokenizers for the tiny models: whole words, and byte pairs for the drafter that speaks another vocabulary.

Both render a question the way real models do, with `apply_chat_template` over messages whose content lists images,
videos and text; the visual placeholder appears once per image or video and the model family widens it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elvi.tiny.data import COLORS, COLUMNS, ROWS, SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerFast

PAD, UNK, BOS, EOS, ANSWER = "<pad>", "<unk>", "<s>", "</s>", "<a>"
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
LLAVA_IMAGE = "<image>"
SPECIAL = (PAD, UNK, BOS, EOS, ANSWER, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, LLAVA_IMAGE)
ASKING = "in frame what shape color is at the ? how many objects are there which way does move describe clip a : , ."
WORDS = (*ASKING.split(), *SHAPES, *COLORS, *ROWS, *COLUMNS, "up", "down", *map(str, range(33)))
VOCABULARY = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
MAX_LENGTH = 2048
BYTE_PAIR_PIECES = 300

_TURN = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ '<a>' }}{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}VISUAL{% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
VISUAL = {
    "qwen": "{% elif part.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}",
    "llava": "{% elif part.type == 'image' %}{{ '<image>' }}",
    "text": "",
}


def template(family: str) -> str:
    """The chat template (Jinja) of a family: "qwen", "llava" or "text"."""
    return "{{ '<s>' }}" + _TURN.replace("VISUAL", VISUAL[family])


def words(family: str) -> PreTrainedTokenizerFast:
    """The whole-word tokenizer with the chat template of a family; "clip" wraps a text in <s> … </s> instead."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel(dict(VOCABULARY), unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if family == "clip":
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {EOS}", special_tokens=[(BOS, VOCABULARY[BOS]), (EOS, VOCABULARY[EOS])]
        )
    return _wrapped(core, None if family == "clip" else template(family), 64 if family == "clip" else MAX_LENGTH)


def byte_pairs(
    corpus: Iterable[str], pieces: int = BYTE_PAIR_PIECES, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer of at most that many pieces learnt from a corpus; it can spell any text.

    chat_template: default `template("text")`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=[PAD, UNK, BOS, EOS, ANSWER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    return _wrapped(core, chat_template or template("text"), MAX_LENGTH)


def _wrapped(core: object, chat_template: str | None, length: int) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    known = [token for token in SPECIAL if core.token_to_id(token) is not None]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=known[4:],
        chat_template=chat_template,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )
