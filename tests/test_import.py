import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import modbalance

SOURCES = sorted(Path(modbalance.__file__).parent.rglob("*.py"))
ALLOWED = {"torch", "einops", "typing_extensions", "modbalance"} | sys.stdlib_module_names
MEASURE = """
import sys, time
import torch
before, start = set(sys.modules), time.process_time()
import modbalance, modbalance.balancers
assert "modbalance.diagnostics" not in sys.modules
assert modbalance.diagnostics.ModalityMonitor and "diagnostics" in dir(modbalance)
print(time.process_time() - start, *sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


@pytest.mark.slow
def test_import_is_cheap_beyond_torch_and_brings_in_no_triton():
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    seconds, *brought = run.stdout.split()
    assert float(seconds) < 0.2
    assert not {"triton", "numpy", "scipy", "sklearn", "matplotlib", "lightning", "transformers"} & set(brought)
    with pytest.raises(AttributeError, match="module 'modbalance' has no attribute 'diagnostic'"):
        modbalance.diagnostic  # noqa: B018


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name if p.name != "__init__.py" else p.parent.name)
def test_only_declared_dependencies_are_imported(path):
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.partition(".")[0])
    of_its_own = {"diagnostics": {"matplotlib"}, "integrations": {path.stem}}  # inside a call; the trainer it is for
    allowed = (
        {"triton"}
        if path.name in ("triton_kernels.py", "triton_launcher.py")
        else of_its_own.get(path.parent.name, set())
    )
    assert roots - ALLOWED <= allowed


@pytest.mark.parametrize(
    "name", ["modbalance", "modbalance.balancers", "modbalance.functional", "modbalance.diagnostics"]
)
def test_all_is_complete(name):
    module = importlib.import_module(name)
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public <= set(module.__all__)
    assert len(module.__all__) == len(set(module.__all__))
    assert all(hasattr(module, key) for key in module.__all__)
    assert all(getattr(module, key).__doc__ for key in module.__all__)


def test_the_contract_of_names():
    components = {"SemanticDecoupler", "ComplementaryEnhancer", "EnergyCoordinator", "TrustDistiller"}
    assert components <= set(modbalance.__all__)
    assert "energy_penalty" in modbalance.kernels.__all__
    assert (Path(modbalance.__file__).parent / "py.typed").exists()
