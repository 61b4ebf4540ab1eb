"""Bundles, and a Ray cluster, that the tests of several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from pipeline.imagery import s3
from pipeline.imagery.bands import Band
from pipeline.models.bundle import Bundle, ClassEntry, Target, save_bundle
from pipeline.models.networks import build_network
from tests.processes import ray_head
from tests.servers import Store, object_store
from tests.toys import COLOURS, HEIGHT, smooth_noise, whole_numbers, wide_logits

torch.set_num_threads(1)  # one stream a core, as actors run: OpenMP's barriers collapse on a shared machine

MakeBundle = Callable[..., Bundle]


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """A bundle with random weights and wide logits: `make_bundle("unet", bands=3, classes=5, width=8)`, or `target=HEIGHT`."""
    made: dict[object, Bundle] = {}

    def make(
        architecture: str,
        bands: int = 3,
        classes: int = 5,
        names: Sequence[str] = (),
        halo: int | None = None,
        exact: bool = False,
        target: Target | None = None,
        **arguments: int,
    ) -> Bundle:
        key = (architecture, bands, classes, tuple(names), halo, exact, target, tuple(sorted(arguments.items())))
        if key in made:
            return made[key]
        torch.manual_seed(1)
        network = build_network(architecture, bands, 1 if target else classes, **arguments)
        raw = exact or architecture == "identity"
        if exact:
            network = whole_numbers(network, 1) if architecture == "unet" else whole_numbers(network, 2, signs=(1.0, -1.0))
        elif not raw:
            network = wide_logits(network, bands, seed=5, wide=1 if target else 10)
        labels = list(names) or [f"band_{number}" for number in range(1, bands + 1)]
        made[key] = save_bundle(
            tmp_path_factory.mktemp(architecture) / "bundle",
            network,
            architecture=architecture,
            arguments=arguments,
            bands=[Band(name, mean=0.0 if raw else 128.0, std=1.0 if raw else 50.0) for name in labels],
            classes=target or [ClassEntry(number, f"class {number}", COLOURS[number % len(COLOURS)]) for number in range(classes)],
            sample_CHW=torch.from_numpy(smooth_noise(3, (bands, 128, 128)).astype(np.float32)),
            halo=halo,
        )
        return made[key]

    return make


@pytest.fixture(scope="session")
def unet(make_bundle: MakeBundle) -> Bundle:
    """A small U-Net of stride 8 and exact halo 48 px."""
    return make_bundle("unet", bands=3, classes=5, width=8, depth=3)


@pytest.fixture(scope="session")
def exact_unet(make_bundle: MakeBundle) -> Bundle:
    """The same with weights for which fp32 is exact, so that masks can be compared bit for bit on any machine."""
    return make_bundle("unet", bands=3, classes=5, exact=True, width=8, depth=3)


@pytest.fixture(scope="session")
def identity(make_bundle: MakeBundle) -> Bundle:
    """The network whose mask is its first band."""
    return make_bundle("identity", bands=1, classes=250)


@pytest.fixture(scope="session")
def regression(make_bundle: MakeBundle) -> Bundle:
    """The small U-Net with one output, a height in metres."""
    return make_bundle("unet", bands=3, target=HEIGHT, width=8, depth=3)


@pytest.fixture(scope="session")
def exact_regression(make_bundle: MakeBundle) -> Bundle:
    """The same with weights for which fp32 is exact."""
    return make_bundle("unet", bands=3, exact=True, target=HEIGHT, width=8, depth=3)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """An S3 server with a proxy before it that injects faults. This process may use it too: it forgets the one of another module."""
    s3._connected.cache_clear()
    s3._endpoint.cache_clear()
    with object_store() as store:
        yield store


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[dict[str, str]]:
    """A cluster of one node with two cores, and what a user of it has in the environment; it ends with the session."""
    with ray_head() as environment:
        yield environment
