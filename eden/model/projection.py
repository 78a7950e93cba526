"""ProjectionBlock: the bridge from CLIP's feature space into the language model's embedding space."""

import torch
from torch import nn
from transformers.activations import ACT2FN


class ProjectionBlock(nn.Module):
    """LayerNorm(Dv) -> Linear(Dv, D) -> GELU -> Linear(D, D).

    Shapes: image features [..., Dv] -> image embeddings [..., D]. For the real backbones Dv = 512, D = 3072.
    """

    def __init__(self, in_features: int, out_features: int, hidden_act: str = "gelu"):
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.linear_1 = nn.Linear(in_features, out_features)
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        # Cached features and frozen towers may be in another number format than a projector kept in fp32 to train.
        image_features = image_features.to(self.norm.weight.dtype)
        return self.linear_2(self.act(self.linear_1(self.norm(image_features))))
