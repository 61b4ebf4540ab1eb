"""TerraTorch: the whole scene in memory, `tiled_inference` with its own crop, stride, batch and blending."""

from __future__ import annotations

from exported import Network, clock, parser, read_whole, report, write_mask
from terratorch.tasks.tiled_inference import tiled_inference


def main() -> None:
    options = parser(__doc__, tile=224).parse_args()
    network = Network(options.network)
    began = clock()
    image_BCHW, profile = read_whole(options.scene, network)
    logits_BKHW = tiled_inference(network, image_BCHW, crop=options.tile, stride=options.tile - 32)
    write_mask(options.output, logits_BKHW[0].argmax(0).numpy(), profile)
    report("terratorch", began)


if __name__ == "__main__":
    main()
