"""T2DR: attention over gaps, no leakage from what is missing, prediction of absent modalities, degradation, files."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from elvi.errors import ElviError
from elvi.related import t2dr
from elvi.related.t2dr.data import (
    MODALITIES,
    WIDTHS,
    Samples,
    corpus,
    drop_frames,
    drop_modalities,
    normal,
    read,
    without,
)
from elvi.related.t2dr.model import T2DR, Inside, Tiers, attend, hard
from elvi.related.t2dr.train import KINDS, fit, load

FRAMES = dict.fromkeys(MODALITIES, 20)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def model(tiers=None):
    torch.manual_seed(0)
    return T2DR(WIDTHS, FRAMES, 16, tiers or Tiers()).eval()


@pytest.fixture(scope="module")
def samples():
    return corpus("test", 40, 0)


def side():
    torch.manual_seed(0)
    return Inside(6, 9, 16)


def frames(rows=3, seed=0):
    x = torch.randn(rows, 9, 6, generator=draw(seed))
    present = torch.rand(rows, 9, generator=draw(seed)) < 0.6
    present[:, 0] = True
    return x, present


def test_attention_is_that_of_torch_with_the_bias_as_a_mask():
    q, k, v = torch.randn(3, 2, 5, 8, generator=draw())
    bias = torch.randn(2, 5, generator=draw())
    heads = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    wanted = functional.scaled_dot_product_attention(*heads, attn_mask=bias[:, None, None].expand(-1, 2, 5, -1))
    torch.testing.assert_close(attend(q, k, v, bias), wanted.transpose(1, 2).flatten(2))


def test_with_nothing_missing_soft_and_hard_are_plain_attention():
    x, there = frames()[0], torch.ones(3, 9, dtype=torch.bool)
    assert not side().bias(there).any()
    assert torch.equal(side()(x, there, soft=True), side()(x, there, soft=False))


def test_a_large_softness_is_the_hard_mask_and_none_is_plain_attention():
    inside, (x, present) = side(), frames()
    inside.theta.data.fill_(1e4)
    torch.testing.assert_close(inside(x, present), inside(x, present, soft=False))
    inside.theta.data.fill_(-1e4)
    assert not inside.bias(present).any()


def test_suppression_is_weaker_the_less_is_left():
    little, much = torch.arange(9)[None] < 2, torch.arange(9)[None] < 7
    weak, strong = (side().bias(p).min() for p in (little, much))
    assert strong < weak < 0
    torch.testing.assert_close(strong / weak, torch.tensor(3.5))


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("count", [0, 1])
def test_one_frame_or_none_stays_finite(soft, count):
    x, _ = frames()
    assert side()(x, (torch.arange(9) < count).expand(3, -1), soft).isfinite().all()
    assert hard(torch.zeros(1, 9, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("junk", [1e3, torch.nan])
def test_what_a_missing_frame_or_an_absent_modality_holds_changes_nothing(kind, junk, samples):
    torch.manual_seed(0)
    fusion = KINDS[kind](WIDTHS, FRAMES, 16).eval()
    part = drop_modalities(drop_frames(samples, 0.5, draw()), 0.4, draw(1))
    filled = {m: torch.where(part.present[m][..., None], x, junk) for m, x in part.features.items()}
    assert torch.equal(fusion(part)[0], fusion(replace(part, features=filled))[0])


def test_with_nothing_absent_the_prediction_is_not_used(samples):
    fusion = model()
    before = fusion(samples)[0]
    for part in (fusion.guess, fusion.decode, fusion.prior):
        for parameter in part.parameters():
            parameter.data.fill_(torch.nan)
    assert torch.equal(fusion(samples)[0], before)


def test_without_prediction_absent_modalities_weigh_nothing(samples):
    log_w = model(Tiers(predict=False))(without(samples, ("audio",)))[1]
    assert not log_w.exp()[:, 1].any()
    torch.testing.assert_close(log_w.exp().sum(1), torch.ones(len(samples)))


def test_equal_weights_are_equal(samples):
    torch.testing.assert_close(model(Tiers(weigh=False))(samples)[1].exp(), torch.full((len(samples), 3), 1 / 3))


def test_the_order_of_modalities_does_not_matter(samples):
    part, fusion = without(drop_frames(samples, 0.3, draw()), ("text",)), model()
    order = ("vision", "text", "audio")
    turned = T2DR({m: WIDTHS[m] for m in order}, FRAMES, 16, Tiers()).eval()
    turned.load_state_dict(fusion.state_dict())
    other = Samples(*({m: held[m] for m in order} for held in (part.features, part.present)), part.target)
    torch.testing.assert_close(turned(other)[0], fusion(part)[0])


def test_all_modalities_absent_is_refused(samples):
    with pytest.raises(ElviError, match="leave at least one"):
        without(samples, MODALITIES)
    nothing = {m: torch.zeros_like(p) for m, p in samples.present.items()}
    with pytest.raises(ElviError, match="without any modality"):
        model()(replace(samples, present=nothing))


def predicted(shared):
    """Error of SFP for the third modality over the spread of what it predicts, after a short fit on vectors s."""
    torch.manual_seed(0)
    fusion, present = model(), torch.tensor([True, True, False]).expand(512, -1)
    codes = torch.randn(512, 1 if shared else 3, 4, generator=draw()).expand(-1, 3, -1)
    s = codes @ torch.randn(4, 16, generator=draw(1))
    target = fusion.shared["vision"](s[:, 2]).detach()
    optimizer = torch.optim.Adam(fusion.guess.parameters(), 1e-2)
    for _ in range(150):
        loss = (fusion.fill(s[:256], present[:256])[1][:, 2] - target[:256]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    guessed = fusion.fill(s[256:], present[256:])[1][:, 2].detach()
    return float((guessed - target[256:]).square().mean() / target[256:].var())


def test_prediction_recovers_what_is_shared_and_nothing_where_codes_are_independent():
    assert predicted(shared=True) < 0.05
    assert predicted(shared=False) > 0.9


def test_frames_go_at_the_rate_and_modalities_never_all(samples):
    many = corpus("test", 400, 0)
    gone = 1 - torch.stack(list(drop_frames(many, 0.7, draw()).present.values())).float().mean()
    assert abs(float(gone) - 0.7) < 0.01
    left = torch.stack([p.any(1) for p in drop_modalities(many, 1.0, draw()).present.values()], 1)
    assert torch.equal(left.sum(1), torch.ones(400, dtype=torch.long))
    lone = drop_frames(many, 1.0, draw()).present
    assert torch.equal(sum(p.sum(1) for p in lone.values()), torch.ones(400, dtype=torch.long))


def test_scaling_is_measured_on_present_frames_only(samples):
    part = drop_frames(samples, 0.5, draw())
    junk = {m: torch.where(part.present[m][..., None], x, 1e6) for m, x in part.features.items()}
    for m, (mean, deviation) in normal(replace(part, features=junk)).items():
        kept = part.features[m][part.present[m]]
        assert torch.equal(mean, kept.mean(0))
        assert torch.equal(deviation, kept.std(0))


def test_splits_differ_and_repeat():
    assert torch.equal(corpus("train", 5, 3).features["text"], corpus("train", 5, 3).features["text"])
    assert not torch.equal(corpus("train", 5, 3).target, corpus("test", 5, 3).target)


def isotonic_residual(values):
    """Largest distance to the closest non-decreasing row (pool adjacent violators)."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    fitted = [np.mean(pool) for pool in pools for _ in pool]
    return max(abs(a - b) for a, b in zip(values, fitted, strict=True))


