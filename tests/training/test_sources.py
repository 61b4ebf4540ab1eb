"""Images find their masks, however folders and lists are laid out, and what is amiss is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import Refused
from pipeline.training.sources import Pair, check_apart, find_pairs
from tests.toys import SHARED


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    return path


def laid_out(folder: Path, *names: str) -> Path:
    for name in names:
        picture(folder / name)
    return folder


def told(pairs: list[Pair], top: Path) -> dict[str, tuple[str, str]]:
    return {pair.name: (str(Path(pair.image.uri).relative_to(top)), str(pair.labels.relative_to(top))) for pair in pairs}


@pytest.mark.parametrize(
    ("images", "masks"), [("images", "masks"), ("Images", "LABELS"), ("img", "annotations"), ("image", "label"), ("scenes", "gt")]
)
def test_folders_side_by_side_at_any_depth(tmp_path: Path, images: str, masks: str) -> None:
    laid_out(
        tmp_path, *(f"{place}/{kind}/x {number}.png" for place in ("a/deep one", "b") for kind in (images, masks) for number in (1, 2))
    )
    expected = {
        f"{at}/{images}/x {n}.png": (f"{at}/{images}/x {n}.png", f"{at}/{masks}/x {n}.png") for at in ("a/deep one", "b") for n in (1, 2)
    }
    found = find_pairs(str(tmp_path))
    assert told(found, tmp_path) == expected and len(found) == 4


def test_sets_below_the_folders_of_images_and_masks(tmp_path: Path) -> None:
    """`images/train` and `masks/train`: all sets by the folder above, one by its own."""
    laid_out(tmp_path, *(f"{kind}/{part}/{number}.png" for kind in ("images", "labels") for part in ("train", "val") for number in (1, 2)))
    assert told(find_pairs(str(tmp_path)), tmp_path) == {
        f"images/{part}/{n}.png": (f"images/{part}/{n}.png", f"labels/{part}/{n}.png") for part in ("train", "val") for n in (1, 2)
    }
    found = told(find_pairs(str(tmp_path / "images" / "val")), tmp_path)
    assert found == {f"{n}.png": (f"images/val/{n}.png", f"labels/val/{n}.png") for n in (1, 2)}


@pytest.mark.parametrize("mark", ["", "_mask", "_L", "-labels", ".gt", "_GT", " mask"])
def test_a_mask_may_be_marked_and_of_another_format(tmp_path: Path, mark: str) -> None:
    laid_out(tmp_path, "photos/Street 1.JPEG", "photos/b.PNG", f"truth/Street 1{mark}.tif", f"truth/b{mark}.png", "truth/notes.tiff.png")
    (tmp_path / "truth/notes.tiff.png").unlink()
    (tmp_path / "photos" / "readme.txt").write_text("not an image")
    found = told(find_pairs(str(tmp_path / "photos"), str(tmp_path / "truth")), tmp_path)
    assert found == {
        "Street 1.JPEG": ("photos/Street 1.JPEG", f"truth/Street 1{mark}.tif"),
        "b.PNG": ("photos/b.PNG", f"truth/b{mark}.png"),
    }


def test_a_letter_at_a_names_end_is_no_mark(tmp_path: Path) -> None:
    """`hill` is not the mask of `hil`."""
    laid_out(tmp_path, "images/hil.png", "masks/hill.png")
    with pytest.raises(Refused, match=r"masks/hill\.png: no image of that name"):
        find_pairs(str(tmp_path))


def test_an_image_whose_own_name_is_marked_has_the_mask_of_that_name(tmp_path: Path) -> None:
    laid_out(tmp_path, "images/face_mask.png", "images/face.png", "masks/face_mask.png", "masks/face.png")
    assert all(Path(pair.image.uri).name == pair.labels.name for pair in find_pairs(str(tmp_path)))


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    laid_out(tmp_path, "a.jpg", "a_mask.png", "7_sat.jpg", "7_mask.png")
    assert told(find_pairs(str(tmp_path)), tmp_path) == {"a.jpg": ("a.jpg", "a_mask.png"), "7_sat.jpg": ("7_sat.jpg", "7_mask.png")}


@pytest.mark.parametrize(
    "line", ["images/a.png masks/a.png", "images/a.png,masks/a.png", "images/a.png\tmasks/a.png", ' "images/a.png" ; "masks/a.png"']
)
def test_a_list_has_two_paths_a_line(tmp_path: Path, line: str) -> None:
    laid_out(tmp_path, "images/a.png", "masks/a.png", "images/b c.png", "masks/b c.png")
    listed = tmp_path / "train.txt"
    listed.write_bytes(f'\ufeff# a comment\r\n\r\n{line}\r\n"images/b c.png" "masks/b c.png"\r\n'.encode())
    expected = {"images/a.png": ("images/a.png", "masks/a.png"), "images/b c.png": ("images/b c.png", "masks/b c.png")}
    assert told(find_pairs(str(listed)), tmp_path) == expected


def test_a_list_may_have_a_heading_and_absolute_paths(tmp_path: Path) -> None:
    laid_out(tmp_path, "a.png", "b.png")
    listed = tmp_path / "all.csv"
    listed.write_text(f"image,mask\n{tmp_path / 'a.png'},b.png\n")
    assert [(Path(pair.image.uri), pair.labels) for pair in find_pairs(str(listed))] == [(tmp_path / "a.png", tmp_path / "b.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png", "line 1 has 1 words"),
        ("a.png my mask.png", "line 1 has 3 words; .*in quotes"),
        ("\na.png nowhere.png", r"line 2: .*nowhere\.png: no such file"),
        ("it's.png a.png", "line 1: No closing quotation"),
        ("image,mask\n", "holds no pairs"),
        ("", "holds no pairs"),
    ],
)
def test_a_bad_list_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(Refused, match=rf"list\.txt.*{message}"):
        find_pairs(str(tmp_path / "list.txt"))


def test_a_list_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("é.png m.png".encode("latin-1"))
    with pytest.raises(Refused, match=r"list\.txt: is not UTF-8"):
        find_pairs(str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["images/a.png", "images/b.png", "masks/a.png"], r"images/b\.png: no mask of that name"),
        ([f"images/{n}.png" for n in range(6)] + ["masks/0.png"], r"images/1\.png, .*images/3\.png and 2 more: no mask"),
        (["images/a.png", "masks/a.png", "masks/b.png"], r"masks/b\.png: no image of that name"),
        (["images/a.png", "images/a.jpg", "masks/a.png"], r"images/a\.png: has the same name as a\.jpg: keep one"),
        (["images/a.png", "masks/a.png", "masks/a_mask.png"], r"masks/a_mask\.png: .*images/a\.png has another mask, a\.png"),
        (["images/a.png", "masks/sub/a.png"], r"masks: no rasters in this folder"),
        (["a.png", "b.png"], "no folders of images and masks side by side"),
        (["a.png", "a_mask.png", "b.png"], r"b\.png: no mask of that name"),
        (["a_mask.png"], r"a_mask\.png: no image of that name"),
    ],
)
def test_what_has_no_partner_is_refused_by_name(tmp_path: Path, names: list[str], message: str) -> None:
    laid_out(tmp_path, *names)
    with pytest.raises(Refused, match=message):
        find_pairs(str(tmp_path))


def test_a_scene_goes_with_one_file_of_labels(tmp_path: Path) -> None:
    laid_out(tmp_path, "s.tif", "l.tif", "many/a.tif", "many/b.tif")
    (pair,) = find_pairs(str(tmp_path / "s.tif"), str(tmp_path / "l.tif"))
    assert (pair.name, pair.labels) == ("s", tmp_path / "l.tif")
    for data, labels, message in (
        ("s.tif", None, "a scene needs --labels"),
        ("s.tif", "nowhere.gpkg", r"nowhere\.gpkg: no such file \(--labels\)"),
        ("many", "l.tif", "holds 2 scenes"),
        ("nowhere", None, "nowhere: no such file or folder"),
        ("nowhere.tif", "l.tif", "no such file or folder"),
    ):
        with pytest.raises(Refused, match=message):
            find_pairs(str(tmp_path / data), labels and str(tmp_path / labels))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--labels"):
        find_pairs(str(tmp_path))


def pairs_of(folder: Path, *names: str, labels: str = "") -> list[Pair]:
    laid_out(folder, *(f"images/{name}" for name in names), *([labels] if labels else [f"masks/{name}" for name in names]))
    return [
        Pair(
            name,
            find_pairs(str(folder / "images" / name), str(folder / (labels or f"masks/{name}")))[0].image,
            folder / (labels or f"masks/{name}"),
        )
        for name in names
    ]


def test_a_file_in_two_sets_is_refused_by_name(tmp_path: Path) -> None:
    a, b, c = pairs_of(tmp_path, "a.png", "b.png", "c.png")
    check_apart([("--data", [a, b]), ("--validation", [c]), ("--test", [])])
    with pytest.raises(Refused, match=r"images/b\.png: is in --data and in --test"):
        check_apart([("--data", [a, b]), ("--validation", [c]), ("--test", [b])])


def test_a_file_that_goes_by_two_names_is_still_one(tmp_path: Path) -> None:
    a, b = pairs_of(tmp_path, "a.png", "b.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "images" / "a.png")
    (linked,) = find_pairs(str(tmp_path / "images" / "link.png"), str(tmp_path / "masks" / "b.png"))
    with pytest.raises(Refused, match=r"a\.png: is in --data and in --validation"):
        check_apart([("--data", [a]), ("--validation", [linked, b])])


def test_an_image_twice_in_one_set_is_refused(tmp_path: Path) -> None:
    """One copy could be trained on and the other held out."""
    a, b = pairs_of(tmp_path, "a.png", "b.png")
    with pytest.raises(Refused, match=r"a\.png: is 2 times in --data"):
        check_apart([("--data", [a, b, a._replace(labels=b.labels)])])


def test_one_file_of_labels_may_serve_scenes_of_several_sets(tmp_path: Path) -> None:
    a, b = pairs_of(tmp_path, "a.png", "b.png", labels="all.png")
    check_apart([("--data", [a]), ("--validation", [b])])


def test_one_mask_given_as_an_image_elsewhere_is_refused(tmp_path: Path) -> None:
    a, b = pairs_of(tmp_path, "a.png", "b.png")
    swapped = Pair("b", find_pairs(str(a.labels), str(b.labels))[0].image, b.labels)
    with pytest.raises(Refused, match=r"masks/a\.png: is in --data and in --validation"):
        check_apart([("--data", [a]), ("--validation", [swapped])])


@pytest.mark.skipif(not (SHARED / "data" / "camvid").is_dir(), reason="shared/data is not here")
def test_camvids_official_split_shares_no_file() -> None:
    train, val = (find_pairs(str(SHARED / "data" / "camvid" / f"{name}.txt")) for name in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    check_apart([("--data", train), ("--validation", val)])
