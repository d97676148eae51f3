"""The structure that CONTRIBUTING.md promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "CONTRIBUTING.md").read_text()


def reading_order() -> list[str]:
    return re.findall(r"`minift/(\w+)\.py`", MAP.split("# Rules")[0])


def imported_modules(path: Path) -> set[str]:
    """The modules of minift that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "minift":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minift."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minift.")}
    return found


def test_the_map_lists_every_file_once():
    files = {path.stem for path in (ROOT / "minift").glob("*.py")} - {"__init__", "__main__"}
    assert sorted(reading_order()) == sorted(files)


def test_each_file_imports_only_from_files_before_it():
    order = reading_order()
    for position, name in enumerate(order):
        upward = imported_modules(ROOT / "minift" / f"{name}.py") - set(order[:position])
        assert not upward, f"minift/{name}.py imports {sorted(upward)}, which the map lists after it"


def test_kernels_know_nothing_of_minift():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) minift\b", path.read_text(), re.MULTILINE), path


def test_importing_minift_imports_neither_torch_nor_the_heavy_optional_packages():
    heavy = ["torch", "transformers", "huggingface_hub", "tyro", "cupy", "matplotlib"]
    script = f"import sys, minift; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
