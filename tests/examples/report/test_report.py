"""The report: everything shown, nothing loaded from outside, user's names escaped, no half-written file."""

from __future__ import annotations

import base64
import copy
import errno
import io
import json
import os
from argparse import Namespace
from dataclasses import replace
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np
import pytest
import torch
from rich.console import Console

from ebmc_msa.data import DataError, Dataset, Split, synthetic
from ebmc_msa.evaluation.bootstrap import Interval
from ebmc_msa.model.settings import Settings
from ebmc_msa.report import against, losses, overview, plots, report, run_view, sections
from ebmc_msa.report.record import Record
from ebmc_msa.training import run
from ebmc_msa.training.results import summary
from figures import drawn
from modbalance.diagnostics import imbalance

pytestmark = pytest.mark.slow

VOID = {"meta", "img", "br", "link", "input", "hr"}
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


class Recorded(NamedTuple):
    """A tiny real run with --compare."""

    dataset: Dataset
    settings: Settings
    records: list[Record]

    def part(self, models=None, seeds=None):
        """Results and records of some models and seeds, as a run of them alone writes them."""
        models = models or dict.fromkeys(record.model for record in self.records)
        records = [r for r in self.records if r.model in models and (seeds is None or r.seed in seeds)]
        found = sorted({record.seed for record in records})
        return summary(self.dataset, records, found, self.settings, "train.py --x", len(models) > 1), records


