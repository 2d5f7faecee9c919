"""Transformer decoder with masked attention (Mask2Former, arXiv 2112.01527, section 3.2)."""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network_settings import MaskedDecoderSettings
from model.position import sine_encoding
from model.recompute import recompute
from model.token_linear import TokenLinear


class Predictions(NamedTuple):
    """Predictions of the initial queries and of every layer; the last one is the result.

    Mask logits are the products of embeddings and features, without bias. They are computed only
    for the queries and points that need them and are never kept as a whole.
    """

    class_logits: Tensor  # [L, B, Q, K + 1], last column = no object
    mask_embeddings: Tensor  # [L, B, Q, C]
    mask_features: Tensor  # [B, C, H/4, W/4]


class MaskedDecoder(nn.Module):
    """Decoder whose queries attend, in every layer, only inside the masks last predicted."""

    recomputes = False  # whether backward computes each layer again

    def __init__(
        self,
        num_classes: int,
        queries: int,
        dim: int,
        levels: int,
        settings: MaskedDecoderSettings,
    ) -> None:
        super().__init__()
        self.query_feat = nn.Embedding(queries, dim)
        self.query_embed = nn.Embedding(queries, dim)
        self.level_embed = nn.Embedding(levels, dim)
        self.layers = nn.ModuleList(DecoderLayer(dim, settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(dim)
        self.class_head = TokenLinear(dim, num_classes + 1)
        self.mask_head = nn.Sequential(
            TokenLinear(dim, dim),
            nn.ReLU(),
            TokenLinear(dim, dim),
            nn.ReLU(),
            TokenLinear(dim, dim),
        )

    def forward(self, memory: list[Tensor], mask_features: Tensor) -> Predictions:
        """Return the predictions.

        Args:
            memory: Feature maps [B, C, h, w], coarse to fine; each has half the size of the next,
                and the last one half the size of the mask features.
            mask_features: [B, C, H/4, W/4].
        """
        values, keys, guides = [], [], []
        for i, (x, embed) in enumerate(zip(memory, self.level_embed.weight, strict=True)):
            value = x.flatten(2).transpose(1, 2) + embed  # [B, h·w, C]
            position = sine_encoding(*x.shape[2:], x.shape[1], x.device, embed.dtype)
            # The attention mask needs mask logits at the size of the level. Resizing commutes with
            # the product that makes the logits, so the features are resized once, and the product
            # is small.
            guide = shrink(mask_features.detach(), 2 ** (len(memory) - i))
            values.append(value)
            keys.append(value + position)
            guides.append(guide.flatten(2))  # [B, C, h·w]
        position = self.query_embed.weight
        x = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)  # [B, Q, C]
        state = self.norm(x)
        states, embeddings = [state], [self.mask_head(state)]
        for i, layer in enumerate(self.layers):
            level = i % len(memory)
            permitted = attention_mask(embeddings[-1].detach() @ guides[level])
            run = partial(recompute, layer) if self.recomputes else layer
            x = run(x, position, keys[level], values[level], permitted)
            state = self.norm(x)
            states.append(state)
            embeddings.append(self.mask_head(state))
        class_logits = self.class_head(torch.stack(states))
        return Predictions(class_logits, torch.stack(embeddings), mask_features)

    def compile_blocks(self) -> None:
        """Run every layer through `torch.compile`."""
        for layer in self.layers:
            layer.compile(dynamic=False)


def shrink(x: Tensor, factor: int) -> Tensor:
    """Return [B, C, h, w] resized bilinearly to 1 / `factor` of its size.

    For an even factor this is the mean of the middle 2 x 2 pixels of every block.
    """
    first = factor // 2 - 1
    return F.avg_pool2d(x[:, :, first:, first:], 2, stride=factor)


def attention_mask(logits: Tensor) -> Tensor:
    """Return the pixels that each query may attend to.

    These are the pixels with a probability of at least 0.5, or all pixels if there are none. The
    probability is compared rather than the logit: a logit that is barely below 0 has a probability
    of 0.5 in floating point.

    Args:
        logits: [B, Q, pixels].

    Returns:
        bool [B, 1, Q, pixels], the same mask for every head.
    """
    permitted = logits.sigmoid() >= 0.5
    return (permitted | ~permitted.any(2, keepdim=True))[:, None]


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, and a feed-forward, each with residual and norm."""

    def __init__(self, dim: int, settings: MaskedDecoderSettings) -> None:
        super().__init__()
        self.cross_attn = Attention(dim, settings.heads)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, settings.heads)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = TokenLinear(dim, settings.feedforward)
        self.linear2 = TokenLinear(settings.feedforward, dim)
        self.norm3 = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, permitted: Tensor
    ) -> Tensor:
        """Return the next queries [B, Q, C].

        Args:
            x: Queries [B, Q, C].
            position: Position embeddings [Q, C] of the queries.
            keys: [B, pixels, C].
            values: [B, pixels, C].
            permitted: bool [B, 1, Q, pixels], from `attention_mask`.
        """
        x = self.norm1(x + self.cross_attn(x + position, keys, values, permitted))
        query = x + position
        x = self.norm2(x + self.self_attn(query, query, x))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class Attention(nn.Module):
    """Multi-head attention with one Boolean mask that all heads share."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = TokenLinear(dim, dim)
        self.k_proj = TokenLinear(dim, dim)
        self.v_proj = TokenLinear(dim, dim)
        self.out_proj = TokenLinear(dim, dim)
        # The published code initializes q, k, and v as one matrix of 3·dim rows.
        fused = math.sqrt(6 / (dim + 3 * dim))
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(linear.weight, -fused, fused)
        nn.init.xavier_uniform_(self.out_proj.weight)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.zeros_(linear.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, permitted: Tensor | None = None
    ) -> Tensor:
        """Return [B, Q, C] from query [B, Q, C], key and value [B, N, C].

        The mask `permitted` is bool [B, 1, Q, N], or None to permit all pairs.
        """
        q, k, v = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, n, C / heads]
            for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=permitted)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
