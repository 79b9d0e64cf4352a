"""Pyramid: labels, the stack and its inverse, padding, the flat ceiling, and what the shipped weights find."""

from __future__ import annotations

import json
from itertools import combinations, pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from elvi.errors import ElviError
from elvi.related.pyramid_ner import WEIGHTS, PyramidNER
from elvi.related.pyramid_ner.data import LONGEST, corpus, read
from elvi.related.pyramid_ner.labels import apart, crossing, decode, encode, flat_ceiling, inside, score, tag_set
from elvi.related.pyramid_ner.model import MAX_CHARS, Batch, FlatTagger, Pyramid
from elvi.related.pyramid_ner.train import fit, load, shape_of

TOKENS = 9
SPANS = st.tuples(st.integers(0, TOKENS - 1), st.integers(1, TOKENS)).map(sorted).filter(lambda s: s[0] < s[1])
MENTIONS = st.sets(st.tuples(st.sampled_from(["GPE", "ORG", "PER"]), SPANS).map(lambda m: (m[0], *m[1])), max_size=12)


def through(mentions, depth, length=TOKENS):
    tags = tag_set([mentions])
    return decode(encode(mentions, length, depth, tags), depth, tags)


def model(depth=3, inverse=True, hidden=8):
    torch.manual_seed(0)
    return Pyramid(20, 5, hidden, depth, inverse).eval()


