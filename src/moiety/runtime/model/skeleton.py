"""transformers' own model without its weights: the modules whose parameters a rank then fills with its part."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from moiety.errors import InputError
from moiety.runtime.model.attention import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from moiety.runtime.checkpoint.index import Checkpoint

transformers: Any = import_module("transformers")  # untyped
import_module("transformers.modeling_layers")  # of which all their models are made: here, before ranks are forked


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A causal language model on the meta device; transformers' classes carry no types, so neither do its parts."""

    whole: Any
    base: Any
    """The decoder: `embed_tokens`, `layers`, `norm`, `rotary_emb`."""
    tensors: Mapping[str, torch.Tensor]
    """Parameters and persistent buffers by transformers' name: shapes and number formats."""
    source: str

    def prefix(self) -> str:
        """Return what the names of the decoder's parameters begin with."""
        return f"{self.whole.base_model_prefix}."

    def experts_name(self, layer: int) -> str:
        """Return the name within the layer of its experts' module, empty for a dense layer."""
        for name, module in self.base.layers[layer].named_modules():
            is_experts = name.rpartition(".")[2] == "experts"
            if is_experts and isinstance(getattr(module, "down_proj", None), torch.nn.Parameter):
                return name
        return ""


def build_skeleton(checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> Skeleton:
    """Return the model of a checkpoint's config.json, of `dtype`, on the meta device; `attention` names our function.

    Raises InputError where transformers knows no such architecture, or where its parts are not those of a decoder of
    attention and feed-forward layers with stacked experts.
    """
    folder = str(checkpoint.folder)
    transformers.logging.set_verbosity_error()
    try:
        config: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        config = config.get_text_config(decoder=True)
        with torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
        rule = f"transformers {transformers.__version__} cannot build this model: {_first_line(error)}"
        raise InputError(rule, source=f"{folder}/config.json") from None
    import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS.register(attention, FUNCTIONS[attention])
    model.config._attn_implementation = attention  # noqa: SLF001 - where transformers keeps the choice
    model.eval()
    tensors: dict[str, torch.Tensor] = model.state_dict()
    skeleton = Skeleton(model, getattr(model, model.base_model_prefix, None), tensors, folder)
    _check(skeleton)
    return skeleton


def _check(skeleton: Skeleton) -> None:
    source = f"{skeleton.source}/config.json"
    missing = [
        part for part in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(skeleton.base, part)
    ] + [part for part in ("lm_head",) if not hasattr(skeleton.whole, part)]
    if missing:
        rule = "only decoders with embed_tokens, layers, norm, rotary_emb and lm_head are executed; "
        rule += f"this one has no {missing[0]}"
        raise InputError(rule, source=source, field="architectures", value=type(skeleton.whole).__name__)
    for layer in range(len(skeleton.base.layers)):
        name = skeleton.experts_name(layer)
        if not name:
            continue
        module = skeleton.base.layers[layer].get_submodule(name)
        stacked = hasattr(module, "gate_up_proj") and getattr(module, "has_gate", False)
        if not stacked or getattr(module, "has_post_expert_norm", False):
            rule = "experts must be gated products stacked as gate_up_proj and down_proj, without a norm behind them"
            raise InputError(rule, source=source, field="architectures", value=type(skeleton.whole).__name__)


def rebuilt_buffers(module: Any, config: Any) -> Any:  # noqa: ANN401 - transformers' rotary embedding and configuration
    """Return a module like `module`, whose buffers are not in checkpoints, with its buffers computed."""
    return type(module)(config=config)


def meta_tensors(module: torch.nn.Module) -> Iterator[str]:
    """Yield the names of parameters and buffers of `module` that are still without data."""
    for name, each in (*module.named_parameters(), *module.named_buffers()):
        if each.is_meta:
            yield name


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
