"""Classes by rules over indices, as a network: the class of a pixel is the first whose condition holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.imagery.expressions import Expression

SURE = 10.0  # the logit of the class that holds, against 0: a probability above 0.99


class IndexRules(nn.Module):
    """`conditions` are formulas over the band `names`, one for each class but the last, which is what is left.

    A formula that has no value, such as 0 / 0, satisfies no condition. A pixel that is not finite has logits that are not.
    """

    def __init__(self, bands: int, classes: int, names: Sequence[str], conditions: Sequence[str]):
        super().__init__()
        if len(names) != bands or len(conditions) != classes - 1:
            raise ValueError(f"{len(names)} names and {len(conditions)} conditions do not fit {bands} bands and {classes} classes")
        self.names = [name.lower() for name in names]
        self.conditions = [Expression.parse(text) for text in conditions]
        for condition in self.conditions:
            unknown = sorted(set(condition.names) - set(self.names))
            if unknown or not condition.is_condition:
                why = f"names {', '.join(unknown)}, which is no band" if unknown else "is a number, not true or false of a pixel"
                raise ValueError(f"condition {condition.text!r} {why}; there are {', '.join(self.names)}")

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        values = {name: batch_BCHW[:, number] for number, name in enumerate(self.names)}
        left = torch.ones_like(batch_BCHW[:, 0], dtype=torch.bool)
        chosen = []
        for condition in self.conditions:
            holds = condition(values) & left
            chosen.append(holds)
            left = left & ~holds
        logits_BKHW = torch.stack([*chosen, left], dim=1).to(batch_BCHW.dtype) * SURE
        return logits_BKHW + 0 * batch_BCHW.sum(dim=1, keepdim=True)
