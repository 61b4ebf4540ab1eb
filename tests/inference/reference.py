"""What a network gives for a whole scene at once: the reference of law 2, for masks and for values."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.models.bundle import Bundle


@torch.inference_mode()
def whole_logits(bundle: Bundle, values_CHW: np.ndarray, valid_CHW: np.ndarray | None = None) -> torch.Tensor:
    """One forward pass over the scene, padded right and below to the stride, K x H x W; what is not valid is filled with the mean."""
    count, height, width = values_CHW.shape
    stride = bundle.reach.stride
    padded = torch.zeros(1, count, -(-height // stride) * stride, -(-width // stride) * stride)
    mean, std = (np.array([getattr(band, name) for band in bundle.bands]).reshape(-1, 1, 1) for name in ("mean", "std"))
    normal_CHW = (values_CHW.astype(np.float64) - mean) / std
    if valid_CHW is not None:
        normal_CHW = np.where(valid_CHW, normal_CHW, 0)
    padded[0, :, :height, :width] = torch.from_numpy(normal_CHW)
    return bundle.network()(padded)[0, :, :height, :width]
