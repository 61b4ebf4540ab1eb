"""MONAI: the whole scene in memory, `sliding_window_inference` with gaussian weights and a quarter of overlap."""

from __future__ import annotations

import torch
from exported import Network, clock, parser, read_whole, report, write_mask
from monai.inferers import sliding_window_inference


def main() -> None:
    options = parser(__doc__, tile=512).parse_args()
    network = Network(options.network)
    began = clock()
    image_BCHW, profile = read_whole(options.scene, network)
    with torch.inference_mode():
        logits_BKHW = sliding_window_inference(
            image_BCHW, roi_size=options.tile, sw_batch_size=4, predictor=network, overlap=0.25, mode="gaussian"
        )
    write_mask(options.output, logits_BKHW[0].argmax(0).numpy(), profile)
    report("monai", began)


if __name__ == "__main__":
    main()
