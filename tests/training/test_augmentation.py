"""Image and mask change alike, any number of bands, and never into labels that were not there."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from pipeline.errors import Refused
from pipeline.training.augmentation import Augmentation

GEOMETRIES = ["turn", "flip", "rotate=180", "rotate=20", "scale=0.5:2", "turn,rotate=45,scale=0.7:1.5", "flip,rotate=10"]
VALUES = [
    "brightness=0.5",
    "contrast=0.8",
    "blur=1",
    "noise=0.3",
    "band_dropout=0.5",
    "brightness=1,contrast=1,blur=0.5,noise=1,band_dropout=0.3",
]


def fields_of(bands: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth normalised bands: sums of slow waves that change by less than 0.25 from a pixel to the next."""
    random = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    planes = []
    for _ in range(bands):
        angle, phase = random.uniform(0, 2 * np.pi, 2)
        planes.append(1.5 * np.sin(0.12 * (rows * np.cos(angle) + cols * np.sin(angle)) + phase))
    return torch.from_numpy(np.stack(planes).astype(np.float32))


def labels_by(image_CHW: torch.Tensor) -> torch.Tensor:
    """Classes that the image itself tells: which of three ranges its first band is in."""
    return torch.bucketize(image_CHW[0].contiguous(), torch.tensor([-0.5, 0.5])).to(torch.uint8)


@pytest.mark.parametrize("bands", [1, 2, 3, 13])
@pytest.mark.parametrize("how", GEOMETRIES)
def test_image_and_mask_are_changed_alike(how: str, bands: int) -> None:
    """Labels that follow from the image follow from the changed image, but for a pixel at their edges."""
    augmentation = Augmentation.parse(how)
    for seed in range(8):
        torch.manual_seed(seed)
        zoom = augmentation.zoom()
        image_CHW = fields_of(bands, round(64 / zoom), round(64 / zoom), seed)
        changed_CHW, labels_HW = augmentation(image_CHW, labels_by(image_CHW), (64, 64))
        assert changed_CHW.shape == (bands, 64, 64) and labels_HW.shape == (64, 64) and labels_HW.dtype == torch.uint8
        assert type(changed_CHW) is type(labels_HW) is torch.Tensor
        known_HW = labels_HW != 255
        inner_HW = -torch.nn.functional.max_pool2d(-known_HW[None].float(), 3, 1, 1)[0] > 0  # a pixel away from what was filled in
        sure_HW = ((changed_CHW[0].abs() - 0.5).abs() > 0.5) & inner_HW
        assert sure_HW.sum() > 300
        assert (labels_by(changed_CHW) == labels_HW)[sure_HW].all()


@pytest.mark.parametrize("how", ["turn", "flip"])
@pytest.mark.parametrize("size", [(12, 12), (12, 20), (1, 1), (7, 1)])
def test_orientations_move_pixels_and_make_none(how: str, size: tuple[int, int]) -> None:
    """Against numpy: of a square all eight orientations come, of an oblong the four that keep its shape; all of them, and equally often."""
    height, width = size
    image_CHW = torch.arange(2 * height * width, dtype=torch.float32).reshape(2, height, width)
    labels_HW = (image_CHW[0] % 5).to(torch.uint8)
    plain = image_CHW.numpy()
    allowed = [plain, plain[:, :, ::-1]]
    if how == "turn":
        allowed += [flipped[:, ::-1] for flipped in allowed]
        allowed += [flipped.transpose(0, 2, 1) for flipped in allowed] if height == width else []
    seen = {each.tobytes(): 0 for each in allowed}
    torch.manual_seed(1)
    for _ in range(80 * len(seen)):
        changed_CHW, changed_HW = Augmentation.parse(how)(image_CHW, labels_HW, size)
        assert torch.equal(changed_HW, (changed_CHW[0] % 5).to(torch.uint8))
        seen[changed_CHW.contiguous().numpy().tobytes()] += 1
    assert min(seen.values()) > 40


