"""The wheel that a user installs: what is in it, what it needs, and that its command works where torch is absent."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "moiety"
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, timeout=300)


def succeed(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    succeed(sys.executable, "-m", "pip", "wheel", *options, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` folder of an environment that holds the wheel and its dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    succeed(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    succeed(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel, cwd=folder)
    return folder / "bin"


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(f"moiety-{VERSION}.dist-info/METADATA"))


def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("moiety/")}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed == {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    assert "moiety/py.typed" in packed
    assert any(name.startswith("moiety/catalog/") for name in packed)


def test_wheel_carries_version_and_licence(wheel: Path) -> None:
    assert metadata(wheel)["Version"] == VERSION
    assert metadata(wheel)["License-Expression"] == "Apache-2.0"
    with zipfile.ZipFile(wheel) as archive:
        licence = archive.read(f"moiety-{VERSION}.dist-info/licenses/LICENSE").decode()
    assert licence == (ROOT / "LICENSE").read_text()


@pytest.mark.network
def test_plain_install_is_complete_and_has_no_torch(environment: Path, tmp_path: Path) -> None:
    succeed(sys.executable, "-m", "pip", "--python", environment / "python", "check", cwd=tmp_path)
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is not None)"
    for name in ("torch", "transformers"):
        succeed(environment / "python", "-c", probe, name, cwd=tmp_path)


@pytest.mark.network
def test_installed_command_prints_its_version(environment: Path, tmp_path: Path) -> None:
    assert VERSION in succeed(environment / "moiety", "--version", cwd=tmp_path).split()


@pytest.mark.network
def test_installed_command_plans_the_reference_scenario(environment: Path, tmp_path: Path) -> None:
    succeed(environment / "moiety", "plan", "--quiet", "--out", "plan", cwd=tmp_path)
    written = {path.name for path in (tmp_path / "plan").iterdir()}
    assert written >= {
        "enhanced_deployment_method.json",
        "enhanced_deployment_verification.json",
        "enhanced_llm_deployment_comprehensive.dot",
        "enhanced_llm_deployment_comprehensive.svg",
        "enhanced_llm_deployment_summary.dot",
        "enhanced_llm_deployment_summary.svg",
        "generate_enhanced_deployment_dag.py",
    }
    succeed(environment / "moiety", "verify", "--quiet", "plan", cwd=tmp_path)