def recorded(folder, dataset, seeds):
    settings = Settings(stage1_epochs=2, stage2_epochs=2, warmup_steps=0, encoder="mean", dim=8)
    options = {"model": "ebmc", "compare": True, "device": "cpu", "predictions": None, "log": None, "seeds": seeds}
    args = Namespace(**options, out=folder, name="run", data=None, against=None, jobs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_report", lambda path, results, records: kept.extend(records))
        kept = []
        run.train(dataset, args, settings, {"config": "", "cwd": "", "command": "", "repeat": ""}, None)
    return Recorded(dataset, settings, kept)


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("sentiment"), synthetic(n=(48, 24, 40)), [1111, 1112])


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Six pooled modalities."""
    rng = torch.Generator().manual_seed(0)

    def split(rows):
        y = torch.randint(4, (rows,), generator=rng)
        x = {name: torch.randn(rows, 3, generator=rng) + y[:, None] / 2 for name in SIX}
        return Split(x, {}, dict.fromkeys(SIX, torch.ones(rows, dtype=torch.bool)), y, [str(i) for i in range(rows)])

    splits = {"train": split(40), "valid": split(24), "test": split(32)}
    return recorded(tmp_path_factory.mktemp("classes"), Dataset("six", "classes", 4, splits), [1])


def test_the_page_says_where_a_stage_was_undone(sentiment):
    results, records = sentiment.part(["ebmc"])
    for where, words in (
        ([False, False], ""),
        ([False, True], "Balance ended worse on validation than Enhance and was undone for seed 1112."),
    ):
        changed = [replace(record, undone=undone) for record, undone in zip(records, where, strict=True)]
        view = run_view.Run.of(results, changed)
        for part in (sections.contribution, losses.selection):
            assert ("undone" in part(view)) == bool(words)
            assert words in part(view)


def test_the_page_says_where_joint_training_answers(sentiment):
    results, records = sentiment.part(["ebmc"])
    words = "The selected epoch is one of joint training, without rebuilt features, for seed 1112."
    for strength in (0.0, 1.0):
        history = [{**entry, "strength": strength} for entry in records[1].history]
        view = run_view.Run.of(results, [records[0], replace(records[1], history=history)])
        for part in (sections.contribution, losses.selection):
            assert (words in part(view)) == (strength == 0)


@pytest.mark.parametrize(("name", "models"), [("sentiment", ["ebmc"]), ("sentiment", None), ("classes", None)])
def test_page_is_whole(request, tmp_path, name, models):
    results, records = request.getfixturevalue(name).part(models)
    path = tmp_path / "report.html"
    report.write_report(path, results, records)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.ids == [name for name in report.SECTIONS if name != "against"]
    assert all(image["alt"] and drawn(svg(image)) for image in page.images)
    assert "http://" not in html
    assert "https://" not in html
    assert len(html) < 3_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def svg(image):
    return base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))


def test_an_empty_figure_is_seen():
    empty = plots.drawing(lambda: plots._figure(2, 2).subplots().figure)()
    assert not drawn(empty)


def test_model_without_trust_or_balancing(sentiment, tmp_path):
    report.write_report(tmp_path / "report.html", *sentiment.part(["concat"], [1111]))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.ids == [name for name in report.SECTIONS if name not in ("trust", "against")]
    assert "after balancing" not in page.text + "".join(image["alt"] for image in page.images)
    assert "±" not in page.text


def test_single_modality_model(sentiment, tmp_path):
    report.write_report(tmp_path / "report.html", *sentiment.part(["text"]))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.ids == ["verdict", "models", "features", "losses", "cost", "run"]
    assert "This run trained text alone and nothing beside it" in page.text


def test_weights_of_emc_are_drawn_where_there_are_any(sentiment):
    results, records = sentiment.part(["ebmc"])
    title = "How much of EMC each modality gets"
    assert title not in Page(sections.balance(run_view.Run.of(results, records))).text
    for record in (records := copy.deepcopy(records)):
        for epoch in record.history:
            if epoch["stage"] == "balance":
                epoch["weight"] = {"text": 1.0, "audio": 0.25, "vision": 0.0625}
    page = Page(sections.balance(run_view.Run.of(results, records)))
    assert title in page.text
    assert all(drawn(svg(image)) for image in page.images)


def test_small_test_split_has_no_tsne(sentiment):
    results, (record,) = sentiment.part(["ebmc"], [1111])
    few = {field: {m: x[:4] for m, x in getattr(record, field).items()} for field in ("trust", "present", "fused")}
    small = replace(record, **few, error=record.error[:4], target=record.target[:4])
    view = run_view.Run.of(results, [small])
    assert sections.features(view) == ""
    assert "good or bad" in sections.trust(view)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a"b$c$_{ [red]x[/red]'])
def test_names_of_the_user_are_escaped(sentiment, tmp_path, name):
    results, records = sentiment.part(seeds=[1111])
    values = json.dumps([results | {"dataset": "audio"}, [record.as_dict() for record in records]])
    results, records = json.loads(values.replace("audio", json.dumps(name)[1:-1]))
    report.write_report(tmp_path / "report.html", results, [Record(**record) for record in records])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert name in Page(html).text
    console = Console(file=io.StringIO(), width=200)
    report.print_table(results, console)
    assert name in console.file.getvalue()


@pytest.mark.parametrize("models", [None, ["ebmc"], ["text"]], ids=["compare", "ebmc", "text"])
def test_terminal_fits_80_columns(sentiment, models):
    console = Console(file=io.StringIO(), width=80)
    results = sentiment.part(models)[0]
    report.print_table(results, console)
    report.print_verdict(results, console)
    text = console.file.getvalue()
    assert "…" not in text
    assert len(text.splitlines()) < 50, "no more than a screen"


def test_failure_keeps_the_old_report(sentiment, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(report, "render", lambda run: "new")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(DataError, match="cannot be written \\(disk full\\), expected room"):
        report.write_report(path, *sentiment.part())
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_second_sentence_has_the_colour_of_its_own_parts(sentiment, monkeypatch):
    results = sentiment.part()[0]
    found = overview.verdict.differences(results)
    ranges = {"full": Interval(0.0, -1.0, 1.0)} | dict.fromkeys(("missing", "corrupted"), Interval(2.0, 1.0, 3.0))
    changed = {part: d._replace(interval=ranges[part]) for part, d in found.items()}
    monkeypatch.setattr(overview.verdict, "differences", lambda results: changed)
    opening = overview.overview(run_view.Run.of(results)).partition("</p>")
    assert 'class="good"' not in opening[0]
    assert opening[2].startswith('<p class="good">')


@pytest.mark.parametrize(
    ("change", "words", "kind"),
    [(1.0, "is worse than", "flag"), (-1.0, "is better than", "good")],
    ids=["lost", "won"],
)
def test_the_page_opens_with_the_verdict(sentiment, change, words, kind):
    """On a run that EBMC loses by 1 on every utterance, and on one that it wins."""
    others = {r.seed: r.samples for r in sentiment.records if r.model == "concat"}
    records = [
        replace(r, samples={part: [x + change for x in scores] for part, scores in others[r.seed].items()})
        if r.model == "ebmc"
        else replace(r, valid=dict.fromkeys(r.valid, 0.0 if r.model == "concat" else 1.0))
        for r in sentiment.records
    ]
    results = Recorded(sentiment.dataset, sentiment.settings, records).part()[0]
    html = overview.overview(run_view.Run.of(results))
    text = Page(html).text
    assert text.startswith(results["verdict"][0])
    assert results["verdict"][1] in text
    assert " ".join(results["verdict"]).count(f"EBMC {words} concatenation") == 3
    assert html.count(f'<p class="{kind}">') >= 2
    assert html.count('<svg class="bar"') == 3


def test_gains_stand_beside_every_other_model(sentiment):
    results = sentiment.part()[0]
    page = Page(overview.models(run_view.Run.of(results)))
    for name in ("concat", "text", "audio", "vision"):
        for entry in results["models"][name]["parts"].values():
            assert f"{entry['difference'][0]:+.3f}".lstrip("+-") in page.text


def test_every_term_of_the_loss_is_explained(sentiment):
    """Also those of an EBMC whose EMC has a weight."""
    results, records = sentiment.part(["ebmc"], [1111])
    shown = Page(losses.losses(run_view.Run.of(results, records))).text
    trained = {name for epoch in records[0].history for name in epoch["train"]}
    assert trained - {"task"} <= set(losses.TERMS)
    assert {"gap", "penalty", "descent"} <= set(losses.TERMS)
    assert {name for _, names in losses.GROUPS.values() for name in names} == set(losses.TERMS)
    for name in trained - {"task"}:
        assert losses.TERMS[name].should in shown
    assert "L_uni, of L_MSD, weight 2" in shown


def test_another_run_stands_beside_this_one(sentiment, tmp_path):
    """The other is the same but for 0.5 on its scores, one setting and a seed."""
    results, records = sentiment.part(seeds=[1111])
    other = json.loads(json.dumps(sentiment.part()[0]))
    other["settings"]["gamma"] = 0.1
    for found in other["models"].values():
        for part in found["parts"].values():
            part["mean"] += 0.5
    (tmp_path / "metrics.json").write_text(json.dumps(other))
    results["against"] = against.read(tmp_path, "sentiment")
    report.write_report(tmp_path / "report.html", results, records)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.ids == list(report.SECTIONS)
    assert f"Beside {tmp_path.name}" in page.text
    assert "The seeds differ: 1111 here, 1111, 1112 there." in page.text
    text = Page(against.against(run_view.Run.of(results))).text
    here, there = (found["models"]["text"]["parts"]["full"]["mean"] for found in (results, other))
    assert f"{there - here:+.3f}" in text
    assert "gamma00.1" in text.replace(" ", "")


def test_another_run_that_lacks_scores_of_utterances_or_all_models(sentiment):
    results, other = sentiment.part(["ebmc"])[0], sentiment.part(["ebmc"])[0]
    del other["parts"]
    beside = Page(against.against(run_view.Run.of(results | {"against": {**other, "name": "x"}}))).text
    assert "some missing" not in beside
    assert "All settings are the same." in beside
    other = sentiment.part(["text"])[0]
    beside = Page(against.against(run_view.Run.of(results | {"against": {**other, "name": "x"}}))).text
    assert "No model is in both: text alone there." in beside


def test_what_cannot_stand_beside_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"--against: .*holds no metrics.json.*FileNotFoundError.*check the name"):
        against.read(tmp_path, "classes")
    (tmp_path / "metrics.json").write_text('{"kind": "sentiment"}')
    with pytest.raises(DataError, match="is of sentiment labels, expected classes; name a run"):
        against.read(tmp_path, "classes")


@pytest.mark.parametrize("last", [True, False])
def test_the_last_epoch_being_the_best_is_pointed_out(sentiment, last):
    results, records = sentiment.part(["ebmc"], [1111])
    results["selection"]["last_is_best"] = last
    view = run_view.Run.of(results, records)
    assert ("the last epoch being the selected one: EBMC" in overview.overview(view)) == last
    assert ("more epochs may help" in losses.selection(view)) == last


def test_imbalance_is_that_of_the_shares(sentiment):
    results, (record,) = sentiment.part(["ebmc"], [1111])
    before, after = {"text": 0.9, "audio": 0.1, "vision": 0.0}, {"text": 0.5, "audio": 0.5, "vision": 0.0}
    records = [replace(record, contribution={"before": before, "after": after})]
    text = Page(sections.contribution(run_view.Run.of(results, records))).text
    shown = " → ".join(f"{imbalance(shares):.2f}" for shares in (before, after))
    assert f"Imbalance, 0 for equal shares and 1 for a single contributor: {shown}." in text


def test_ablation_is_named(sentiment):
    results = sentiment.part(["ebmc"])[0] | {"settings": {"without": ["emc", "imtd"]}}
    assert run_view.Run.of(results).title == "EBMC (without emc, imtd) on synthetic"


@pytest.mark.parametrize("compare", [False, True], ids=["one", "compare"])
def test_terminal_table(sentiment, compare):
    results = sentiment.part(None if compare else ["ebmc"])[0]
    console = Console(file=io.StringIO(), width=160)
    report.print_table(results, console)
    text = " ".join(console.file.getvalue().split())
    assert ("only vision" in text) != compare
    assert ("one corrupted" in text) == compare
    assert "1111, 1112" in text
    assert "validation split by MAE" in text
    assert ("concat" in text) == compare


def test_terminal_table_of_an_evaluation(sentiment):
    results = sentiment.part()[0]
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
