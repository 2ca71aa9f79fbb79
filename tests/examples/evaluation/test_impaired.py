"""Scores of single utterances, of all models on the same impaired copies."""

import numpy as np
import pytest
import torch

from ebmc_msa.data import Dataset, Split, synthetic
from ebmc_msa.data.missing import restrict
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation import impaired
from ebmc_msa.evaluation.impaired import Impaired, compared_by, scores_by_part
from ebmc_msa.evaluation.metrics import KINDS, METRICS
from ebmc_msa.evaluation.scores import evaluate
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.prediction import spec_of
from ebmc_msa.model.settings import Settings

CPU = torch.device("cpu")


def built(dataset, modalities=None):
    settings = Settings(dim=8, encoder="mean")
    spec = spec_of(dataset, settings, modalities)
    torch.manual_seed(0)
    return Concat(spec, settings).eval(), SplitView.of(dataset.splits["test"], spec, CPU)


def pooled(kind, rows=24):
    """Two modalities without a time axis; some rows lack one."""
    rng = torch.Generator().manual_seed(0)
    y = {
        "classes": torch.randint(3, (rows,), generator=rng),
        "multilabel": torch.randint(2, (rows, 3), generator=rng).float(),
        "regression": torch.randn(rows, generator=rng),
    }[kind]
    x = {name: torch.randn(rows, 4, generator=rng) for name in ("a", "b")}
    present = {"a": torch.ones(rows, dtype=torch.bool), "b": torch.arange(rows) % 4 > 0}
    split = Split(x, {}, present, y, [str(i) for i in range(rows)])
    labels = ("p", "q", "r") if kind == "multilabel" else ()
    return Dataset(
        "d", kind, 1 if kind == "regression" else 3, dict.fromkeys(("train", "valid", "test"), split), labels=labels
    )


@pytest.fixture(scope="module")
def dataset():
    return synthetic(n=(32, 8, 60))


def test_full_and_missing_are_the_metrics_of_the_conditions(dataset):
    model, test = built(dataset)
    found = scores_by_part(model, test, Impaired.of(dataset.splits["test"].present))
    assert np.mean(found["full"]) == pytest.approx(evaluate(model, test)["mae"], rel=1e-5)
    names = ("text", "audio", "vision")
    subsets = [(a,) for a in names] + [("text", "audio"), ("text", "vision"), ("audio", "vision")]
    by_condition = [evaluate(model, test.with_present(restrict(test.present, keep)))["mae"] for keep in subsets]
    assert np.mean(found["missing"]) == pytest.approx(np.mean(by_condition), rel=1e-5)


def test_a_model_of_one_modality_predicts_from_nothing_where_it_is_missing(dataset):
    model, test = built(dataset, ["text"])
    found = scores_by_part(model, test, Impaired.of(dataset.splits["test"].present))
    nothing = evaluate(model, test.with_present(restrict(test.present, [])))["mae"]
    assert np.mean(found["missing"]) == pytest.approx((nothing + np.mean(found["full"])) / 2, rel=1e-5)


def test_one_modality_of_each_utterance_is_corrupted_the_same_for_all_models(dataset):
    present = dataset.splits["test"].present
    chosen = Impaired.of(present)
    assert set(chosen.corrupted.tolist()) == {0, 1, 2}
    assert all(list(present.values())[m][row] for row, m in enumerate(chosen.corrupted))
    text, test = built(dataset, ["text"])
    untouched = chosen.corrupted != 0
    found = scores_by_part(text, test, chosen)
    full, corrupted = (np.array(found[part]) for part in ("full", "corrupted"))
    assert corrupted[untouched] == pytest.approx(full[untouched], rel=1e-5)
    assert (np.abs(corrupted - full)[~untouched] > 1e-6).mean() > 0.9


@pytest.mark.parametrize("kind", ["noise", "frames", "swap"])
def test_corruption_changes_the_chosen_modality_alone(dataset, kind):
    _, test = built(dataset)
    chosen = Impaired.of(dataset.splits["test"].present)
    rows = torch.arange(len(test))
    before = test.rows(rows)
    after = impaired._corruption(test, chosen, kind)(before, rows)
    for m, name in enumerate(test.present):
        size = before.features[name].shape[1]
        same = (after.features[name][:, :size] == before.features[name]).flatten(1).all(1)
        assert same[chosen.corrupted != m].all()
        assert not same[chosen.corrupted == m].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_metric_can_be_taken_of_each_utterance(kind):
    assert METRICS[compared_by(kind)].per_sample


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
def test_data_without_a_time_axis(kind):
    dataset = pooled(kind)
    model, test = built(dataset)
    found = scores_by_part(model, test, Impaired.of(dataset.splits["test"].present))
    assert np.mean(found["full"]) == pytest.approx(evaluate(model, test)[compared_by(kind)], rel=1e-5)
    assert {len(scores) for scores in found.values()} == {24}


def test_an_utterance_without_any_modality_is_left_as_it_is():
    assert Impaired.of({"a": torch.tensor([False, True]), "b": torch.tensor([False, False])}).corrupted.tolist() == [
        -1,
        0,
    ]
