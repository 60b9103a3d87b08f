"""The command itself: version, help, unknown words, and what becomes of its output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moiety.cli.version import installed_version
from tests.cli.command import moiety, moiety_process, refused

VERBS = ("plan", "place", "routing", "simulate", "verify", "catalog")


def test_version_is_printed() -> None:
    done = moiety("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.split() == ["moiety", installed_version()]


@pytest.mark.parametrize(("words", "verbs"), [((), VERBS), (("control",), ("simulate", "watch", "power"))])
def test_without_a_verb_it_says_what_there_is(words: tuple[str, ...], verbs: tuple[str, ...]) -> None:
    done = moiety(*words)
    assert (done.code, done.err) == (0, "")
    assert all(verb in done.out for verb in verbs)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_two_switches(verb: str) -> None:
    done = moiety(verb, "--help")
    assert done.code == 0
    assert "--json" in done.out
    assert "--quiet" in done.out


def test_an_unknown_verb_is_one_message_with_the_nearest() -> None:
    assert "plan" in refused(moiety("plna"))


def test_an_unknown_option_is_one_message() -> None:
    assert "--bogus" in refused(moiety("plan", "--bogus"))


def test_a_missing_argument_is_one_message() -> None:
    assert "PLAN" in refused(moiety("simulate"))


def test_the_version_needs_no_heavy_imports(tmp_path: Path) -> None:
    probe = (
        "import sys\n"
        "from moiety.cli.main import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('pydantic', 'numpy', 'rich', 'pygraphviz', 'moiety.search') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_planning_loads_neither_numpy_nor_torch(tmp_path: Path) -> None:
    probe = (
        "import sys\n"
        "from moiety.cli.main import main\n"
        "try:\n    main(['plan', 'olmoe-1b-7b', '--cluster', 'h100x1', '--quiet'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('numpy', 'torch', 'transformers', 'hypothesis') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_terminal_that_knows_ascii_only_is_served(tmp_path: Path) -> None:
    done = moiety_process("catalog", "models", cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.code == 0
    assert "deepseek-v3" in done.out
    assert done.out.isascii()


def test_a_reader_that_goes_away_is_no_error_message(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        command = [sys.executable, "-m", "moiety", "catalog", "show", "deepseek-v3"]
        done = subprocess.run(command, cwd=tmp_path, check=False, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_message(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "moiety", "catalog", "models"]
        done = subprocess.run(command, cwd=tmp_path, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["moiety: error: standard output: cannot be written: No space left on device"]