def test_nothing_by_default() -> None:
    image_CHW = fields_of(3, 20, 30)
    state = torch.get_rng_state()
    for augmentation in (Augmentation(), Augmentation.parse("none"), Augmentation.parse("")):
        changed_CHW, labels_HW = augmentation(image_CHW, labels_by(image_CHW), (20, 30))
        assert torch.equal(changed_CHW, image_CHW) and torch.equal(labels_HW, labels_by(image_CHW)) and augmentation.zoom() == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_rotation_leaves_ignored_corners_that_hold_the_mean() -> None:
    """By 45 degrees the corners of a square are outside of it; a fifth of its area is, and what is in the middle is not."""
    image_CHW, labels_HW = torch.full((4, 64, 64), 3.0), torch.full((64, 64), 2, dtype=torch.uint8)
    most = 0.0
    for seed in range(30):
        torch.manual_seed(seed)
        changed_CHW, changed_HW = Augmentation(rotate=45)(image_CHW, labels_HW, (64, 64))
        outside_HW = changed_HW == 255
        assert set(changed_HW.unique().tolist()) <= {2, 255} and (changed_HW[16:48, 16:48] == 2).all()
        assert (changed_CHW[:, ~outside_HW] > 0).all()
        deep_HW = torch.nn.functional.max_pool2d((~outside_HW)[None].float(), 5, 1, 2)[0] == 0
        assert (changed_CHW[:, deep_HW] == 0).all()
        most = max(most, float(outside_HW.float().mean()))
    assert 0.15 < most < 0.19  # at 45 degrees 3 - 2 * sqrt(2) = 0.172 of it


@pytest.mark.parametrize("how", [*GEOMETRIES, *VALUES])
def test_no_label_appears_and_ignored_ones_stay_ignored(how: str) -> None:
    """Ids are never mixed: of classes 0 and 200 no class 100 is made. A mask that is ignored all over stays so."""
    augmentation = Augmentation.parse(how)
    labels_HW = torch.from_numpy(np.random.default_rng(0).choice(np.array([0, 200], np.uint8), (40, 40)))
    for seed in range(6):
        torch.manual_seed(seed)
        assert set(augmentation(torch.zeros(2, 40, 40), labels_HW, (32, 32) if "scale" in how else (40, 40))[1].unique().tolist()) <= {
            0,
            200,
            255,
        }
        assert (augmentation(torch.zeros(2, 40, 40), torch.full_like(labels_HW, 255), (40, 40))[1] == 255).all()


@pytest.mark.parametrize("bands", [1, 3, 7])
@pytest.mark.parametrize("how", VALUES)
def test_values_change_and_labels_do_not(how: str, bands: int) -> None:
    image_CHW, changed = fields_of(bands, 32, 48), 0
    kept_CHW = image_CHW.clone()
    for seed in range(6):
        torch.manual_seed(seed)
        changed_CHW, labels_HW = Augmentation.parse(how)(image_CHW, labels_by(image_CHW), (32, 48))
        assert torch.equal(labels_HW, labels_by(image_CHW)) and changed_CHW.isfinite().all() and changed_CHW.shape == image_CHW.shape
        changed += not torch.equal(changed_CHW, image_CHW)
    assert torch.equal(image_CHW, kept_CHW) and (changed > 3 or (bands == 1 and how.startswith("band")))


def many(how: str, image_CHW: torch.Tensor, count: int = 200) -> torch.Tensor:
    torch.manual_seed(0)
    labels_HW = torch.zeros(image_CHW.shape[1:], dtype=torch.uint8)
    return torch.stack([Augmentation.parse(how)(image_CHW, labels_HW, (image_CHW.shape[1], image_CHW.shape[2]))[0] for _ in range(count)])


def test_brightness_adds_and_contrast_multiplies_within_their_limits() -> None:
    image_CHW = fields_of(3, 16, 16)
    shifts = (many("brightness=0.4", image_CHW) - image_CHW).flatten(1)
    assert (shifts.std(dim=1) < 1e-6).all() and shifts.abs().max() <= 0.4 + 1e-6 and shifts.min() < -0.3 and shifts.max() > 0.3
    contrasted = many("contrast=0.5", image_CHW)
    torch.testing.assert_close(contrasted.mean(dim=(2, 3)), image_CHW.mean(dim=(1, 2)).expand(200, 3), atol=1e-5, rtol=0)
    factors = contrasted.std(dim=(2, 3)) / image_CHW.std(dim=(1, 2))
    assert (factors.std(dim=1) < 1e-5).all()
    assert 1 / 1.5 - 1e-5 <= factors.min() < 0.75 and 1.35 < factors.max() <= 1.5 + 1e-5 and 0.3 < (factors[:, 0] > 1).float().mean() < 0.7


