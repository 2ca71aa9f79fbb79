"""The field's words: no private ones in identifiers and docstrings of the code, in comments, or on pages."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What people do, tensors do not; each with the word to use.
RATHER = {
    "said": "outputs, predictions",
    "says": "outputs, states",
    "say": "outputs, state",
    "heard": "expert outputs",
    "settle": "fit",
    "vote": "mixture, ensemble",
    "votes": "mixtures",
    "doubt": "OOD exponent, distrust",
    "doubts": "distrusts",
    "typical": "in distribution, OOD score",
    "spoil": "corrupt",
    "spoils": "corrupts",
    "spoilt": "corrupted",
    "thinned": "frame dropout",
    "mend": "calibrate",
    "mends": "calibrates",
    "mended": "calibrated",
    "taught": "teacher outputs",
    "teach": "teacher",
    "teaches": "trains",
    "told": "separated, given",
    "tells": "shows, separates",
    "whoever": "the one that",
    "humble": "simple",
    "showing": "with_present",
    "obstacle": "unsupported_reason",
}
PYTHON = sorted(path for part in ("examples", "modbalance", "docs") for path in (ROOT / part).rglob("*.py"))
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"), ROOT / "README.md"])


def words(text):
    """Lower-case words of a text, identifiers cut at underscores and capitals."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)]


def tokens(source):
    """(line, text) of each name, string and comment."""
    kinds = {tokenize.NAME, tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def private(pieces):
    return [
        f"line {line}: {word}, rather {RATHER[word]}"
        for line, text in pieces
        for word in words(text)
        if word in RATHER
    ]


def named(paths):
    return {"argvalues": paths, "ids": [str(path.relative_to(ROOT)) for path in paths]}


@pytest.mark.parametrize("path", **named(PYTHON))
def test_code(path):
    assert private(tokens(path.read_text())) == []


@pytest.mark.parametrize("path", **named(PAGES))
def test_pages(path):
    assert private(enumerate(path.read_text().splitlines(), 1)) == []


def test_a_private_word_is_seen():
    source = (
        'class Vote:\n    """What it says."""\n    spoilt_rows = 1  # told apart\n    order = "keep the path found"\n'
    )
    assert [entry.split(",")[0] for entry in private(tokens(source))] == [
        "line 1: vote",
        "line 2: says",
        "line 3: spoilt",
        "line 3: told",
    ]
