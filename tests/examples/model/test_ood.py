"""The out-of-distribution score: its distance against scipy, and noise separated from clean inputs."""

from dataclasses import replace

import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from ebmc_msa.data.augment import corrupt_at_random
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.split import SplitView
from ebmc_msa.model.ood import OODScore, pooled


def split(rows, seed, length=True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 12, 3, generator=generator) @ torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    x[..., 5] = 2.0  # never moves
    lengths = torch.randint(4, 13, (rows,), generator=generator) if length else {}
    present = torch.arange(rows) % 5 > 0
    features, lengths = (x, {"a": lengths}) if length else (x[:, 0], {})
    return SplitView({"a": features}, torch.arange(rows), lengths, {"a": present}, None, torch.device("cpu"))


SPEC = Spec("classes", {"a": 6}, ("a",), 2)


def fitted(length=True):
    train = split(200, 0, length)
    score = OODScore(torch.cat(list(train.frames("a"))).std(0))
    score.fit("a", train, split(100, 1, length))
    return score, train


def test_distance_is_that_of_mahalanobis():
    score, train = fitted()
    batch = train.select(train.present["a"]).rows(torch.arange(160))
    x = pooled(batch.features["a"], batch.lengths["a"]).double()
    spread = x.std(0)
    spread[5] = 1.0
    precision = LedoitWolf().fit(((x - x.mean(0)) / spread).numpy()).precision_
    features = score.features(batch.features["a"], batch.lengths["a"])
    for i in range(5):
        expected = mahalanobis((x[i] / spread).numpy(), (x.mean(0) / spread).numpy(), precision) ** 2 / 6
        assert features[i, 1].exp().item() == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(features[:, 2].exp(), batch.lengths["a"].float())


@pytest.mark.parametrize("length", [True, False])
def test_separates_corrupted_from_clean_samples_it_never_saw(length):
    score, _ = fitted(length)
    clean = split(200, 2, length).rows(torch.arange(200))
    corrupted = corrupt_at_random(clean, {"a": score.feature_std}, 1.0, torch.Generator().manual_seed(0))
    scores = torch.cat([score(b.features["a"], b.lengths.get("a")) for b in (clean, corrupted)])
    assert (scores <= 0).all()
    assert roc_auc_score([1] * 200 + [0] * 200, scores) > 0.8


def test_an_empty_split_changes_nothing():
    score = OODScore(torch.ones(6))
    none = split(20, 0).with_present({"a": torch.zeros(20, dtype=torch.bool)})
    score.fit("a", none, split(20, 1))
    score.fit("a", split(20, 1), none)
    assert score(torch.randn(3, 4, 6), torch.tensor([4, 2, 1])).abs().max() < 1e-9


@pytest.mark.parametrize("rows", [2, 40])
def test_a_constant_modality_and_little_data_give_numbers(rows):
    score = OODScore(torch.ones(6))
    train, valid = (split(rows, seed, False) for seed in (0, 1))
    still = {"a": torch.full((rows, 6), 3.0)}
    for features in (train.features, still):
        here = {"a": torch.ones(rows, dtype=torch.bool)}
        known, held = (replace(f, features=features, present=here) for f in (train, valid))
        score.fit("a", known, held)
        assert torch.isfinite(score(features["a"])).all()
        assert torch.isfinite(score(torch.randn(5, 6) * 1e4)).all()


def test_padding_does_not_count():
    score, train = fitted()
    batch = train.rows(torch.arange(8))
    x = batch.features["a"].clone()
    for i, n in enumerate(batch.lengths["a"].tolist()):
        x[i, n:] = float("nan")
    torch.testing.assert_close(score(x, batch.lengths["a"]), score(batch.features["a"], batch.lengths["a"]))
