"""EoMT: a plain ViT whose last blocks process the queries, too (arXiv 2503.19108).

The paper's network needs neither a pixel decoder nor a transformer decoder. Before each of the last
blocks, the queries and the patches predict masks, and the block lets every query attend only to
the patches inside its mask. In the course of a training, a growing share of the queries attends to
all patches, block by block, so that the trained network predicts masks once, after the last block.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import kernels
from model.backbone import Backbone
from model.families import PATCH
from model.masked_decoder import Predictions, shrink
from model.network import Network
from model.network_settings import EomtSettings, ModelSettings
from model.norms import ChannelNorm
from model.parts import freeze
from model.recompute import recompute
from model.segment import STRIDE
from model.targets import Draw, draw_rows
from model.token_linear import TokenLinear


def masked_shares(progress: float, settings: EomtSettings) -> list[float]:
    """Return the share of the queries that each of the last blocks masks.

    It is 1 until the block's start, then (1 - t)^power for t from 0 to 1, and 0 from its end on.
    The starts of the blocks have equal distances.

    Args:
        progress: Number of steps that were taken, divided by the number of all steps.
        settings: The number of the blocks, the first start, the last end, the span of every block
            as a part of all steps, and the power.
    """
    first, span, count = settings.anneal_start, settings.anneal_span, settings.blocks
    distance = (settings.anneal_end - span - first) / max(1, count - 1)
    ends = [first + i * distance + span for i in range(count)]
    return [min(1.0, max(0.0, (end - progress) / span)) ** settings.anneal_power for end in ends]


class Eomt(Network):
    """An encoder-only mask transformer.

    Args:
        settings: The architecture; `dim` and the settings of the decoders are not used.
        num_classes: Number of classes, things and stuff together.

    Raises:
        ValueError: The backbone cannot be built or loaded, or has too few blocks; names the
            setting.
    """

    mask_strides = (PATCH,)
    masked_share: Tensor

    def __init__(self, settings: ModelSettings, num_classes: int) -> None:
        super().__init__()
        kernels.choices()  # an unknown value of M2F_KERNELS is refused here, before the first step
        self.settings = settings.eomt
        self.recomputes = settings.checkpoint_activations
        self.backbone = Backbone(
            settings.backbone,
            settings.backbone_config,
            weights=settings.weights_folder,
            drop_path=settings.drop_path,
            has_pyramid=False,
        )
        self.tokens = PlainViT(self.backbone.body)
        if len(self.tokens.blocks) < self.settings.blocks:
            raise ValueError(
                f"model.eomt.blocks={self.settings.blocks}: model.backbone={settings.backbone} has "
                f"only {len(self.tokens.blocks)} blocks"
            )
        dim = self.backbone.channels[PATCH]
        self.masked_decoder = Heads(num_classes, settings.queries, dim)
        self.upscale = nn.Sequential(Upscale(dim), Upscale(dim))
        # Part of the state, so that a checkpoint of any step is scored as it was trained.
        self.register_buffer("masked_share", torch.ones(self.settings.blocks))
        self._shares = [1.0] * self.settings.blocks  # its values, without waiting for a GPU
        self.register_load_state_dict_post_hook(lambda module, _: module._read_shares())
        freeze(self, settings.freeze)

    def train(self, mode: bool = True) -> "Eomt":
        """Set the mode, and read the masked shares, which a checkpoint may have changed."""
        self._read_shares()
        return super().train(mode)

    def _read_shares(self) -> None:
        if not self.masked_share.is_meta:
            self._shares = self.masked_share.tolist()

    def anneal(self, progress: float) -> None:
        """Set the share of the queries that each block masks when a part of a training is done."""
        self._shares = masked_shares(progress, self.settings)
        self.masked_share.copy_(torch.tensor(self._shares))

    def predict(self, images: Tensor, draw: Draw | None = None) -> Predictions:
        """Return the predictions for images whose size is known to fit.

        Training predicts before each of the last blocks and after the last one; otherwise, blocks
        that mask no query need no prediction.

        Args:
            images: Normalized images [B, 3, H, W].
            draw: Random numbers of training, of the purposes "drop_path" and "attention/i" with the
                shape (queries) for block i; torch's generator if None.
        """
        grid = images.shape[2] // PATCH, images.shape[3] // PATCH
        self.backbone.draw_paths(images, draw)
        x, positions = self.tokens.embed(images)
        query = self.masked_decoder.query_feat.weight.expand(x.shape[0], -1, -1)
        first = len(self.tokens.blocks) - self.settings.blocks
        parts: list[Part] = []
        permitted = None
        for i, block in enumerate(self.tokens.blocks):
            if i == first:
                x = torch.cat((query, x), dim=1)
            if i >= first and (self.training or self._shares[i - first] > 0):
                parts.append(self._part(x, grid))
                free = self._free(i - first, x.shape[0], images.device, draw)
                permitted = self._permitted(parts[-1], free, x.shape[1])
            run = partial(block, attention_mask=permitted, **positions)
            x = recompute(run, x) if self.recomputes else run(x)
        return joined([*parts, self._part(x, grid)])

    def _part(self, x: Tensor, grid: tuple[int, int]) -> "Part":
        """Return what tokens x [B, N, C] predict: the queries, others, and the patches."""
        x = self.tokens.norm(x)
        patches = x[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        classes, embeddings = self.masked_decoder(x[:, : self.masked_decoder.queries])
        return Part(classes, embeddings, self.upscale(patches))

    def _free(self, block: int, images: int, device: torch.device, draw: Draw | None) -> Tensor:
        """Return the queries that a block does not mask, bool [B, Q].

        Training draws them. Otherwise they are the last ones, the same for every image.
        """
        queries, share = self.masked_decoder.queries, self._shares[block]
        if not self.training:
            order = (torch.arange(queries, device=device) + 0.5) / queries
            return (order >= share).expand(images, -1)
        if draw is None:
            return torch.rand(images, queries, device=device) >= share
        return draw_rows(draw, f"attention/{block}", [1] * images, (queries,)) >= share

    def _permitted(self, part: "Part", free: Tensor, tokens: int) -> Tensor:
        """Return which tokens may attend to which, bool [B, 1, tokens, tokens].

        A query that is not free attends to the other queries, the tokens before the patches, and
        the patches inside its mask, which may be none. All other tokens attend to all.
        """
        # Resizing commutes with the product that makes the logits, so the features are resized.
        guide = shrink(part.features.detach(), PATCH // STRIDE).flatten(2)  # [B, C, N]
        inside = (part.embeddings.detach() @ guide > 0) | free[..., None]  # [B, Q, N]
        others = tokens - inside.shape[2], 0, 0, tokens - inside.shape[1]
        return F.pad(inside, others, value=True)[:, None]


class Part(NamedTuple):
    """One prediction."""

    classes: Tensor  # [B, Q, K + 1]
    embeddings: Tensor  # [B, Q, C]
    features: Tensor  # [B, C, H/4, W/4]


def joined(parts: Sequence[Part]) -> Predictions:
    """Return L predictions, each of which has mask features, as if all had the same ones.

    The features lie side by side, [B, L·C, H/4, W/4], and the embeddings of a prediction are 0 for
    the channels of the others, so that the products are the same.
    """
    dim, last = parts[0].embeddings.shape[2], len(parts) - 1
    embeddings = [
        F.pad(part.embeddings, (i * dim, (last - i) * dim)) for i, part in enumerate(parts)
    ]
    return Predictions(
        torch.stack([part.classes for part in parts]),
        torch.stack(embeddings),
        torch.cat([part.features for part in parts], dim=1),
    )


class PlainViT:
    """The steps of a plain ViT of transformers, whose own `forward` has no step for queries.

    Args:
        body: A backbone with rotary positions (DINOv3), or with learned ones.
    """

    def __init__(self, body: Any) -> None:
        self.rotary = getattr(body, "rope_embeddings", None)
        self.embeddings = body.embeddings
        self.blocks: Any = body.encoder.layer if self.rotary is None else body.model.layer
        self.norm: nn.Module = body.layernorm if self.rotary is None else body.norm

    def embed(self, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the tokens [B, N, C] of images, and what every block needs beside them."""
        x = self.embeddings(images)
        if self.rotary is None:
            return x, {}
        return x, {"position_embeddings": self.rotary(images)}


class Heads(nn.Module):
    """The queries, and what is predicted from them."""

    def __init__(self, num_classes: int, queries: int, dim: int) -> None:
        super().__init__()
        self.queries = queries
        self.query_feat = nn.Embedding(queries, dim)
        self.class_head = TokenLinear(dim, num_classes + 1)
        self.mask_head = nn.Sequential(
            TokenLinear(dim, dim),
            nn.GELU(),
            TokenLinear(dim, dim),
            nn.GELU(),
            TokenLinear(dim, dim),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits and mask embeddings of queries [B, Q, C]."""
        return self.class_head(x), self.mask_head(x)


class Upscale(nn.Module):
    """A map of twice the height and width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = ChannelNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, 2h, 2w] from x [B, C, h, w]."""
        return self.norm(self.conv2(F.gelu(self.conv1(x))))
