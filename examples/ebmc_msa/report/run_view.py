"""What a run's numbers mean, in words: metrics, conditions, models. Shared by the page and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ebmc_msa.evaluation.metrics import METRICS, Metric
from ebmc_msa.report.record import Record

CONTROL = "-shuffled"  # after a model's name: trained and tested on conversations in random order
_BY_CLASS = {"f1_": "F1 by class", "binary_f1": "binary F1, each class against the others"}  # starts of keys

Scores = Mapping[str, Mapping[str, Any]]  # {metric: {"mean", "std", "values"}}


class Run(NamedTuple):
    """Results and records, and the model that the figures are about: EBMC where it was trained."""

    results: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    model: str
    test: Mapping[str, Scores]  # of that model, by condition
    modalities: Sequence[str]
    every: Sequence[Record]  # records of all models
    records: Sequence[Record]  # of that model, by seed

    @classmethod
    def of(cls, results: Mapping[str, Any], records: Sequence[Record] = ()) -> Run:
        models = results.get("models") or {results["model"]: results}
        model = "ebmc" if "ebmc" in models else next(iter(models))
        test = models[model]["test"]
        own = [record for record in records if record.model == model]
        return cls(results, models, model, test, full_condition(test).split("+"), records, own)

    @property
    def title(self) -> str:
        return f"{self.display(self.model)} on {self.results['dataset']}"

    def display(self, model: str) -> str:
        if model.endswith(CONTROL):
            return f"{self.display(model.removesuffix(CONTROL))}, shuffled"
        if model == "concat":
            return "concatenation"
        if model != "ebmc":
            return f"{model} alone" if model in self.modalities else model
        without = self.results.get("settings", {}).get("without")
        return f"EBMC (without {', '.join(without)})" if without else "EBMC"

    @property
    def names(self) -> dict[str, str]:
        """Of the models, for people."""
        return {name: self.display(name) for name in self.models}

    def whole(self) -> dict[str, Scores]:
        """The scores of each model with all of its modalities there, by its name for people."""
        return {
            self.display(name): found["test"][full_condition(found["test"])] for name, found in self.models.items()
        }

    def constant(self) -> list[str]:
        """A sentence for each metric in percent that has one value for all models, sets of modalities and seeds."""
        tests = [scores for found in self.models.values() for scores in found["test"].values()]
        found: dict[str, set[float]] = {}
        for key in [key for key in tests[0] if METRICS[key].percent]:
            found.setdefault(key, {value for scores in tests for value in scores[key]["values"]})
        return [
            f"{METRICS[key].name} is {METRICS[key].text(value)} everywhere, whichever modalities are present: the "
            "labels of the test split, or all predictions, are of one class. If these labels are not what you meant, "
            "state --task, --range or --labels."
            for key, values in found.items()
            if len(values) == 1 and (value := min(values)) == value and (len(tests) > 1 or value == 100)
        ]

    def conditions(self) -> dict[str, str]:
        """{condition: its name in words}, the full one first, then by how little is missing."""
        order = sorted(self.test, key=lambda condition: -condition.count("+"))
        return {condition: in_words(condition, self.modalities) for condition in order}


def in_tables(kind: str, keys: Iterable[str]) -> dict[str, dict[str, Metric]]:
    """These metrics by table, "" the main one: the F1 of single classes stand in tables of their own."""
    found: dict[str, dict[str, Metric]] = {"": {}}
    for key in keys:
        table = next((title for start, title in _BY_CLASS.items() if kind == "classes" and key.startswith(start)), "")
        metric = METRICS[key]
        name = metric.name.rpartition(" ")[2] if table else metric.name
        found.setdefault(table, {})[key] = metric._replace(name=name)
    return found


def full_condition(test: Iterable[str]) -> str:
    return max(test, key=lambda condition: condition.count("+"))


def in_words(condition: str, modalities: Sequence[str]) -> str:
    """Which modalities are there: 'only audio', 'without text'."""
    present = condition.split("+")
    absent = [name for name in modalities if name not in present]
    if not absent:
        return "all modalities"
    if len(present) == 1:
        return f"only {present[0]}"
    return f"without {' and '.join(absent)}"


def protocol(results: Mapping[str, Any]) -> str:
    """What the figures are of: split, seeds, and how the epochs were selected."""
    seeds, selection = ", ".join(map(str, results["seeds"])), results["selection"]
    count = len(results["seeds"])
    over = f"mean ± standard deviation over {count} seeds ({seeds})" if count > 1 else f"one seed, {seeds}"
    valid = selection["split"] == "valid"
    metric = selection["metric"]
    chosen = f"epochs chosen on the validation split by {METRICS[metric].name}" if valid else metric
    return f"Test split of {results['dataset']}; {over}; {chosen}{context(results)}."


def context(results: Mapping[str, Any]) -> str:
    """Whether the models read whole conversations; nothing where the results do not tell."""
    found = results.get("context")
    if found is None:
        return ""
    if found["encoder"] == "none":
        return "; utterances read one by one"
    what = "earlier utterances" if found["causal"] else "whole conversations"
    shuffled = " (shuffled: in random order, the control)" if found["control"] else ""
    imputed = ", absent modalities taken from the nearest utterance" if found.get("imputed") else ""
    return f"; {found['encoder']} over {what}{shuffled}{imputed}"
