"""Marks: the ends of a layer's ops, told to a recorder by hooks on transformers' modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moiety.runtime.arena.trace import called
from moiety.runtime.model.parallel import RowLinear

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from moiety.runtime.telemetry import Recorder

_OPS = {
    "input_layernorm": "input_norm",
    "self_attn.v_proj": "qkv_proj",
    "self_attn.kv_a_proj_with_mqa": "qkv_down_proj",
    "self_attn.q_b_proj": "q_up_proj",
    "self_attn.kv_b_proj": "kv_up_proj",
    "self_attn.o_proj": "o_proj",
    "post_attention_layernorm": "post_norm",
    "mlp.post_mlp_layernorm": "ffn_out_norm",
}
"""transformers' module, whose end is that of the graph's op: the last of those that the op stands for."""
_NORMS_BEHIND = {
    "post_attention_layernorm": "attn_out_norm",
    "pre_mlp_layernorm": "post_norm",
    "post_mlp_layernorm": "ffn_out_norm",
}
"""The same of layers that have a norm behind attention too; "post" is behind it there, not before what follows."""
_FEED_FORWARD = {"gate_proj": None, "up_proj": "gate_up", "down_proj": "down"}


class NotedMarks:
    """Marks that a step which is noted repeats when it is played."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @property
    def recording(self) -> bool:
        """Whether the time of every op is wanted now; see `Recorder`."""
        return self._recorder.recording

    def mark(self, name: str, layer: int = -1) -> None:
        """Tell the recorder; see `Recorder`."""
        called(self._recorder.mark, name, layer)


def mark_ops(layer: Any, index: int, recorder: Recorder) -> None:  # noqa: ANN401 - transformers' decoder layer
    """Have the modules of a decoder layer tell the recorder when the ops of the graph end."""
    ops = _OPS | _NORMS_BEHIND if hasattr(layer, "pre_mlp_layernorm") else _OPS
    for path, module in layer.named_modules():
        name = _op_name(path.replace("mlp.inner.", "mlp."), ops)
        if name is not None and not isinstance(module, RowLinear):
            module.register_forward_hook(_hook(recorder, name, index))
    layer.register_forward_hook(_hook(recorder, "residual_add", index))


def _op_name(path: str, ops: Mapping[str, str]) -> str | None:
    if path in ops:
        return ops[path]
    if path in {"mlp.gate", "mlp.router"}:
        return "router"
    owner, _, leaf = path.rpartition(".")
    part = _FEED_FORWARD.get(leaf)
    if part is None or not owner.startswith("mlp"):
        return None
    return f"dense_{part}" if owner == "mlp" else f"shared_{part}"


def _hook(recorder: Recorder, name: str, layer: int) -> Any:  # noqa: ANN401 - a hook of torch
    def told(_module: torch.nn.Module, _inputs: object, _output: object) -> None:
        recorder.mark(name, layer)

    return told
