"""The command that pages show gives every technique something to do."""

from elvi.example import CAPTION, LONG, SHORT, example


def test_a_technique_runs_at_its_defaults_on_a_short_clip():
    assert example("fastv", ["GRID"], ["reduce"]).command == (
        f"elvi run fastv --model tiny-qwen --sample {SHORT} --baseline"
    )


def test_a_class_token_asks_for_the_model_that_has_one():
    assert example("a", ["CLS_TOKEN"], ["reduce"]).model == "tiny-llava"


def test_frames_are_chosen_from_a_long_clip_at_a_budget_that_leaves_some_out():
    shown = example("a", [], ["select_frames"], sweep=("num_frames", (1, 8)))
    assert (shown.plan, shown.sample) == (("a:num_frames=8",), LONG)


def test_drafts_are_of_an_answer_with_many_words_and_follow_those_who_draft():
    shown = example("a", [], ["judge"], companions=("b:tree=chain",))
    assert (shown.plan, shown.sample) == (("b:tree=chain", "a"), CAPTION)
