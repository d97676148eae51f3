"""The structure that CONTRIBUTING.md promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "CONTRIBUTING.md").read_text()


def reading_order() -> list[str]:
    return [path.replace("/", ".") for path in re.findall(r"`minift/([\w/]+)\.py`", MAP.split("# Rules")[0])]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "minift").with_suffix("").parts)


def files() -> list[Path]:
    """All of minift but its outermost __init__ and __main__."""
    found = (ROOT / "minift").rglob("*.py")
    return [path for path in found if module_name(path) not in ("__init__", "__main__")]


def imported_modules(path: Path) -> set[str]:
    """The modules of minift that a file imports, wherever in the file."""
    names = {f"minift.{module_name(each)}" for each in files()}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in names else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {
        name.removeprefix("minift.") for each in found for name in (each, f"{each}.__init__") if name in names
    }


def test_the_map_lists_every_file_once():
    assert sorted(reading_order()) == sorted(map(module_name, files()))


def test_each_file_imports_only_from_files_before_it():
    order = reading_order()
    for position, name in enumerate(order):
        path = ROOT / "minift" / f"{name.replace('.', '/')}.py"
        upward = imported_modules(path) - set(order[:position])
        assert not upward, f"{path} imports {sorted(upward)}, which the map lists after it"


def test_kernels_know_nothing_of_minift():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) minift\b", path.read_text(), re.MULTILINE), path


def test_importing_minift_imports_neither_torch_nor_the_heavy_optional_packages():
    heavy = [
        "torch",
        "transformers",
        "huggingface_hub",
        "tyro",
        "cupy",
        "matplotlib",
        "textual",
        "rich",
        "debugpy",
    ]
    script = f"import sys, minift; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
