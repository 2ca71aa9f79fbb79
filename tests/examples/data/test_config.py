"""Options from a TOML file: the same checks and near names as on the command line, and a file that reads back."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmc_msa.data import config
from ebmc_msa.training import command, options

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), FLOATS)


@given(st.one_of(VALUES, st.lists(TEXT), st.lists(FLOATS), st.dictionaries(TEXT, FLOATS)))
def test_a_value_reads_back(value):
    assert config.tomllib.loads(f"x = {config.to_toml(value)}")["x"] == value


def write(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text)
    return path


GIVEN = """
data = "mosi data/ü.pkl"
range = [-1, 1.5]
compare = true
without = ["emc", "msd"]
seeds = [3, 4]
lr = 1
stage1-epochs = 7
modality-dropout = {text = 0.1, "audio b" = 0.5}
"""


def test_a_file_is_its_command_line(tmp_path):
    line = "--range -1 1.5 --compare --without emc msd --seeds 3 4 --lr 1 --stage1-epochs 7"
    line += " --data 'mosi data/ü.pkl' --modality-dropout 'text=0.1,audio b=0.5'"
    path = write(tmp_path, GIVEN)
    assert vars(options.parse(["--config", str(path)])) == {**vars(options.parse(shlex.split(line))), "config": path}


@pytest.mark.parametrize(
    "line", ["", "--model text", "--data x --modality-dropout a=0.5,b=0.1 --no-causal", "--compare"]
)
def test_the_file_of_a_run_states_what_its_command_left_open(tmp_path, line):
    args = options.parse(line.split())
    settings = options.settings_of(args, "none")
    again = options.parse(["--config", str(write(tmp_path, options.as_toml(args, settings)))])
    assert options.settings_of(again, again.context) == settings
    assert (again.model, again.compare, again.data, again.seeds) == (args.model, args.compare, args.data, args.seeds)
    assert again.stage1_epochs == settings.stage1_epochs


def test_the_command_line_overrides_the_file(tmp_path):
    path = write(tmp_path, GIVEN)
    args = options.parse(["--config", str(path), "--no-compare", "--without", "--seeds", "5", "--lr", "0.5"])
    assert (args.compare, args.without, args.seeds, args.lr, args.stage1_epochs) == (False, [], [5], 0.5, 7)


def test_a_dump_holds_every_option_and_reads_back(tmp_path, capsys):
    path = write(tmp_path, GIVEN)
    dumped = tmp_path / "dumped.toml"
    assert command.main(["--config", str(path), "--dump-config", str(dumped)]) == 0
    first, second = (options.parse(["--config", str(p)]) for p in (path, dumped))
    assert {**vars(first), "config": dumped} == vars(second)
    keys = set(re.findall(r"^(?:# )?([a-z0-9-]+) =", dumped.read_text(), re.MULTILINE))
    known = {name[2:] for name in options.parser()._option_string_actions if name.startswith("--")}
    assert known - keys == {"help", "config", "dump-config", "resume", "no-compare", "no-causal", "no-impute-context"}
    assert command.main(["--config", str(path), "--dump-config"]) == 0
    assert capsys.readouterr().out == dumped.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes = [1]", "my.toml: unknown option sedes, expected one that --help lists; did you mean seeds?"),
        ("batch_size = 3", "unknown option batch_size, expected one that --help lists; did you mean batch-size?"),
        ("[data]\ndata = 'x'", "my.toml: data is a table, expected options outside any table; write data = …"),
        ("[training]\nlr = 0.1", "training is a table, expected options outside any table; write lr = … without the"),
        ("[sed]\nx = 1", "sed is a table, expected options outside any table"),
        ("lr = 'fast'", 'my.toml: lr = "fast", expected a number'),
        ("lr = -1.0", "my.toml: lr = -1.0: -1.0, expected a positive number"),
        ("lr = true", "lr = true, expected a number"),
        ("batch-size = 1.5", "batch-size = 1.5, expected a whole number"),
        ("compare = 'yes'", 'compare = "yes", expected true or false'),
        ("seeds = 1", "seeds = 1, expected a list of whole numbers"),
        ("seeds = []", "seeds = [], expected a list of whole numbers"),
        ("seeds = ['1']", 'seeds = ["1"], expected a list of whole numbers'),
        ("range = [1]", "range = [1], expected a list of 2 numbers"),
        ("name = 3", "name = 3, expected text in quotes"),
        ("task = 'sentimnt'", "invalid choice: 'sentimnt'"),
        ("task = 'sentimnt'", "did you mean sentiment?"),
        ("modality-dropout = {text = 'x'}", "expected a number, or a table such as {text = 0.1, audio = 0.5}"),
        ("modality-dropout = {text = 2}", "2, expected a probability in [0, 1)"),
        ("resume = 'runs/a'", "resume, which is an option of the command line only"),
        ("lr 0.1", "my.toml is not TOML (Expected '=' after a key in a key/value pair (at line 1, column 4))"),
        ("lr = 1\nlr = 2", "is not TOML"),
        ("evaluate = 'runs/a'\nlr = 1.0", "without --lr; leave it out"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--config", str(write(tmp_path, text))])
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0]
    assert len(lines) == 2


def test_a_file_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "config.toml").write_bytes(b"\xff")
    for path, message in (
        (tmp_path / "gone.toml", "gone.toml does not exist, expected a TOML file of options; train.py --dump-config"),
        (tmp_path, f"is a folder, expected a TOML file; pass {tmp_path / 'config.toml'}"),
        (tmp_path / "config.toml", "is not TOML ('utf-8' codec can't decode"),
    ):
        with pytest.raises(SystemExit, match="2"):
            options.parse(["--config", str(path)])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main(["--dump-config", str(tmp_path / "no/folder.toml")])
    assert "--dump-config: " in capsys.readouterr().err


def test_compare_reads_a_file_too(tmp_path, capsys):
    from ebmc_msa.experiments import command as comparison

    path = write(tmp_path, "out = 'table'\nmethods = ['ebmc -emc', 'concat']\nnoisy = {text = 1.0}\nvalid = true")
    args = comparison.parse(["--config", str(path), "--methods", "concat"])
    assert (args.out, args.methods, args.noisy, args.valid) == (Path("table"), ["concat"], [("text", 1.0)], True)
    with pytest.raises(SystemExit, match="0"):
        comparison.parse(["--config", str(path), "--dump-config", str(tmp_path / "again.toml")])
    again = comparison.parse(["--config", str(tmp_path / "again.toml")])
    assert (again.out, again.methods, again.noisy) == (Path("table"), ["ebmc -emc", "concat"], [("text", 1.0)])
    with pytest.raises(SystemExit, match="0"):
        comparison.parse(["--dump-config"])
    with pytest.raises(SystemExit, match="2"):
        comparison.parse(["--methods", "concat"])
    assert "argument --out: none, expected a folder for the results" in capsys.readouterr().err
