import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from ebmc_msa.data import DataError, synthetic
from ebmc_msa.data.check import check

PINNED = {  # imbalance: labels, first numbers of text
    None: ([2, 0, -3, 1, -2, -2, 1, 1], [0.855925, 0.261165, 3.199296]),
    0.8: ([2, 1, -2, 1, -2, 1, -1, 0], [0.276654, 1.211403, 0.387836]),
}


def pooled(split, names):
    parts = [
        split.features[m].sum(1) / split.lengths[m].clamp(min=1)[:, None] * split.present[m][:, None] for m in names
    ]
    return torch.cat(parts, 1).double()


def worth(dataset, names):
    """Correlation on the test split of a ridge regression on random tanh features of the pooled modalities."""
    train, test = dataset.splits["train"], dataset.splits["test"]
    a, b = pooled(train, names), pooled(test, names)
    generator = torch.Generator().manual_seed(0)
    lift = torch.randn(a.shape[1], 400, generator=generator, dtype=torch.float64)
    a, b = (torch.cat([torch.tanh(x @ lift), x, torch.ones(len(x), 1).double()], 1) for x in (a, b))
    y = train.target.double()
    w = torch.linalg.solve(a.T @ a + 3 * torch.eye(a.shape[1]).double(), a.T @ y)
    return np.corrcoef(b @ w, test.target)[0, 1]


def test_shapes_padding_and_labels():
    data = synthetic(n=(50, 20, 30))
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 50, "valid": 20, "test": 30}
    assert data.modalities == ["text", "audio", "vision"]
    assert data.dims == {"text": 32, "audio": 12, "vision": 16}
    assert (data.kind, data.classes) == ("sentiment", 1)
    for split in data.splits.values():
        for name, x in split.features.items():
            assert x.dtype == torch.float32
            padding = torch.arange(x.shape[1]) >= split.lengths[name][:, None]
            assert not x[padding].any()
            assert torch.equal(split.lengths[name] > 0, split.present[name])
        assert set(split.target.tolist()) <= {-3, -2, -1, 0, 1, 2, 3}
    check(data, labels=True)


def test_lengths_vary_and_some_lack_audio_or_vision_but_never_text():
    split = synthetic(n=(1000, 1, 1)).splits["train"]
    assert len(split.lengths["audio"].unique()) > 12
    assert split.present["text"].all()
    for name in ("audio", "vision"):
        assert 0.02 < (~split.present[name]).float().mean() < 0.06


def test_same_seed_same_data():
    a, b, c = (synthetic(n=(20, 5, 5), seed=seed).splits["train"] for seed in (3, 3, 4))
    assert all(torch.equal(a.features[m], b.features[m]) for m in a.features)
    assert torch.equal(a.target, b.target)
    assert not torch.equal(a.features["text"], c.features["text"])


@pytest.mark.parametrize("imbalance", PINNED)
def test_data_of_seed_0_are_pinned(imbalance):
    """Another machine or version of torch must not make another data set."""
    split = synthetic(n=(8, 1, 1), imbalance=imbalance).splits["train"]
    target, text = PINNED[imbalance]
    assert split.target.tolist() == target
    assert split.features["text"][0, 0, :3].tolist() == pytest.approx(text, abs=1e-5)


def test_text_is_plain_and_vision_is_in_code():
    """No column of vision shows anything, a kernel that sees products reads it; text needs a straight line."""
    data = synthetic()
    train, test = data.splits["train"], data.splits["test"]

    def correlation(name, kernel, **settings):
        a, b = (pooled(split, [name]) for split in (train, test))
        a, b = ((x - a.mean(0)) / a.std(0) for x in (a, b))
        model = KernelRidge(kernel=kernel, alpha=1.0, **settings).fit(a.numpy(), train.target.numpy())
        return np.corrcoef(model.predict(b.numpy()), test.target)[0, 1]

    assert correlation("text", "linear") > 0.9
    assert abs(correlation("vision", "linear")) < 0.1
    assert correlation("vision", "rbf", gamma=0.05) > 0.8
    assert 0.5 < correlation("audio", "linear") < 0.75


def test_fusion_beats_each_modality_at_imbalance_of_0_8():
    data = synthetic(imbalance=0.8)
    alone = {name: worth(data, [name]) for name in data.modalities}
    assert alone["text"] > alone["audio"] + 0.2
    assert alone["text"] > alone["vision"] + 0.2
    assert min(alone["audio"], alone["vision"]) > 0.15
    assert worth(data, data.modalities) > alone["text"] + 0.03


def test_imbalance_0_is_even_and_1_leaves_text_alone():
    even, only = synthetic(imbalance=0), synthetic(imbalance=1)
    alone = [worth(even, [name]) for name in even.modalities]
    assert max(alone) - min(alone) < 0.1
    assert worth(only, ["text"]) > 0.7
    assert abs(worth(only, ["audio"])) < 0.15
    assert abs(worth(only, ["vision"])) < 0.15


@pytest.mark.parametrize("setting", [{"imbalance": 1.2}, {"n": (10, 0, 10)}])
def test_settings_out_of_range(setting):
    with pytest.raises(DataError, match=r"synthetic: imbalance .*expected 0 to 1 and three sizes.*correct"):
        synthetic(**setting)