def batch(lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    words = torch.randint(1, 20, (len(lengths), longest), generator=draw)
    chars = torch.randint(1, 60, (len(lengths), longest, MAX_CHARS), generator=draw)
    owned = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Batch(words * owned, chars * owned[..., None], torch.tensor(lengths))


@given(MENTIONS)
def test_labels_of_mentions_within_the_stack_come_back_whole(mentions):
    assert through(mentions, TOKENS - 1) == mentions


@given(MENTIONS)
def test_longer_mentions_come_back_unless_two_touch_at_the_top(mentions):
    depth = 2
    top = [span for span in {m[1:] for m in mentions} if span[1] - span[0] > depth]
    if all(a[1] - depth <= b[0] or b[1] - depth <= a[0] for a, b in combinations(top, 2)):
        assert through(mentions, depth) == mentions


def test_of_two_that_touch_at_the_top_the_longer_stays_whole():
    assert through({("PER", 0, 5), ("ORG", 1, 8)}, 2) == {("ORG", 1, 8), ("PER", 0, 3)}


def test_types_of_one_span_share_a_tag_and_crossing_pairs_keep_apart():
    mentions = {("ORG", 0, 1), ("GPE", 0, 1), ("PER", 0, 3), ("PER", 2, 5)}
    assert "B-GPE|ORG" in tag_set([mentions])
    assert through(mentions, 4) == mentions
    assert crossing(mentions) == {("PER", 0, 3), ("PER", 2, 5)}
    assert inside(mentions) == {("ORG", 0, 1), ("GPE", 0, 1)}


def test_only_the_top_layer_continues_a_span_and_any_type_does():
    tags = ("O", "B-GPE", "I-GPE", "B-PER", "I-PER")
    assert decode([[1, 2, 0], [3, 2]], 1, tags) == {("GPE", 0, 1), ("PER", 0, 3)}
    assert decode([[0, 2, 0]], 0, tags) == set()


def test_a_joint_type_never_trained_on_becomes_its_known_part_and_an_unknown_one_is_refused():
    tags = tag_set([{("ORG", 0, 1)}])
    assert decode(encode({("GPE", 0, 1), ("ORG", 0, 1)}, 2, 1, tags), 1, tags) == {("ORG", 0, 1)}
    with pytest.raises(ElviError, match="label GPE is unknown"):
        encode({("GPE", 0, 1)}, 2, 1, tags)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_layer_d_has_d_places_fewer_than_tokens(tokens, inverse):
    logits = model(4, inverse)(batch([tokens]))
    assert [x.shape[1] for x in logits] == [tokens - d for d in range(min(4, tokens - 1) + 1)]


@pytest.mark.parametrize("make", [lambda: model(5), lambda: model(5, inverse=False)])
def test_logits_do_not_depend_on_the_batch(make):
    pyramid, mixed = make(), batch([7, 2, 1, 5])
    together = pyramid(mixed)
    for b, n in enumerate(mixed.length.tolist()):
        one = Batch(mixed.words[b : b + 1, :n], mixed.chars[b : b + 1, :n], mixed.length[b : b + 1])
        for d, alone in enumerate(pyramid(one)):
            torch.testing.assert_close(together[d][b, : n - d], alone[0])


def test_without_the_bilstm_a_place_of_layer_d_sees_its_d_plus_one_tokens_and_no_other():
    class Through(nn.Module):
        def forward(self, x, length):
            return x

    pyramid = model()
    pyramid.shared = Through()
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for d, e in enumerate(pyramid.climb(x, torch.tensor([6]))):
        for i in range(6 - d):
            [slope] = torch.autograd.grad(e[0, i].square().sum(), x, retain_graph=True)
            assert slope[0].abs().sum(-1).nonzero().flatten().tolist() == list(range(i, i + d + 1))


def test_the_inverse_starts_from_zeros_and_with_its_weights_at_zero_equals_the_basic_stack():
    full, basic, rows = model(), model(inverse=False), batch([6, 3])
    down = full.descend(full.climb(full.encoder(rows), rows.length), rows.length)
    assert not down[-1].any()
    assert not down[2][1, :1].any()  # the top of the shorter sentence
    assert down[0].any()
    with torch.no_grad():
        basic.load_state_dict(full.state_dict() | {"tag.weight": full.tag.weight[:, :8]}, strict=False)
        full.tag.weight[:, 8:] = 0
    for a, b in zip(full(rows), basic(rows), strict=True):
        torch.testing.assert_close(a, b)


def test_the_flat_rival_normalises_and_finds_the_best_row_as_enumeration_does():
    torch.manual_seed(0)
    flat, rows = FlatTagger(20, 3, 8).eval(), batch([4, 2])
    nn.init.normal_(flat.step)
    logits = flat(rows)
    for b, n in enumerate([4, 2]):
        ways = list(product(range(3), repeat=n))
        scores = torch.stack(
            [
                sum(logits[b, t, w] for t, w in enumerate(way)) + sum(flat.step[i, j] for i, j in pairwise(way))
                for way in ways
            ]
        )
        torch.testing.assert_close(flat.log_norm(logits, rows.length)[b], scores.logsumexp(0))
        assert flat.read(rows)[b] == [list(ways[int(scores.argmax())])]


@settings(max_examples=40)
@given(MENTIONS, st.lists(st.integers(0, 6), min_size=TOKENS, max_size=TOKENS))
def test_no_row_of_flat_tags_recalls_more_than_the_ceiling(mentions, row):
    tags = tag_set([{("GPE", 0, 1), ("ORG", 1, 2), ("PER", 2, 3)}])
    assert len(mentions & decode([row], 0, tags)) <= flat_ceiling(mentions)


@settings(max_examples=40)
@given(MENTIONS)
def test_the_ceiling_is_the_largest_set_without_overlap(mentions):
    by_span = sorted({m[1:] for m in mentions})
    sets = (s for k in range(4) for s in combinations(by_span, k) if all(a[1] <= b[0] for a, b in pairwise(s)))
    least = max(sum(m[1:] in chosen for m in mentions) for chosen in sets)
    assert flat_ceiling(mentions) >= least
    assert flat_ceiling(mentions) >= len(apart(mentions, outermost=True))
    assert flat_ceiling(mentions) <= len(mentions)


def test_a_flat_tagger_that_errs_nowhere_recalls_exactly_the_outermost_share():
    gold = [set(s.mentions) for s in corpus("test", 100, 0.5, 0.08, 0)]
    outer = [apart(mentions, outermost=True) for mentions in gold]
    read = [decode(encode(o, 25, 0, tag_set(gold)), 0, tag_set(gold)) for o in outer]
    assert read == outer
    assert score(gold, read)[:2] == (100.0, 100 * sum(map(len, outer)) / sum(map(len, gold)))


def test_nothing_found_scores_zero():
    assert score([{("PER", 0, 1)}], [set()]) == (0.0, 0.0, 0.0)


def test_the_grammar_repeats_nests_and_keeps_unseen_names_apart():
    drawn = corpus("train", 300, 0.5, 0.08, 0)
    assert drawn == corpus("train", 300, 0.5, 0.08, 0)
    assert 9 <= max(end - start for s in drawn for _, start, end in s.mentions) <= LONGEST
    assert any(crossing(set(s.mentions)) for s in drawn)
    plain = corpus("train", 300, 0.0, 0.0, 0)
    assert not any(inside(set(s.mentions)) | crossing(set(s.mentions)) for s in plain)
    places = [{s.tokens[m[1]] for s in of for m in s.mentions if m[0] == "GPE" and m[2] - m[1] == 1} for of in
              (drawn, corpus("unseen", 300, 0.5, 0.08, 0))]  # fmt: skip
    assert places[0]
    assert not places[0] & places[1]


def test_training_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    train = corpus("train", 24, 0.5, 0.2, 0)
    shape = shape_of(train, 8, 3, True)
    whole = fit(shape, train, train, epochs=2, seed=0)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(shape, train, train, epochs=2, seed=0, checkpoint=tmp_path / "p.pt", tick=stop)
    resumed = fit(shape, train, train, epochs=2, seed=0, checkpoint=tmp_path / "p.pt", resume=True)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ElviError, match="other settings"):
        fit(shape_of(train, 16, 3, True), train, train, epochs=2, seed=0, checkpoint=tmp_path / "p.pt", resume=True)


