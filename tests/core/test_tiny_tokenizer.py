"""The tokenizers of the tiny models know every word that the clips use, and give texts back unchanged."""

import pytest

from elvi.tiny import data, tokenizer

QUESTION = "in frame 3 what shape is at top left ?"


@pytest.mark.parametrize("kind", data.KINDS)
def test_words_come_back_unchanged_and_none_is_unknown(kind):
    words = tokenizer.words("qwen")
    for n in range(10):
        clip = data.sample(n, kind)
        for text in (clip.question, clip.expected):
            ids = words.encode(text, add_special_tokens=False)
            assert tokenizer.VOCABULARY["<unk>"] not in ids
            assert words.decode(ids) == text


def test_a_word_it_does_not_know_becomes_unk():
    assert tokenizer.words("qwen").encode("a giraffe", add_special_tokens=False)[1] == tokenizer.VOCABULARY["<unk>"]


@pytest.mark.parametrize(
    ("family", "visuals", "opening"),
    [
        ("qwen", ["video"], "<s><|vision_start|><|video_pad|><|vision_end|>"),
        ("qwen", ["image"], "<s><|vision_start|><|image_pad|><|vision_end|>"),
        ("llava", ["image", "image"], "<s><image><image>"),
        ("text", [], "<s>"),
    ],
)
def test_the_chat_template_has_one_placeholder_per_visual(family, visuals, opening):
    content = [*({"type": kind} for kind in visuals), {"type": "text", "text": QUESTION}]
    shown = tokenizer.words(family).apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert shown == f"{opening}{QUESTION}<a>"


def test_clip_texts_are_wrapped_in_start_and_end():
    assert tokenizer.words("clip").decode(tokenizer.words("clip").encode("a star")) == "<s> a star </s>"


def test_byte_pairs_spell_any_text_in_more_pieces_than_words():
    pieces = tokenizer.byte_pairs([data.sample(n, "caption").expected for n in range(50)])
    caption = data.sample(10_005, "caption").expected
    for text in (caption, QUESTION, "Übergrößenträger, 42 €!"):
        assert pieces.decode(pieces.encode(text, add_special_tokens=False)) == text
    assert len(pieces.encode(caption, add_special_tokens=False)) > 1.5 * len(caption.split())
    assert len(pieces) == tokenizer.BYTE_PAIR_PIECES
