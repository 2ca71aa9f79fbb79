"""The rooms of the pipeline stand in one line: none imports from one to its right, and the library has no circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modbalance

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples/ebmc_msa"
ROOMS = ["data", "model", "evaluation", "report", "training", "experiments"]
COMMANDS = {"train.py", "compare.py", "convert.py", "benchmark.py"}
LINES = 25  # of a command, at most


def imports(tree):
    """Full names of the modules or objects that a module imports, also inside functions, but not for types alone."""
    for_types = {
        inner for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }  # fmt: skip
    for node in (node for node in ast.walk(tree) if node not in for_types):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms_of(tree):
    return {name.split(".")[1] for name in imports(tree) if name.startswith("ebmc_msa.")}


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_to_its_right(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for path in (PACKAGE / room).rglob("*.py"):
        wrong = rooms_of(ast.parse(path.read_text())) - allowed
        assert not wrong, f"{path.relative_to(PACKAGE)} imports from {wrong}"


def test_an_import_to_the_right_is_seen():
    assert rooms_of(ast.parse("def f():\n    from ebmc_msa.training import run")) == {"training"}


def test_beside_the_rooms_there_are_thin_commands_only():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == COMMANDS | {"__init__.py"}
    assert all(len((PACKAGE / name).read_text().splitlines()) <= LINES for name in COMMANDS)


def test_tests_lie_in_the_same_rooms():
    assert {path.name for path in Path(__file__).parent.iterdir() if path.is_dir()} - {"__pycache__"} <= set(ROOMS)


def circle(graph):
    """Modules in a circle of imports, in order; empty without one."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        path.append(node)
        found = next((c for target in graph.get(node, ()) if (c := visit(target))), [])
        path.pop()
        done.add(node)
        return found

    return next((c for node in graph if (c := visit(node))), [])


def graph_of(root, package):
    """Which modules of a package import which; a name of a package stands for the module that holds it, if any."""
    files = {}
    for path in root.rglob("*.py"):
        parts = [package, *path.relative_to(root).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in files.items():
        targets = set()
        for name in imports(ast.parse(path.read_text())):
            while name and name not in files:
                name = name.rpartition(".")[0]
            targets |= {name} - {"", module}
        # A package runs before its modules: to import one of itself is no circle, unless that imports it by name.
        graph[module] = targets
    return graph


@pytest.mark.parametrize(
    ("root", "package"), [(Path(modbalance.__file__).parent, "modbalance"), (PACKAGE, "ebmc_msa")], ids=str
)
def test_no_circle(root, package):
    assert circle(graph_of(root, package)) == []


def test_a_circle_is_seen():
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c"]
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


@pytest.mark.slow
def test_help_and_a_misspelt_option_do_not_wait_for_torch():
    code = (
        "import sys; sys.argv = ['train.py', *sys.argv[1:]]; from ebmc_msa.training.command import main\ntry: main()"
    )
    code += "\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    for option, status in (("--help", 0), ("--epochz", 2)):
        command = [sys.executable, "-c", code, option]
        run = subprocess.run(command, cwd=ROOT / "examples", capture_output=True, text=True, check=True)
        assert run.stdout.splitlines()[-1] == f"{status} False False"
