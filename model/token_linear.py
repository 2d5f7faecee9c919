"""Linear layers of token sequences."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels import REFERENCE, implementation


class TokenLinear(nn.Linear):
    """`nn.Linear` that a CPU computes as a 1x1 convolution if the input is float32 [B, N, C].

    torch gives convolutions to oneDNN and matrix products to MKL, which takes twice as long on
    AMD processors. An odd number of tokens N takes the matrix product.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] for `x` [..., in_features]."""
        if (
            implementation("token_linear", x.device) == REFERENCE
            or x.ndim != 3
            or x.shape[1] % 2
            or x.dtype != torch.float32
        ):
            return super().forward(x)
        image = x.unflatten(1, (-1, 2)).permute(0, 3, 1, 2)  # [B, C, N / 2, 2], channels last
        y = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).flatten(1, 2)
