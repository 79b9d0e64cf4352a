"""SkipBERT: its tri-grams, table, losses and training on a small network, and the shipped one on held-out text."""

import dataclasses

import numpy as np
import pytest
import torch

from elvi import cli, spec
from elvi.errors import ElviError
from elvi.related.skipbert import measure, table, train
from elvi.related.skipbert.data import read, split, vocabulary
from elvi.related.skipbert.model import Local, aggregate, shallow, trigrams

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0], [2, 5, 6, 8, 3]])
TINY = train.Recipe(
    vocabulary=60, length=12, width=8, heads=2, shallow=2, students=(2, 1), dropout=0.1, batch=8,
    teacher_epochs=1, general_epochs=1, task_epochs=2,
)  # fmt: skip
WORDS = [("good warm film", 1), ("bad dull film", 0), ("not good at all", 0), ("not bad at all", 1)]
SENTENCES = [(f"{text} {number}", label) for number in range(12) for text, label in WORDS]


def random_local(seed=0):
    torch.manual_seed(seed)
    return Local(20, 2, 8, 2, 0.1).eval().requires_grad_(False)


@pytest.fixture
def local():
    return random_local()


def empty(capacity=50, dtype=np.float16, folder=None, stamp="x"):
    return table.Table(stamp, 8, capacity, folder, dtype)


def slow(local, ids):
    """Steps 1-5, a token at a time."""
    out = torch.zeros(*ids.shape, 8)
    for b, row in enumerate(ids):
        words = [0, *row[row > 0].tolist(), 0]
        g = [local(torch.tensor([words[i - 1 : i + 2]]))[0] for i in range(1, len(words) - 1)]
        for i in range(len(g)):
            out[b, i] = g[i][1]
            out[b, i] += g[i + 1][0] if i + 1 < len(g) else 0
            out[b, i] += g[i - 1][2] if i else 0
    return out


def test_shallow_is_the_sum_over_the_three_trigrams_of_each_token(local):
    torch.testing.assert_close(shallow(local, IDS), slow(local, IDS))


def test_a_sentence_alone_is_as_in_any_batch_and_padding(local):
    alone = shallow(local, IDS[1:2, :3])
    torch.testing.assert_close(shallow(local, IDS)[1:2, :3], alone)
    padded = torch.nn.functional.pad(IDS[1:2], (0, 4))
    torch.testing.assert_close(shallow(local, padded)[:, :3], alone)


def test_the_separating_row_keeps_sentences_apart_without_the_mask(local):
    """The mask empties the slots past both ends as well; filled here, only the row between stops them."""

    def filled(ids, apart):
        grams, place = trigrams(ids)
        g = (local(grams) + 1) * (place >= 0)[:, None, None]
        kept = (place >= 0) | apart
        return aggregate(g[kept], place[kept], tuple(ids.shape))

    torch.testing.assert_close(filled(IDS, True)[1:2], filled(IDS[1:2], True))
    assert not torch.allclose(filled(IDS, False)[1:2], filled(IDS[1:2], False))


def test_a_token_reaches_two_places_to_each_side(local):
    ids = torch.arange(2, 14)[None]
    other = ids.clone()
    other[0, 6] = 15
    changed = (shallow(local, ids) != shallow(local, other)).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [4, 5, 6, 7, 8]


def test_one_token_and_full_length_are_read(local):
    for ids in (torch.tensor([[4]]), torch.arange(1, 19)[None]):
        torch.testing.assert_close(shallow(local, ids), slow(local, ids))
        filled = empty(dtype=np.float32)
        torch.testing.assert_close(table.passive(filled, local, ids)[0], slow(local, ids))


def test_a_filled_table_gives_what_was_computed(local):
    half, full = empty(), empty(dtype=np.float32)
    for filled, tolerance in ((half, 2e-3), (full, 1e-6)):
        first, before = table.passive(filled, local, IDS)
        second, after = table.passive(filled, local, IDS)
        assert (before, after) == (0.0, 1.0)
        assert torch.equal(first, second)
        torch.testing.assert_close(second, shallow(local, IDS), rtol=tolerance, atol=tolerance)
    assert half.rows.nbytes * 2 == full.rows.nbytes


