"""Linear layers of token sequences."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, whose products of [B, N, C] in float32 a CPU makes as a 1x1 convolution.

    Convolutions go to oneDNN, products to MKL, which on AMD's cores takes twice as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1] % 2 or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        image = x.unflatten(1, (-1, 2)).permute(0, 3, 1, 2)  # [B, C, N / 2, 2], channels last
        y = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).flatten(1, 2)
