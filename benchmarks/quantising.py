"""Networks that simulate int8, as quantisation-aware training has them: what OpenVINO runs in int8."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils import _pytree as pytree

__all__ = ["quantised"]

NORMS = nn.modules.batchnorm._BatchNorm
HEAVY = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, F.conv2d, F.conv_transpose2d, F.linear)
RELUS = (nn.ReLU, F.relu, torch.relu)
"""What is quantised, with what it reads and makes. Sums and products stay: where a number is added or multiplied by,
torch.ao takes the wrong range.
"""


def quantised(model: nn.Module, batches: Sequence[Any]) -> nn.Module:
    """A copy in eval mode, norms folded into convolutions: weights per channel, activations per tensor, 256 levels.

    By torch.ao's graph mode, for networks that torch.fx follows. Activations reach as far as in these batches of
    inputs, each a tensor or several.
    """
    from torch.ao import quantization
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    activation = quantization.FusedMovingAvgObsFakeQuantize.with_args(
        observer=quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255
    )
    weight = quantization.FusedMovingAvgObsFakeQuantize.with_args(
        observer=quantization.MovingAveragePerChannelMinMaxObserver,
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    heavy = quantization.QConfigMapping()
    for kind in (*HEAVY, *RELUS):
        heavy.set_object_type(kind, quantization.QConfig(activation, weight))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.ao says that it will move
        inputs = [tuple(pytree.tree_leaves(batch)) for batch in batches]
        made = prepare_qat_fx(_folded(model).train(), heavy, inputs[0]).eval()
        for each in inputs:
            made(*each)
    return made.apply(quantization.disable_observer)


def _folded(model: nn.Module) -> fx.GraphModule:
    """The network in eval mode with every batch norm folded into the convolution before it, transposed ones too."""
    graph = fx.symbolic_trace(copy.deepcopy(model).eval())
    modules = dict(graph.named_modules())
    for norm in [node for node in graph.graph.nodes if isinstance(modules.get(str(node.target)), NORMS)]:
        before, bn = norm.all_input_nodes[0], modules[str(norm.target)]
        made = modules.get(str(before.target))
        if isinstance(made, nn.modules.conv._ConvNd) and len(before.users) == 1:
            graph.set_submodule(str(before.target), fuse_conv_bn_eval(made, bn, transpose=made.transposed))
            norm.replace_all_uses_with(before)
            graph.graph.erase_node(norm)
    graph.recompile()
    return graph