def test_the_shipped_weights_degrade_steadily_and_beat_guessing():
    fusion, test = load(t2dr.WEIGHTS), corpus("test", 600, 0)
    errors = [fusion.error(drop_frames(test, r / 10, draw(100 + r))) for r in range(10)]
    assert isotonic_residual(errors) < 0.02
    assert errors[0] < errors[-1] < 0.6 * float(test.target.abs().mean())


def test_training_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    train, how = corpus("train", 64, 0), {"hidden": 8, "epochs": 2, "seed": 0}

    def stop(done, total):
        raise KeyboardInterrupt

    whole = fit("T2DR", train, **how)
    with pytest.raises(KeyboardInterrupt):
        fit("T2DR", train, checkpoint=tmp_path / "t.pt", tick=stop, **how)
    resumed = fit("T2DR", train, checkpoint=tmp_path / "t.pt", resume=True, **how)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ElviError, match="other settings"):
        fit("late fusion", train, checkpoint=tmp_path / "t.pt", resume=True, **how)


def arrays(count=4):
    random = np.random.default_rng(0)
    held = {"text": (5, 6), "audio": (7, 3), "vision": (7, 2)}
    made = {m: random.normal(size=(count, *shape)).astype(np.float32) for m, shape in held.items()}
    return made | {"regression_labels": random.uniform(-3, 3, count).astype(np.float32)}


def test_pickles_and_npz_read_alike_with_masks_lengths_and_gaps(tmp_path):
    held = {split: arrays() for split in ("train", "valid", "test")}
    held["train"]["audio_lengths"] = np.array([7, 2, 1, 0])
    held["train"]["vision"][0, 3] = np.nan
    held["train"]["text"][0, 0] = 0
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps(held))
    np.savez(tmp_path / "mosi.npz", **{f"{s}_{k}": v for s, part in held.items() for k, v in part.items()})
    for name in ("mosi.pkl", "mosi.npz"):
        train = read(tmp_path / name)["train"]
        assert train.present["audio"].sum(1).tolist() == [7, 2, 1, 0]
        assert train.present["vision"][0].tolist() == [True] * 3 + [False] + [True] * 3
        assert train.present["text"].all()
        torch.testing.assert_close(train.target, torch.tensor(held["train"]["regression_labels"]))


def test_a_file_trains_a_model_that_run_reads(tmp_path):
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps({split: arrays(8) for split in ("train", "valid", "test")}))
    t2dr.T2DR(hidden=8, epochs=2).train(tmp_path, tmp_path / "mosi.pkl", resume=False, tick=lambda done, total: None)
    shown = t2dr.T2DR(weights=str(tmp_path / "t2dr.safetensors"), data=str(tmp_path / "mosi.pkl")).run(None)
    assert [len(table.rows) for table in shown] == [6, 2]
    with pytest.raises(ElviError, match="but this model reads up to"):
        t2dr.T2DR(data=str(tmp_path / "mosi.pkl")).run(None)


class Bomb:
    def __reduce__(self):
        return print, ("code of the file ran",)


@pytest.mark.parametrize(
    "content", [b"no pickle", pickle.dumps({"train": {}}), pickle.dumps(Bomb()), pickle.dumps([1])]
)
def test_a_file_of_another_form_is_refused_and_never_run(tmp_path, content, capsys):
    (tmp_path / "f.pkl").write_bytes(content)
    with pytest.raises(ElviError, match="no file of aligned modalities"):
        read(tmp_path / "f.pkl")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"absent": "smell"}, "no modality"),
        ({"absent": "text+audio+vision"}, "leave at least one"),
        ({"weights": "none.safetensors"}, "holds no weights of T2DR"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(fields, says):
    with pytest.raises(ElviError, match=says):
        t2dr.T2DR(**fields).run(None)
    with pytest.raises(ElviError, match="given a prompt"):
        t2dr.T2DR().run("a text")
