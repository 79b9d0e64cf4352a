"""Training is resumable: interrupted and continued, it ends with the same weights."""

from dataclasses import replace

import pytest
import torch

from elvi.errors import ElviError
from elvi.tiny import stages, train


@pytest.fixture
def stage(monkeypatch, tmp_path):
    monkeypatch.setitem(stages.STEPS, "tiny-drafter-bpe", 5)

    def fresh():
        torch.manual_seed(0)
        return stages.build("tiny-drafter-bpe", tmp_path, seed=0)

    return fresh


def test_an_interrupted_run_resumes_to_the_same_weights(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    whole = stage()
    train.fit(whole, tmp_path / "whole.pt", resume=False)

    cut = stage()

    def until_three(step):
        if step == 3:
            raise KeyboardInterrupt
        return cut.loss(step)

    with pytest.raises(KeyboardInterrupt):
        train.fit(replace(cut, loss=until_three), tmp_path / "cut.pt", resume=False)
    resumed = stage()
    train.fit(resumed, tmp_path / "cut.pt", resume=True)

    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(resumed.module.state_dict()[name], value)
    assert (tmp_path / "tiny-drafter-bpe" / "model.safetensors").exists()


def test_a_model_whose_base_is_missing_is_refused(tmp_path):
    with pytest.raises(ElviError, match="train --only tower tiny-qwen"):
        stages.build("tiny-qwen", tmp_path, seed=0)


def test_muon_takes_the_matrices_and_adamw_the_rest(stage):
    adam, muon = train.optimizers(stage())
    assert all(p.ndim == 2 for group in muon.param_groups for p in group["params"])
    assert len(muon.param_groups[0]["params"]) == 2 * 7
    assert sum(len(group["params"]) for s in (adam, muon) for group in s.param_groups) == len(
        list(stage().module.parameters())
    )


def test_the_rate_warms_up_and_decays_to_two_percent():
    assert train.rate(0, 1000) == pytest.approx(0.01, rel=1e-3)
    assert train.rate(train.WARM_UP, 1000) > 0.95
    assert train.rate(1000, 1000) == pytest.approx(0.02)
