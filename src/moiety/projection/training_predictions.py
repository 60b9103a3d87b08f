"""What a training step takes for predicting tokens beyond the next (multi-token prediction, DeepSeek-V3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cost.roofline import compute_seconds
from moiety.graph.model_flops import attention_flops_per_token
from moiety.graph.op import Gemm
from moiety.projection.training_work import LayerWork

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.cluster.cluster import Cluster
    from moiety.graph.layout import Layout
    from moiety.model.model import Model


def prediction_blocks(model: Model) -> tuple[int, ...]:
    """Return the kinds of layer that one prediction runs through: the last layer's, if that has both parts.

    In a hybrid that is the last layer of softmax attention and the last feed-forward part (Nemotron 3's
    `mtp_hybrid_override_pattern` is `*E`).
    """
    last = model.layers[-1]
    if last.attention is not None and last.feed_forward is not None:
        return (model.layer_blocks[-1],)
    backwards = tuple(reversed(model.layer_blocks))
    attentions = {kind: model.blocks[kind].attention for kind in backwards}
    softmax = [kind for kind, each in attentions.items() if each is not None and each.kind != "linear"]
    feeding = [kind for kind in attentions if model.blocks[kind].feed_forward is not None]
    return (*softmax[:1], *feeding[:1])


def prediction_flops_per_token(model: Model, context_tokens: float) -> float:
    """Return the forward FLOPs of one prediction: two rows joined into one, its layers, and the head once more."""
    met = 2 * model.hidden_size**2 + model.hidden_size * model.vocab_size
    scores = 0.0
    for block in (model.blocks[kind] for kind in prediction_blocks(model)):
        met += block.num_active_parameters(model.hidden_size)
        if block.attention is not None:
            scores += attention_flops_per_token(block.attention, context_tokens)
    return 2.0 * met + scores


def joined_rows_work(model: Model, layout: Layout, cluster: Cluster, calibration: Calibration) -> LayerWork:
    """Return the product that makes a prediction's row of a hidden state and the next token's, forward and backward."""
    dtypes, hidden = layout.options.dtypes, model.hidden_size
    work = Gemm(layout.tokens, layout.share(hidden), 2 * hidden, dtypes.weights, dtypes.activations, times=3)
    return LayerWork(products_s=compute_seconds(work, cluster.device, calibration), launches=3)
