"""torchgeo: RasterDataset, GridGeoSampler and DataLoader, and the loop that its users write to put the chips together.

A chip overwrites what an earlier one left; chips start at the scene's lower left and reach over its other edges, filled with 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import rasterio
import torch
from exported import Network, clock, parser, report, write_mask
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GridGeoSampler


def main() -> None:
    words = parser(__doc__, tile=512)
    words.add_argument("--stride", type=int, help="px (default: the tile, as the sampler's)")
    options = words.parse_args()
    network = Network(options.network)
    tile = options.tile

    def normalised(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "image": torch.from_numpy(network.normalise(sample["image"].numpy()))}

    began = clock()
    with rasterio.open(options.scene) as dataset:
        profile, (left, _, _, top), (width_m, height_m) = dataset.profile, dataset.bounds, dataset.res
    chips = RasterDataset(str(options.scene), transforms=normalised)
    sampler = GridGeoSampler(chips, size=tile, stride=options.stride)
    mask_HW = np.zeros((profile["height"], profile["width"]), np.uint8)
    with torch.inference_mode():
        for batch in DataLoader(chips, batch_size=4, sampler=sampler, collate_fn=stack_samples):
            ids_BHW = network(batch["image"]).argmax(1).numpy()
            for (x, y, _), ids_HW in zip(batch["bounds"], ids_BHW, strict=True):
                row, col = round((top - y.stop) / height_m), round((x.start - left) / width_m)
                part_HW = mask_HW[max(row, 0) : row + tile, col : col + tile]
                part_HW[:] = ids_HW[max(-row, 0) :, : part_HW.shape[1]]
    write_mask(options.output, mask_HW, profile)
    report("torchgeo", began)


if __name__ == "__main__":
    main()
