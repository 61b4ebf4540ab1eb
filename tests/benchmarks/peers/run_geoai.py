"""geoai: its own `predict_geotiff`, from file to file, with its own tile, overlap, batch and blending."""

from __future__ import annotations

from exported import Network, clock, parser, report
from geoai.inference import predict_geotiff


def main() -> None:
    options = parser(__doc__, tile=256).parse_args()
    network = Network(options.network)
    began = clock()
    predict_geotiff(
        network, str(options.scene), str(options.output), tile_size=options.tile, num_classes=network.classes,
        output_dtype="uint8", output_nodata=255, preprocess_fn=network.normalise,
        postprocess_fn=lambda logits_KHW: logits_KHW.argmax(0), verbose=False,
    )  # fmt: skip
    report("geoai-py", began)


if __name__ == "__main__":
    main()
