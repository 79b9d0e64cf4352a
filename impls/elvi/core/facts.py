"""What techniques may rely on. Each value is the sentence that messages and pages use."""

from __future__ import annotations

from enum import Enum


class Fact(Enum):
    """A property of a run that holds until a technique breaks it."""

    GRID = "the visual tokens form a full time x height x width grid"
    EQUAL_FRAMES = "every time step has the same number of visual tokens"
    UNIT_MASS = "every visual token stands for exactly one patch of the input"
    CLS_TOKEN = "the vision tower has a class token"
    NATIVE_RESOLUTION = "the vision tower reads every picture at a size of its own"
    SAME_KEYS_PER_HEAD = "all heads of a layer hold the same tokens in the cache"
    SAME_LENGTH_PER_HEAD = "all heads of a layer hold the same number of tokens in the cache"
    SAME_LENGTH_PER_LAYER = "all layers hold the same number of tokens in the cache"
    ONE_TIER = "the cache holds all its rows in the first tier"
    SETTLED = "the cached rows of the prompt stay as they are once the prompt is read"
    EXACT_VALUES = "the cache holds keys and values in full precision"
    ROW_PURE = "what a query row reads depends on that row's own past only"
    SHARED_VOCAB = "drafter and target share one vocabulary"
    DRAFT_PROBS = "the drafter offers the distribution it drew from"
    QUESTION_KNOWN = "the question is part of the prompt that is prefilled"
    WHOLE_PROMPT = "the prompt is read in one piece"
