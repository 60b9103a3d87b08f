"""Slot maps in the forms that serving engines load, whose layers are numbered otherwise than ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.errors import InputError

if TYPE_CHECKING:
    from moiety.model.model import Model
    from moiety.placement.problem import SlotMap

MAP_KEY = "physical_to_logical_map"


def moe_layers(model: Model) -> tuple[int, ...]:
    """Return the index of each layer of the model that has experts."""
    return tuple(at for at, block in enumerate(model.layers) if block.moe is not None)


def moe_rows(num_rows: int, model: Model, source: str) -> list[int]:
    """Return which of a file's rows are MoE layers, where it has a row for each of them or for each layer."""
    layers = moe_layers(model)
    if num_rows == len(layers):
        return list(range(num_rows))
    if num_rows != model.num_layers:
        every = f" (of {model.num_layers} layers)" if model.num_layers != len(layers) else ""
        rule = f"has {num_rows} layers, the model {len(layers)} with experts{every}"
        raise InputError(rule, source=source, field="layers")
    return list(layers)


def expert_location(slot_map: SlotMap, model: Model | None) -> dict[str, object]:
    """Return what SGLang's `--init-expert-location` takes: the map under its key, a row for every layer of the model.

    SGLang finds a layer by its number in the model and passes every key on by name, so there is no other key and layers
    without experts get rows too, never used (`compute_initial_expert_location_metadata`,
    python/sglang/srt/eplb/expert_location.py).
    """
    if model is None:
        return {MAP_KEY: slot_map.tolist()}
    experts = int(slot_map.max()) + 1
    plain = [slot % experts for slot in range(slot_map.shape[1])]
    rows: dict[int, list[int]] = dict(zip(moe_layers(model), slot_map.tolist(), strict=True))
    return {MAP_KEY: [rows.get(layer, plain) for layer in range(model.num_layers)]}


def ascend_expert_map(slot_map: SlotMap, num_gpus: int) -> dict[str, object]:
    """Return what vllm-ascend's `expert_map_path` takes: for each MoE layer, counted from 0, the experts by device.

    It is the form in which vllm-ascend records its own maps (`_export_tensor_to_file`, vllm_ascend/eplb/adaptor).
    vLLM itself loads no map.
    """
    by_gpu = slot_map.reshape(len(slot_map), num_gpus, -1).tolist()
    layers = [
        {
            "layer_id": layer,
            "device_count": num_gpus,
            "device_list": [{"device_id": gpu, "device_expert": experts} for gpu, experts in enumerate(row)],
        }
        for layer, row in enumerate(by_gpu)
    ]
    return {"moe_layer_count": len(layers), "layer_list": layers}