def test_noise_has_the_spread_that_was_asked_for() -> None:
    spreads = many("noise=0.2", torch.zeros(2, 40, 40), 50).flatten(1).std(dim=1)
    assert spreads.max() <= 0.21 and spreads.max() > 0.17 and spreads.min() < 0.05


def test_blur_smooths_as_often_as_was_asked_for() -> None:
    image_CHW = torch.randn(2, 24, 24, generator=torch.Generator().manual_seed(0))
    spreads = many("blur=0.4", image_CHW).flatten(1).std(dim=1)
    touched = (spreads < image_CHW.std() - 1e-4).float().mean()
    assert 0.25 < touched < 0.5 and spreads.max() <= image_CHW.std() + 1e-5


def test_dropped_bands_hold_their_mean_and_one_band_is_always_left() -> None:
    images_NCHW = many("band_dropout=0.6", torch.ones(4, 5, 5), 400)
    left_NC = images_NCHW.amax(dim=(2, 3))
    assert torch.equal(images_NCHW, left_NC[:, :, None, None].expand_as(images_NCHW)) and set(left_NC.unique().tolist()) == {0, 1}
    assert (left_NC.sum(dim=1) > 0).all()
    expected = (0.4 + 0.6**4) / 1  # all four bands dropped: none is
    assert left_NC.mean().item() == pytest.approx(expected, abs=0.06)


def test_zoom_is_even_on_a_logarithmic_scale() -> None:
    torch.manual_seed(0)
    zooms = np.log2([Augmentation(scale=(0.5, 2.0)).zoom() for _ in range(600)])
    assert zooms.min() >= -1 and zooms.max() <= 1
    assert np.percentile(zooms, [25, 50, 75]) == pytest.approx([-0.5, 0, 0.5], abs=0.13)


@pytest.mark.parametrize("how", [*GEOMETRIES, *VALUES])
def test_the_generator_decides(how: str) -> None:
    image_CHW = fields_of(3, 40, 40)
    found = []
    for seed in (1, 1, 2, 3, 4, 5, 6):
        torch.manual_seed(seed)
        found.append(Augmentation.parse(how)(image_CHW, labels_by(image_CHW), (40, 40))[0])
    assert torch.equal(found[0], found[1])
    assert how == "scale=0.5:2" or not all(torch.equal(found[0], other) for other in found[2:])  # which is drawn by `zoom`


def test_words_say_what_happens() -> None:
    words = "turn, flip,rotate=10,scale=0.5:2,brightness=0.1,contrast=0.2,blur=0.3,noise=0.05,band-dropout=0.1"
    assert Augmentation.parse(words) == Augmentation(True, True, 10, (0.5, 2), 0.1, 0.2, 0.3, 0.05, 0.1)
    assert Augmentation.parse("scale=2").scale == (1, 2) and Augmentation.parse("scale=0.5").scale == (0.5, 1)
    assert len(fields(Augmentation)) == len(words.split(","))  # none is left out above


@pytest.mark.parametrize(
    "words",
    [
        "spin", "turn=1", "rotate", "rotate=", "rotate=fast", "rotate=181", "rotate=-5", "rotate=nan", "scale=2:0.5", "scale=0",
        "scale=1:2:3", "scale=0.5:inf", "blur=2", "noise=-1", "band_dropout=1", "turn;flip", "contrast=-0.1", "brightness=1e9",
    ],
)  # fmt: skip
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(Refused, match=r"^--augment "):
        Augmentation.parse(words)


@pytest.mark.parametrize("how", [*GEOMETRIES, *VALUES])
def test_numbers_are_moved_as_class_ids_are_and_never_mixed(how: str) -> None:
    """The numbers that class ids stand for, changed, are those that the changed ids stand for; unknown where these are ignored."""
    augmentation, stands_for = Augmentation.parse(how), torch.tensor([-1e6, 0.125, 3e5, *[torch.nan] * 253])
    for seed in range(4):
        image_CHW = fields_of(2, 48, 48, seed)
        ids_HW = labels_by(image_CHW)
        ids_HW[10:20, 5:30] = 255
        numbers_HW = stands_for[ids_HW.long()]
        changed = []
        for labels_HW in (ids_HW, numbers_HW):
            torch.manual_seed(seed)
            changed.append(augmentation(image_CHW, labels_HW, (48, 48)))
        assert torch.equal(changed[0][0], changed[1][0]) and changed[1][1].dtype == torch.float32
        torch.testing.assert_close(changed[1][1], stands_for[changed[0][1].long()], rtol=0, atol=0, equal_nan=True)