def test_the_kernel_sums_as_the_network_does_bit_for_bit(local):
    filled = empty(dtype=np.float32)
    table.passive(filled, local, IDS)
    grams, place = trigrams(IDS)
    stored = np.zeros((len(grams), 3, 8), np.float32)
    stored[place >= 0] = filled.rows[filled.find(IDS.numpy())[IDS.numpy() > 0]]
    expected = aggregate(torch.from_numpy(stored), place, (3, 5))
    assert torch.equal(table.passive(filled, local, IDS)[0], expected)


def test_half_precision_is_read_exactly():
    bits = np.arange(0x7C00, dtype=np.uint16)
    bits = np.concatenate([bits, bits | 0x8000])
    read = np.array([table._half(value) for value in bits], np.float32)
    assert np.array_equal(read, bits.view(np.float16).astype(np.float32))


def test_only_missing_rows_are_computed(local):
    filled = empty()
    table.passive(filled, local, IDS[:1])
    rows = filled.count
    assert table.passive(filled, local, IDS)[1] == pytest.approx(7 / 13)
    assert filled.count == rows + len({(0, 2, 9), (2, 9, 3), (9, 3, 0), (5, 6, 8), (6, 8, 3), (8, 3, 0)})


@pytest.mark.parametrize(("grams", "row"), [
    ([(2, 5, 6), (0, 5, 6), (0, 5, 0)], 1), ([(0, 5, 6), (0, 5, 0)], 1), ([(0, 5, 0)], 1), ([(0, 6, 0)], 0),
])  # fmt: skip
def test_back_off_takes_the_longest_that_is_there(local, grams, row):
    filled = table.fill(empty(), local, np.array(grams))
    words = np.array([[2, 5, 6, 7]])
    assert filled.find(words, back_off=True)[0, 1] == row
    assert filled.find(words)[0, 1] == (1 if grams[0] == (2, 5, 6) else 0)


def test_an_empty_table_leaves_zeros_and_a_full_one_stays_as_it_is(local):
    assert not table.only(empty(0), IDS)[0].any()
    full = empty(1)
    torch.testing.assert_close(table.passive(full, local, IDS)[0], shallow(local, IDS))
    assert full.count == 0
    table.fill(full, local, np.array([(0, 5, 0), (0, 6, 0)]))
    assert full.count == 1


def test_the_most_frequent_come_first_and_ties_by_number():
    rows = [np.array([2, 5, 3]), np.array([2, 5, 3, 0])]
    ranked = table.frequent(rows, 4).tolist()
    assert ranked == [[0, 2, 0], [0, 2, 5], [0, 3, 0], [0, 5, 0]]


def test_a_saved_table_is_found_again_and_refused_for_other_weights(local, tmp_path):
    made = table.fill(empty(50, folder=tmp_path / "t"), local, np.array([(0, 2, 5), (2, 5, 6)]))
    made.save()
    opened = table.Table.open(tmp_path / "t", "x")
    assert isinstance(opened.rows, np.memmap)
    assert torch.equal(table.only(opened, IDS)[0], table.only(made, IDS)[0])
    with pytest.raises(ElviError, match="other weights"):
        table.Table.open(tmp_path / "t", "y")
    with pytest.raises(ElviError, match="cannot be opened"):
        table.Table.open(tmp_path, "x")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    train.train(TINY, SENTENCES, out, resume=False, tick=lambda done, total: None)
    return out


