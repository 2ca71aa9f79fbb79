"""The report: everything shown, nothing loaded from outside, user's names escaped, no half-written file."""

from __future__ import annotations

import errno
import io
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from ebmc_msa.data import DataError
from ebmc_msa.report import plots, report, run_view, sections

VOID = {"meta", "img", "br", "link", "input", "hr"}
SENTIMENT = ("acc2_has0", "acc2_non0", "f1_has0", "f1_non0", "acc7", "acc5", "mae", "corr")
CLASSES = ("acc", "ua", "f1")
THREE = ("text", "audio", "vision")
SIX = ("fou", "fac", "kar", "mor", "pix", "zer")


class Page(HTMLParser):
    """Checks nesting while it reads; keeps text, ids and images."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.ids, self.images, self.text = [], [], [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.images += [attrs] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def conditions(modalities):
    left_out = ["+".join(m for m in modalities if m != gone) for gone in modalities]
    return list(dict.fromkeys(["+".join(modalities), *left_out, *modalities]))


def fake_scores(rng, keys, seeds, level):
    scores = {}
    for key in keys:
        centre = {"mae": 1.6 - level, "corr": level, "r2": level**2}.get(key, 100 * level)
        values = [float(centre + 0.01 * centre * rng.standard_normal()) for _ in seeds]
        scores[key] = {"mean": float(np.mean(values)), "std": float(np.std(values)), "values": values}
    return scores


def fake_results(kind="sentiment", modalities=THREE, seeds=(1111, 1112), compare=False):
    rng = np.random.default_rng(0)
    keys = SENTIMENT if kind == "sentiment" else CLASSES
    shared = {
        "dataset": "synthetic",
        "kind": kind,
        "task": "gaussian" if kind == "sentiment" else "classification",
        "seeds": list(seeds),
        "selection": {
            "split": "valid",
            "metric": "mae" if kind == "sentiment" else "acc",
            "epochs": {str(s): {"enhance": 8, "balance": 14} for s in seeds},
        },
        "versions": {"modbalance": "0.1.0", "torch": "2.5.1", "python": "3.11"},
        "settings": {"gamma": 0.1, "without": []},
        "note": "imbalance 0.8",
        "command": "python examples/ebmc_msa/train.py --seeds 1111 1112",
    }
    share = dict(zip(modalities, rng.dirichlet(np.ones(len(modalities))).tolist(), strict=True))

    def one(model, levels):
        test = {c: fake_scores(rng, keys, seeds, level) for c, level in levels.items()}
        return shared | {"model": model, "test": test, "contribution": {"before": share, "after": share}}

    levels = {c: 0.55 + 0.3 * (c.count("+") + 1) / len(modalities) for c in conditions(modalities)}
    if not compare:
        return one("ebmc", levels)
    models = {"ebmc": one("ebmc", levels), "concat": one("concat", {c: v - 0.02 for c, v in levels.items()})}
    models |= {m: one(m, {m: 0.86 - 0.1 * i}) for i, m in enumerate(modalities)}
    return shared | {"models": models}


def fake_record(model, seed, results, modalities, utterances=60):
    rng = np.random.default_rng(seed)
    kind, m = results["kind"], len(modalities)
    stages = {"enhance": 12, "balance": 18} if model == "ebmc" else {"train": 10}
    history = []
    for stage, epochs in stages.items():
        for epoch in range(1, epochs + 1):
            fall = np.exp(-epoch / 8)
            noise = 0.02 * rng.standard_normal(m)
            gradient = np.arange(m, 0, -1.0) ** (1 + fall) + np.abs(noise)
            terms = ("total", "task", "invariant")
            terms = terms if stage == "enhance" else (*terms, "energy_gap")
            energy = {k: float((i + 1) * (0.4 + fall) + noise[i]) for i, k in enumerate(modalities)}
            history.append(
                {
                    "stage": stage,
                    "epoch": epoch,
                    "seconds": 0.5,
                    "train": {t: float((i + 1) * fall + 0.05 * rng.random()) for i, t in enumerate(terms)},
                    "valid": {results["selection"]["metric"]: float(0.6 + fall + 0.02 * rng.standard_normal())},
                    "energy": energy if stage == "balance" else {},
                    "gradient": dict(zip(modalities, (gradient / gradient.sum()).tolist(), strict=True)),
                    "selected": epoch == epochs - 4,
                }
            )
    weights = rng.dirichlet(np.linspace(4, 1, m), utterances)
    target = rng.integers(0, 4, utterances) if kind == "classes" else rng.uniform(-3, 3, utterances)
    features = target[:, None] * rng.standard_normal(8) + rng.standard_normal((utterances, 8))
    before, after = np.sort(rng.dirichlet(np.ones(m)))[::-1], np.full(m, 1 / m) + 0.02 * np.arange(m)[::-1]
    return {
        "model": model,
        "seed": seed,
        "history": history,
        "epochs": {stage: epochs - 4 for stage, epochs in stages.items()},
        "contribution": {
            "before": dict(zip(modalities, before.tolist(), strict=True)),
            "after": dict(zip(modalities, (after / after.sum()).tolist(), strict=True)),
        },
        "trust": {k: weights[:, i].tolist() for i, k in enumerate(modalities)} if model == "ebmc" else None,
        "present": {k: [True] * utterances for k in modalities},
        "error": np.abs(rng.standard_normal(utterances)).tolist(),
        "fused": {"after": features} | ({"before": rng.standard_normal((utterances, 8))} if model == "ebmc" else {}),
        "target": target,
        "calibration": {k: 1.0 + 0.1 * i for i, k in enumerate(modalities)} if model == "ebmc" else None,
        "cost": {s: {"seconds": 20.0 * n, "epochs": n, "step_ms": 11.5} for s, n in stages.items()},
        "parameters": {"student": 1_234_567, "teachers": 345_678, "encoders": 901_234},
    }


def fake_records(results, modalities, utterances=60):
    models = results.get("models") or [results["model"]]
    seeds = results["seeds"]
    return [
        fake_record(m, s, results, (m,) if m in modalities else modalities, utterances) for m in models for s in seeds
    ]


@pytest.mark.parametrize(
    ("kind", "modalities", "compare"),
    [("sentiment", THREE, False), ("sentiment", THREE, True), ("classes", SIX, True)],
    ids=["sentiment", "sentiment-compare", "classes-compare"],
)
def test_page_is_whole(tmp_path, kind, modalities, compare):
    results = fake_results(kind, modalities, compare=compare)
    path = tmp_path / "report.html"
    report.write_report(path, results, fake_records(results, modalities))
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.ids == list(report.SECTIONS)
    assert all(image["alt"] and image["src"].startswith("data:") for image in page.images)
    assert "http://" not in html
    assert "https://" not in html
    assert len(html) < 3_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_model_without_trust_or_balancing(tmp_path):
    results = fake_results(seeds=(1111,)) | {"model": "concat"}
    report.write_report(tmp_path / "report.html", results, fake_records(results, THREE))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.ids == [name for name in report.SECTIONS if name != "trust"]
    assert "after balancing" not in page.text + "".join(image["alt"] for image in page.images)
    assert "±" not in page.text


def test_single_modality_model(tmp_path):
    results = fake_results()
    results |= {"model": "text", "test": {"text": results["test"]["text"]}}
    report.write_report(tmp_path / "report.html", results, fake_records(results, ("text",)))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.ids == ["results", "features", "losses", "cost", "run"]


def test_small_test_split_has_no_tsne():
    results = fake_results(seeds=(1111,))
    run = run_view.Run.of(results, fake_records(results, THREE, utterances=4))
    assert sections.features(run) == ""
    assert "good or bad" in sections.trust(run)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a"b$c$_{ [red]x[/red]'])
def test_names_of_the_user_are_escaped(tmp_path, name):
    modalities = ("text", name)
    results = fake_results(modalities=modalities, seeds=(1111,), compare=True) | {"dataset": name}
    report.write_report(tmp_path / "report.html", results, fake_records(results, modalities, utterances=9))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert name in Page(html).text
    console = Console(file=io.StringIO(), width=200)
    report.print_table(results, console)
    assert name in console.file.getvalue()


def test_terminal_table_fits_80_columns():
    console = Console(file=io.StringIO(), width=80)
    report.print_table(fake_results(compare=True), console)
    assert "…" not in console.file.getvalue()


def test_failure_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(report, "render", lambda run: "new")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(DataError, match="cannot be written \\(disk full\\), expected room"):
        report.write_report(path, fake_results(), [])
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_verdict_says_where_ebmc_loses():
    results = fake_results(compare=True, seeds=(1111,))
    scores = results["models"]["ebmc"]["test"]["text+audio+vision"]
    for scored in scores.values():
        scored["mean"] = 0.0
    text = Page(sections.results(run_view.Run.of(results))).text
    assert "EBMC is worse than the best single modality on 7 of 8 metrics: Acc-2 has0 (0.0 against" in text
    assert "EBMC is worse than plain concatenation on 7 of 8 metrics" in text
    scores["mae"]["mean"] = float("nan")
    assert "7 of 7" in Page(sections.results(run_view.Run.of(results))).text


def test_imbalance_is_that_of_the_shares():
    results = fake_results(modalities=("text", "audio"), seeds=(1111,))
    records = fake_records(results, ("text", "audio"))
    records[0]["contribution"] = {"before": {"text": 0.9, "audio": 0.1}, "after": {"text": 0.6, "audio": 0.4}}
    text = Page(sections.contribution(run_view.Run.of(results, records))).text
    assert "Imbalance, 0 for equal shares and 1 for a single contributor: 0.80 → 0.20." in text


def test_ablation_is_named():
    results = fake_results(seeds=(1111,))
    results["settings"] = {"without": ["emc", "imtd"]}
    assert run_view.Run.of(results).title == "EBMC (without emc, imtd) on synthetic"


@pytest.mark.parametrize("compare", [False, True], ids=["one", "compare"])
def test_terminal_table(compare):
    results = fake_results(compare=compare)
    console = Console(file=io.StringIO(), width=160)
    report.print_table(results, console)
    text = " ".join(console.file.getvalue().split())
    assert "only vision" in text
    assert "1111, 1112" in text
    assert "validation split by MAE" in text
    assert ("concat" in text) == compare


def test_terminal_table_of_an_evaluation():
    results = fake_results(compare=True)
    few = {key: results[key] for key in ("dataset", "kind", "seeds")}
    few["selection"] = {"split": "none", "metric": "the run's own checkpoints"}
    for names in (["ebmc"], ["ebmc", "concat", "text"], ["text"]):
        few["models"] = {name: {"test": results["models"][name]["test"]} for name in names}
        console = Console(file=io.StringIO(), width=120)
        report.print_table(few, console)
        assert "the run's own checkpoints." in " ".join(console.file.getvalue().split())


def test_conditions_in_words():
    assert run_view.in_words("a+b+c", "abc") == "all modalities"
    assert run_view.in_words("a+c", "abc") == "without b"
    assert run_view.in_words("b", "ab") == "only b"


def test_palette_is_stable():
    full = plots.palette(["text", "audio", "vision"])
    assert plots.palette(["vision", "text"])["vision"] == full["vision"]
    assert len({style.colour for style in plots.palette(SIX).values()}) == 6
    assert len(plots.palette([str(i) for i in range(12)])) == 12


def test_spread_keeps_order_and_distance():
    placed = plots.spread([0.99, 0.98, 0.1, 1.0], 0.1)
    assert np.argsort(placed).tolist() == [2, 1, 0, 3]
    assert np.diff(np.sort(placed)).min() >= 0.1 - 1e-9
    assert placed.max() <= 1
