"""Everything about a run that is refused before any rank is started."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from tests.cli.command import moiety, refused

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("no_ranks")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--checkpoint", "nowhere"), ("nowhere", "no such folder")),
        (("--checkpoint", "."), ("holds no config.json",)),
        (("--checkpoint", "CK", "--prompts", "nowhere.jsonl"), ("nowhere.jsonl", "no such file")),
        (("--checkpoint", "CK", "--prompts", "bad.jsonl"), ("bad.jsonl:2", "token_ids[0] = 131", "0 to 130")),
        (("--checkpoint", "NO-TOKENIZER", "--prompts", "text.jsonl"), ("text.jsonl:1", "text", "no tokenizer")),
        (("--checkpoint", "BAD-TOKENIZER", "--prompts", "text.jsonl"), ("text.jsonl:1", "tokenizer cannot be read")),
        (("--checkpoint", "CK", "--max-new-tokens", "0"), ("--max-new-tokens",)),
        (("--checkpoint", "CK", "--max-new-tokens", "512"), ("512 positions",)),
        (("--checkpoint", "CK", "--temperature", "-1"), ("--temperature", "-1")),
        (("--checkpoint", "CK", "--temperature", "nan"), ("--temperature", "nan")),
        (("--checkpoint", "CK", "--temperature", "1", "--top-p", "0"), ("--top-p", "above 0")),
        (("--checkpoint", "CK", "--top-p", "0.5"), ("--top-p", "--temperature")),
        (("--checkpoint", "CK", "--top-k", "5"), ("--top-k", "--temperature")),
        (("--checkpoint", "CK", "--dispatch", "hierarchic"), ("--dispatch", "did you mean 'hierarchical'")),
        (("--checkpoint", "CK", "--transport", "gluo"), ("--transport", "did you mean 'gloo'")),
        (("--checkpoint", "CK", "--transport", "deep_ep"), ("--transport", "deep_ep", "not installed")),
        (("--checkpoint", "CK", "--fold", "3"), ("--fold = 3", "2 ranks")),
        (("--checkpoint", "CK", "--fold", "0"), ("--fold",)),
        (("--checkpoint", "OTHER"), ("blocks[0].feed_forward.top_k = 2", "qwen3", "3")),
        ((), ("--checkpoint",)),
        (("--checkpoint", "CK", "--trace", "."), ("--trace", "folder")),
        (("--checkpoint", "CK", "--calibration-out", "c.json"), ("--calibration-out", "add --bench")),
        (("--checkpoint", "CK", "--trace", "bad.jsonl/t.json"), ("--trace", "bad.jsonl")),
    ],
)
def test_what_is_refused_before_any_rank_is_started(
    arguments: tuple[str, ...], words: tuple[str, ...], runnable_checkpoint: Path, runnable_folder: Path, work: Path
) -> None:
    (work / "bad.jsonl").write_text('{"token_ids": [130]}\n{"token_ids": [131]}\n')
    (work / "text.jsonl").write_text('{"text": "w1"}\n')
    folders = {"CK": runnable_checkpoint, "OTHER": work / "other"}
    for name, content in (("NO-TOKENIZER", None), ("BAD-TOKENIZER", "{")):
        folders[name] = folder = work / name.lower()
        folder.mkdir()
        for file in ("config.json", "model.safetensors"):
            (folder / file).symlink_to(runnable_checkpoint / file)
        if content is not None:
            (folder / "tokenizer.json").write_text(content)
    folders["OTHER"].mkdir()
    config = json.loads((runnable_checkpoint / "config.json").read_text())
    (work / "other" / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 2}))
    (work / "other" / "model.safetensors").symlink_to(runnable_checkpoint / "model.safetensors")
    message = refused(moiety("run", runnable_folder, *(folders.get(each, each) for each in arguments)))
    assert all(word in message for word in words), message


def test_a_plan_that_does_not_place_every_expert_is_refused(
    runnable_checkpoint: Path, runnable_folder: Path, work: Path
) -> None:
    stored = json.loads((runnable_folder / "enhanced_deployment_method.json").read_text())
    pool = stored["pools"][0]
    (work / "uncovered.json").write_text(json.dumps({**stored, "pools": [{**pool, "placement": None}]}))
    assert "cannot run" in refused(moiety("run", "uncovered.json", "--checkpoint", runnable_checkpoint))
    pool["placement"]["physical_to_logical_map"][0][0] = 1
    (work / "incomplete.json").write_text(json.dumps(stored))
    message = refused(moiety("run", "incomplete.json", "--checkpoint", runnable_checkpoint))
    assert "experts without a slot: [0]" in message


def test_libraries_that_are_missing_are_named(
    runnable_checkpoint: Path, runnable_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moiety.cli.run_checkpoint.find_spec", lambda name: None if name == "torch" else name)
    message = refused(moiety("run", runnable_folder, "--checkpoint", runnable_checkpoint))
    assert "needs torch" in message
    assert "pip install 'moiety[runtime]'" in message


def test_a_port_that_is_taken_is_refused(
    runnable_checkpoint: Path, runnable_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", port)
        message = refused(moiety("run", runnable_folder, "--checkpoint", runnable_checkpoint, "--quiet"))
    assert message.startswith(f"MASTER_PORT = {port}: the port is in use")


@pytest.mark.parametrize("key", ["", "two words", "secret\n", "caf\u00e9"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(
    key: str, runnable_checkpoint: Path, runnable_folder: Path
) -> None:
    call = ("serve", runnable_folder, "--checkpoint", runnable_checkpoint, "--api-key", key, "--host", "no host")
    message = refused(moiety(*call))
    assert message.startswith("--api-key or MOIETY_API_KEY: ")
    assert not key or key not in message


@pytest.mark.parametrize("name", ["", " "])
def test_a_model_cannot_be_served_under_no_name(name: str, runnable_checkpoint: Path, runnable_folder: Path) -> None:
    call = ("serve", runnable_folder, "--checkpoint", runnable_checkpoint, "--model-name", name, "--host", "no host")
    message = refused(moiety(*call))
    assert message.startswith(f"--model-name = {name!r}: a name has a character that is no space; give one, or leave")
