"""Tests use commands, public functions of lsr, HTTP and files. They import nothing else of the product."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
PRODUCT = {"lsr", "lsr_onnx", "lsr_server", "pipeline", "stages", "benchmarks", "docs"}
BORDERS = {"lsr", "lsr.errors"}
# Tests of what has no border yet, or goes together with the code that they import, and what these tests share.
INSIDE = {
    "dvc/test_contract.py",
    "kit.py",
    "lsr/serve/asking.py",
    "lsr/serve/started.py",
    "lsr/serve/test_graph_bank.py",
    "lsr/serve/test_openai.py",
    "lsr/test_algebra.py",
    "pipeline/arena/small.py",
    "pipeline/arena/test_tenants.py",
    "pipeline/data/rows.py",
    "pipeline/test_statistics.py",
    "references/graphs.py",
    "references/test_graphs_of_banks.py",
    "stages/held_out_runs.py",
    "stages/running.py",
    "stages/test_held_out.py",
    "stages/test_held_out_numbers.py",
    "stages/test_refit.py",
}


def find_imports(path):
    """Return the modules of the product that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    return {module for module in modules if module.split(".")[0] in PRODUCT}


def test_files_import_the_borders_alone():
    beyond = {path.relative_to(TESTS).as_posix(): find_imports(path) - BORDERS for path in TESTS.rglob("*.py")}
    assert {name for name, modules in beyond.items() if modules} == INSIDE
