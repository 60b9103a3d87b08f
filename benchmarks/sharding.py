"""Dense parameters sharded over two processes: what is sent in a step, and what of it nothing hides, beside the plan.

A random float32 Qwen3-MoE of 60 M parameters, half of whose experts live on each rank, planned for this machine as
`local:2x1` and trained by `moiety train`: a layer is gathered while the one before it computes, and its gradients are
scattered while the next one does. Bar: the bytes within 10 % of the plan's; the times are shown, as loopback between
ranks that share cores is no link that a plan could know.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

STEPS, ROWS, TOKENS, VOCABULARY = 6, 4, 128, 8000
MOST_APART = 0.1


def save_model(folder: Path) -> None:
    """Save a random model."""
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        vocab_size=VOCABULARY,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def moiety(*arguments: str | Path) -> str:
    """Return what a command prints, its complaints on standard error."""
    command = [sys.executable, "-m", "moiety", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measured(folder: Path) -> dict[str, Any]:
    """Return what `moiety train` says of sharding, measured and planned."""
    save_model(folder / "model")
    rows = torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1)).tolist()
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    pinned = ("--strategy", "tp1_dp2_ep2", "--set", "dense_parameter_sharding=true", "--quiet")
    moiety("plan", folder / "model", "--cluster", "local:2x1", *pinned, "--out", folder / "plan")
    data = ("--data", folder / "rows.jsonl", "--batch-size", str(ROWS), "--steps", str(STEPS))
    said = moiety("train", folder / "plan", "--checkpoint", folder / "model", *data, "--json", "--quiet")
    return json.loads(said)["sharding"]


def main() -> int:
    """Print the table; return 0 where the bytes are the plan's."""
    argparse.ArgumentParser(description="Dense parameters sharded over two processes.").parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = measured(Path(temporary))
    print(f"{'':20} {'measured':>10} {'planned':>10}")
    for key, scale, unit in (
        ("gathered_bytes", 1e6, "MB"),
        ("scattered_bytes", 1e6, "MB"),
        ("transfer_s", 1e-3, "ms"),
        ("exposed_s", 1e-3, "ms"),
        ("step_s", 1e-3, "ms"),
    ):
        print(f"{key:20} {found['measured'][key] / scale:7.1f} {unit} {found['planned'][key] / scale:7.1f} {unit}")
    hidden = {key: 1 - each["exposed_s"] / each["transfer_s"] for key, each in found.items()}
    print(f"hidden: {hidden['measured']:.0%}, planned {hidden['planned']:.0%}")
    met = all(
        abs(found["measured"][key] / found["planned"][key] - 1) <= MOST_APART
        for key in ("gathered_bytes", "scattered_bytes")
    )
    print(f"bytes within {MOST_APART:.0%} of the plan's: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
