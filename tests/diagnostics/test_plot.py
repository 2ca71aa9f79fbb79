"""The figure shows every measured value under a title in words, and says what to install where it cannot."""

import sys

import pytest

from modbalance.diagnostics import Diagnosis, plot

BEFORE = Diagnosis(0.8, 0.5, {"text": 0.4, "audio": 0.1}, alone={"text": 0.7, "audio": 0.3})
AFTER = Diagnosis(0.9, 0.2, {"text": 0.4, "audio": 0.3}, alone={"text": 0.75, "audio": float("nan")})


def test_bars_have_the_values():
    figure = BEFORE.plot()
    alone, shapley = figure.axes
    assert [bar.get_width() for bar in alone.patches] == [0.7, 0.3]
    assert [bar.get_width() for bar in shapley.patches] == [0.4, 0.1]
    assert [label.get_text() for label in alone.get_yticklabels()] == ["text", "audio"]
    assert "imbalance 0.500" in figure.get_suptitle()


def test_two_diagnoses_stand_side_by_side(tmp_path):
    figure = plot({"before": BEFORE, "after": AFTER})
    assert [bar.get_width() for bar in figure.axes[1].patches] == [0.4, 0.1, 0.4, 0.3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "after"]
    figure.savefig(tmp_path / "balance.png")


def test_seeds_become_a_mean_with_a_spread():
    figure = plot({"before": [BEFORE, AFTER]})
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx([0.4, 0.2])
    assert "score with all modalities 0.850 ± 0.071" in figure.get_suptitle()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'expected version 3.8 or later; run pip install "modbalance\[plot\]"'):
        plot(BEFORE)
