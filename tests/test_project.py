"""The project's own promises: one lock, layers that import downwards, small files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "triptych"
FLOORS = [
    {"tokens", "seeding", "palette", "choices", "signals"},
    {"norms"},
    {"backbones"},
    {"mim"},
    {"visualization"},
    {"measure"},
    {"data"},
    {"config", "config_data", "config_detector", "records", "paths"},
    {"composition", "ranges"},
    {"legality", "stages", "explain"},
    {"subject"},
    {"tasks"},
    {"assembly", "mirror", "companions"},
    {"detector_assembly", "loaders"},
    {"fitting"},
    {
        "training",
        "detecting",
        "detection_pictures",
        "probing",
        "examining",
        "examination_pictures",
        "costing",
        "planning",
        "pictures",
        "export",
    },
    {"networks", "observation"},
    {"study"},
    {"hydra_app", "run", "matrix"},
    {"__main__"},
]
# Called by the command, far above; imported inside the function that hands over.
HANDED_OVER = {("run", "study"), ("study", "run")}


def test_environment_yml_installs_the_lock_file() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-r requirements.lock"]
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    assert all(re.split(r"[=<>]", item)[0] in ("python", "pip", "make") for item in conda)
    required = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert required
    assert any(item.startswith(f"python>={required[1]}") for item in conda)


def test_lock_pins_every_direct_requirement_with_a_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    for line in (ROOT / "requirements.in").read_text().splitlines():
        name = re.split(r"[=<>#; ]", line)[0]
        if name:
            assert re.search(rf"^{re.escape(name.lower())}==\S+", lock, re.MULTILINE), name
    pinned = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in part for part in pinned)
    assert "://" not in lock


def test_package_requirements_are_locked() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    block = project.split("dependencies = [")[1].split("]")[0]
    for name in re.findall(r'"([A-Za-z0-9_.-]+?)(?:[=<>!~])', block):
        assert f"\n{name.lower()}==" in "\n" + lock, name


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("triptych."):
            names.add((node.module or "").split(".")[1])
    return names


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p)[-40:])
def test_imports_go_downwards(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    for other in _imports(path) - {part}:
        if (part, other) not in HANDED_OVER:
            assert floor[other] <= floor[part], f"{part} imports {other}"


@pytest.mark.parametrize("package", ["norms", "backbones", "mim", "visualization", "measure"])
def test_methods_are_plain_pytorch(package: str) -> None:
    for path in (SOURCE / package).rglob("*.py"):
        found = re.findall(
            r"^\s*(?:import|from) (pytorch_lightning|lightning\w*|hydra|wandb)\b",
            path.read_text(),
            re.MULTILINE,
        )
        assert not found, path


def test_checking_a_command_does_not_load_torch() -> None:
    code = (
        "import sys; from triptych.hydra_app import compose_run; compose_run(['norm=dtn']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_and_functions_are_small() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                assert node.end_lineno - node.lineno + 1 <= 60, f"{path}: {node.name}"