def test_training_goes_on_from_a_checkpoint_to_the_same_weights(tiny, tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(TINY, SENTENCES, tmp_path, resume=False, tick=stop)
    train.train(TINY, SENTENCES, tmp_path, resume=True, tick=lambda done, total: None)
    whole, resumed = train.load(tiny).modules.state_dict(), train.load(tmp_path).modules.state_dict()
    torch.testing.assert_close(dict(resumed), dict(whole), rtol=2e-3, atol=1e-4)  # sums may round otherwise
    with pytest.raises(ElviError, match="another recipe"):
        train.train(dataclasses.replace(TINY, seed=1), SENTENCES, tmp_path, resume=True, tick=lambda done, total: None)


def test_the_stamp_follows_weights_and_vocabulary(tiny):
    one, other, third = (train.load(tiny) for _ in range(3))
    other.local.gate.bias.data += 1
    third.pieces = vocabulary(["other words"], 60, 12)
    assert len({one.stamp, other.stamp, third.stamp, train.load(tiny).stamp}) == 3


def test_frozen_lower_layers_get_no_gradient_in_the_second_stage(tiny):
    made = train.load(tiny)
    train._begin(made, "task", 1, fresh=False)
    ids = made.encode([text for text, _ in SENTENCES[:4]])
    u = shallow(made.local, ids)
    train._task(made, 1, 1, ids, torch.zeros(4), u).backward()
    assert all(each.grad is None for each in [*made.local.parameters(), *made.teacher.parameters()])
    assert all(each.grad is not None for each in made.uppers["1"].layers.parameters())


def test_imitation_is_nothing_between_equals_and_ignores_masked_scores():
    h, s = torch.randn(2, 3, 4), torch.randn(2, 1, 3, 3)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert train.imitation((0, [h, h], [s]), (0, [h, h], [s]), [0, 1], mask) == 0
    low = torch.full_like(s, -1e4)
    assert train.imitation((0, [h, h], [low]), (0, [h, h], [low * 2]), [0, 1], mask) == 0
    assert train.imitation((0, [h, h], [s]), (0, [h, h + 1], [s]), [0, 1], mask) == pytest.approx(1)


def test_early_exit_stops_each_sentence_at_its_own_layer():
    made = train.load()
    ids = made.encode([text for text, _ in split(read())["test"][:40]])
    with torch.inference_mode():
        u = shallow(made.local, ids)
        every = made.uppers["4"](u, ids > 0)[0]
    logits, took = measure.climb(made.uppers["4"], u, ids, 0.9)
    assert len(set(took.tolist())) > 1
    for row in range(len(ids)):
        sure = [k for k in range(4) if every[k][row].softmax(-1).max() > 0.9]
        assert took[row] == (sure[0] + 1 if sure else 4)
        torch.testing.assert_close(logits[row], every[took[row] - 1][row], rtol=1e-4, atol=1e-4)


def test_the_shipped_students_keep_the_accuracy_and_beat_the_commoner_sign():
    made = train.load()
    texts, labels = zip(*split(read())["test"])
    ids, labels = made.encode(list(texts)), torch.tensor(labels)
    with torch.inference_mode():
        u, taught = shallow(made.local, ids), made.teacher(ids)[0]
    teacher = (taught.argmax(-1) == labels).float().mean()
    assert teacher > 0.6
    for upper in made.uppers.values():
        assert (measure.climb(upper, u, ids)[0].argmax(-1) == labels).float().mean() > 0.95 * teacher


def test_the_shipped_word_pieces_are_learned_again(tmp_path):
    made = train.load()
    texts = [text for text, _ in split(read())["train"]]
    assert vocabulary(texts, made.recipe.vocabulary, made.recipe.length).to_str() == made.pieces.to_str()


def test_run_agrees_with_and_without_the_table():
    [made] = spec.parse("skipbert:layers=2").run("not a bad film at all .")
    computed, looked = made.rows[1][1], made.rows[2][1]
    assert computed == pytest.approx(looked, abs=2e-3)
    assert [row[2] for row in made.rows][:3] == [8, 6, 2]


@pytest.mark.parametrize(("arguments", "words"), [
    (("run", "skipbert:layers=3"), "layers=3"), (("run", "skipbert", "--prompt", ""), "is empty"),
    (("run", "skipbert:weights=absent"), "holds no weights"), (("run", "skipbert:table=absent"), "cannot be opened"),
    (("train", "skipbert", "--data", "bad.tsv"), "Line 2 of bad.tsv"),
    (("train", "skipbert", "--data", "one.tsv"), "both signs"),
])  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.tsv").write_text("2.0\tfine\nno number\n")
    (tmp_path / "one.tsv").write_text("2.0\tfine\n")
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
