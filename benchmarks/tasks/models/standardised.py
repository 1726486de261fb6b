"""Weight standardisation (Qiao et al. 2019)."""

import torch
from torch import Tensor, nn


class StandardisedConv2d(nn.Conv2d):
    """A convolution by weights of mean 0 and variance 1 in each output channel; a norm behind it gives the scale."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return self._conv_forward(x, (weight - mean) / torch.sqrt(variance + 1e-5), self.bias)


def standardise(model: nn.Module) -> nn.Module:
    """``model`` with standardised weights in each convolution; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = StandardisedConv2d
    return model
