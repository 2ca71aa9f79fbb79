"""The figure and the tables of balance.md, from the folders that compare.py wrote.

python docs/comparison.py [FOLDER ...]      comparison.csv and .png in docs/assets, and docs/balance-tables.md

Without folders it draws the figure of the .csv that is there.
"""

import csv
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

DOCS = Path(__file__).parent
HEAD = ("data", "metric", "part", "method", "mean", "std", "difference", "low", "high", "valid")
COLOURS = {"full": "#3f51b5", "missing": "#e65100"}
TITLES = {"mosi_overfit_vision": "over-fitted vision", "mosi": "MOSI", "iemocap": "IEMOCAP", "ravdess": "RAVDESS"}
TITLES |= {"mfeat": "digits, six views"}
LABELS = {"full": "all present", "missing": "something missing"}


def rows(folder: Path) -> list[tuple[str, ...]]:
    """Every method by metric and part; the difference is EBMC minus the method, above zero where EBMC is better."""
    found = json.loads((folder / "comparison.json").read_text())
    return [
        (folder.name, key, part, name, got[part]["mean"], got[part]["std"], *got[part]["difference"], got["valid"])
        for key, metric in found["metrics"].items()
        for name, got in metric["methods"].items()
        for part in LABELS
    ]


def tables(folder: Path) -> str:
    """The page of one data set, its title one level down and the command left to the summary."""
    title, _, rest = (folder / "comparison.md").read_text().partition("\n")
    return f"#{title.removesuffix(', test split')}\n\n" + rest.partition("\n\n")[2].strip() + "\n"


def draw(path: Path) -> Figure:
    """A panel a data set: EBMC minus each method, with its 95 % interval, in the first metric."""
    with path.open() as file:
        table = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["data"] for row in table))
    figure = Figure(figsize=(9.6, 3.1 * -(-len(names) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(names) // 3), 3, squeeze=False).flat
    for axis in axes[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=False):
        own = [row for row in table if row["data"] == name]
        own = [row for row in own if row["metric"] == own[0]["metric"] and row["method"] != "ebmc"]
        methods = list(dict.fromkeys(row["method"] for row in own))
        for row in own:
            y = methods.index(row["method"]) + (0.18 if row["part"] == "missing" else -0.18)
            mean, low, high = (float(row[key]) for key in ("difference", "low", "high"))
            axis.plot([low, high], [y, y], color=COLOURS[row["part"]], lw=1.2)
            axis.plot(mean, y, "o", color=COLOURS[row["part"]], ms=3)
        axis.axvline(0, color="#888", lw=0.8, zorder=0)
        axis.set_yticks(range(len(methods)), methods, fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        axis.invert_yaxis()
        axis.set_title(TITLES.get(name, name), fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [figure.axes[0].plot([], [], "o-", color=COLOURS[part], label=LABELS[part])[0] for part in LABELS]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    figure.supxlabel("points that EBMC is above the method", fontsize=8)
    return figure


def main() -> None:
    folders, file = [Path(argument) for argument in sys.argv[1:]], DOCS / "assets/comparison.csv"
    if folders:
        with file.open("w", newline="") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(HEAD)
            for row in (row for folder in folders for row in rows(folder)):
                writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in row])
        page = DOCS / "balance-tables.md"
        intro = page.read_text().partition("\n## ")[0].rstrip() + "\n"
        page.write_text("\n".join([intro, *map(tables, folders)]))
    draw(file).savefig(DOCS / "assets/comparison.png", dpi=130)


if __name__ == "__main__":
    main()