def test_own_data_trains_a_tagger_that_run_reads(tmp_path):
    rows = [{"tokens": ["Mira", "of", "Velka"], "entities": [{"entity_type": "PER", "span": [0, 3]}]}] * 20
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    small = PyramidNER(hidden=8, depth=1, epochs=2)
    small.train(tmp_path, tmp_path / "mine.json", resume=False, tick=lambda done, total: None)
    assert load(tmp_path / "pyramid.safetensors").shape.tags == ("O", "B-PER", "I-PER")
    [table] = PyramidNER(weights=str(tmp_path / "pyramid.safetensors")).run("Mira of Velka")
    assert table.columns == ("type", "mention", "tokens", "layer")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ('[{"tokens": ["a"]}]', "cannot be read"),
        ('[{"tokens": ["a"], "entities": [{"entity_type": "X", "span": [0, 2]}]}]', r"the span \[0, 2\] for 1 tokens"),
        ('[{"tokens": [], "entities": []}]', "no tokens"),
        ("[]", "holds no sentences"),
    ],
)
def test_a_file_of_another_form_is_refused_in_a_sentence(tmp_path, text, says):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ElviError, match=says):
        read(tmp_path / "f.json")


def test_weights_that_are_none_and_an_empty_prompt_are_refused(tmp_path):
    with pytest.raises(ElviError, match="holds no weights of a Pyramid"):
        PyramidNER(weights=str(tmp_path / "none")).run(None)
    with pytest.raises(ElviError, match="holds no words"):
        PyramidNER().run(" ")


def test_labels_of_the_validation_file_that_training_never_saw_are_refused(tmp_path):
    for name, kind in (("train.json", "PER"), ("valid.json", "LAW")):
        row = {"tokens": ["Mira"], "entities": [{"entity_type": kind, "span": [0, 1]}]}
        (tmp_path / name).write_text(json.dumps([row]))
    with pytest.raises(ElviError, match="label LAW is unknown"):
        PyramidNER().train(tmp_path, tmp_path / "train.json", resume=False, tick=lambda done, total: None)


def test_the_shipped_weights_recover_nested_long_and_crossing_mentions():
    tagger = load(WEIGHTS)
    test = corpus("test", 150, 0.5, 0.08, 7)
    gold = [set(s.mentions) for s in test]
    found = tagger.read([s.tokens for s in test])
    ceiling = 100 * sum(map(flat_ceiling, gold)) / sum(map(len, gold))
    assert score(gold, found)[1] > ceiling + 20
    long = lambda m: {x for x in m if x[2] - x[1] > 8}  # noqa: E731
    for pick, least in ((inside, 0.8), (crossing, 0.8), (long, 0.3)):
        wanted = [pick(m) for m in gold]
        assert sum(len(w & f) for w, f in zip(wanted, found, strict=True)) > least * sum(map(len, wanted))
