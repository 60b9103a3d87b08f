"""Plans that several tests look at, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.command import moiety

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the reference scenario's plan."""
    folder = tmp_path_factory.mktemp("reference")
    done = moiety("plan", "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a plan of a small model on one node."""
    folder = tmp_path_factory.mktemp("small")
    done = moiety("plan", "mixtral-8x7b", "--cluster", "h100x8", "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def runnable_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a tiny model whose tokenizer knows the words w0 to w130."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    from tests.runtime.checkpoints import save_checkpoint  # noqa: PLC0415 - most tests here need no torch

    folder = save_checkpoint("qwen3_moe", tmp_path_factory.mktemp("checkpoints") / "qwen3")
    unknown = "w0"
    words = tokenizers.models.WordLevel({f"w{index}": index for index in range(131)}, unk_token=unknown)
    inner = tokenizers.Tokenizer(words)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=unknown).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def runnable_folder(runnable_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a plan for that checkpoint on two ranks of this machine."""
    folder = tmp_path_factory.mktemp("runnable")
    load = ("--concurrency", "8", "--input-tokens", "16", "--output-tokens", "16")
    where = ("--cluster", "local:2", "--strategy", "ep2_tp1")
    done = moiety("plan", runnable_checkpoint, *where, *load, "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that is the current one, in a terminal of 110 columns."""
    monkeypatch.setenv("COLUMNS", "110")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail where a rank is started."""

    def refuse(*_arguments: object, **_more: object) -> None:
        pytest.fail("a rank was started")

    monkeypatch.setattr("moiety.runtime.launch.start", refuse)
