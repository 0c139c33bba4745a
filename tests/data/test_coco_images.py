"""Guard docs/data.md for pictures: where they are looked for, what their headers must say.

Sizes and channels are compared with what the training loader itself makes of the same files.
"""

import copy
import json
import logging
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from resnext_det.config import get_cfg
from resnext_det.data import coco, coco_images, coco_sets
from resnext_det.data.coco_checks import Rules
from resnext_det.data.coco_images import Header, read_header, read_headers
from resnext_det.data.coco_paths import find_images, leads_out
from resnext_det.data.coco_pictures import RULES, check_pictures
from resnext_det.data.findings import DROPPED, NOTICED, STOPS, Findings
from resnext_det.data.images import read_array
from resnext_det.detection.loaders import NamingMapper
from resnext_det.errors import InputError

SIZE = (30, 20)  # width, height


def picture(size=SIZE, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def save(path, size=SIZE, orientation=None, mode="RGB", **options):
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(size, mode).save(path, **options)
    return path


def entry(path, id_=1, size=SIZE):
    return {"id": id_, "file_name": str(path), "width": size[0], "height": size[1]}


def looked_at(images, root="", drop=False, **options):
    """The findings about entries and their files, by kind."""
    findings = Findings("my.json")
    paths = find_images(findings, images, root, drop=drop)
    headers = dict(zip(paths, read_headers(list(paths.values()), **options), strict=True))
    check_pictures(findings, images, paths, headers, drop=drop)
    assert len({finding.kind for finding in findings.all}) == len(findings.all)
    return {finding.kind: finding for finding in findings.all}


def only(findings, kind, severity, *words, count=1):
    assert list(findings) == [kind]
    finding = findings[kind]
    assert (finding.severity, finding.count) == (severity, count), finding
    for word in words:
        assert word in f"{finding.examples[0]}; {finding.mend}"
    return finding


# ---- sizes, as the loader has them ----


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
def test_size_is_that_of_the_reader(tmp_path, kind, orientation):
    path = save(tmp_path / f"a.{kind}", orientation=orientation)
    height, width, _ = read_array(path).shape
    header = read_header(str(path))
    assert header.size == (width, height) and not header.error
    assert (header.width, header.height) == SIZE
    assert not looked_at([entry(path, size=(width, height))])


@pytest.mark.parametrize("kind", ["jpg", "tiff"])  # Pillow itself turns the second
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_is_named_where_the_sizes_are_swapped_by_it(tmp_path, orientation, kind):
    path = save(tmp_path / f"a.{kind}", orientation=orientation)
    words = (f"image 1 ({path})", "(20, 30), turned on reading from (30, 20)", "says (30, 20)")
    words += (f"EXIF orientation {orientation}",)
    only(looked_at([entry(path)]), "picture turned by its EXIF tag", STOPS, *words)


def test_tag_behind_the_pixels_of_a_png(tmp_path):
    """Where a header cannot show it; the reader finds it."""
    turned = save(tmp_path / "turned.png", orientation=6).read_bytes()
    length = turned.index(b"eXIf") - 4
    size = int.from_bytes(turned[length : length + 4], "big") + 12
    chunk, end = turned[length : length + size], turned.index(b"IEND") - 4
    path = tmp_path / "late.png"
    path.write_bytes(turned[:length] + turned[length + size : end] + chunk + turned[end:])
    assert read_array(path).shape == (30, 20, 3)
    assert read_header(str(path)).size == SIZE
    assert not looked_at([entry(path, size=(20, 30))])


def test_swapped_without_a_tag(tmp_path):
    path = save(tmp_path / "a.jpg")
    found = looked_at([entry(path, size=(20, 30))])
    finding = only(found, "height and width swapped", STOPS, "(30, 20)", "(20, 30)", "swapped")
    assert "EXIF" not in finding.found


@pytest.mark.parametrize("stated, words", [((60, 40), "0.5 times the size"), ((60, 60), "another")])
def test_resized_after_labelling(tmp_path, stated, words):
    path = save(tmp_path / "a.jpg")
    kind = "picture of another size than its entry"
    only(
        looked_at([entry(path, size=stated)]), kind, STOPS, str(path), str(SIZE), str(stated), words
    )


# ---- damage ----


def damaged(folder):
    whole = save(folder / "whole.jpg", size=(300, 200)).read_bytes()
    png = save(folder / "whole.png", size=(300, 200)).read_bytes()
    return {
        "empty": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "cut by two bytes.jpg": whole[:-2],
        "cut.png": png[: len(png) // 2],
        "begins well.jpg": whole[:30],
        "page.jpg": b"<html>not found</html>",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\n",
        "noise.jpg": bytes(range(256)),
    }


WHY = {
    "empty": "is empty (0 bytes)",
    "cut.jpg": "truncated",
    "cut by two bytes.jpg": "truncated",  # as the loader has it, too
    "cut.png": "truncated",
    "begins well.jpg": "cannot be read as an image",
    "page.jpg": "text or web page",
    "pointer.jpg": "Git LFS pointer",
    "noise.jpg": "no image format that Pillow knows",
}


@pytest.mark.parametrize("name", WHY)
def test_damage_is_found_without_decoding_all(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(damaged(tmp_path)[name])
    found = looked_at([entry(path, size=(300, 200))])
    only(found, "unreadable picture", STOPS, str(path), WHY[name], "DATASETS.DROP_BAD_IMAGES")
    with pytest.raises(InputError, match=name):
        read_array(path)


def test_bytes_behind_the_end_do_no_harm(tmp_path):
    path = save(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert not looked_at([entry(path)])


def test_damage_inside_needs_decoding(tmp_path):
    path = save(tmp_path / "a.bmp", size=(300, 200))
    path.write_bytes(path.read_bytes()[:-4000])
    images = [entry(path, size=(300, 200))]
    assert not looked_at(images)
    only(looked_at(images, decode=True), "unreadable picture", STOPS, str(path))


def test_a_folder_with_the_name_of_a_picture(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    only(looked_at([entry("a.jpg")], tmp_path), "unreadable picture", STOPS, "cannot be opened")


def test_too_many_pixels(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    coco_images.set_pixel_limit(599)
    found = looked_at([entry(path)])
    words = ("too many pixels: 600", str(path), "DATASETS.MAX_IMAGE_PIXELS")
    only(found, "picture of too many pixels", STOPS, *words)
    coco_images.set_pixel_limit(601)
    assert not looked_at([entry(path)])


def test_the_config_sets_the_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    cfg = get_cfg()
    default = cfg.DATASETS.MAX_IMAGE_PIXELS
    coco.register_from_config(cfg)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485 == default // 2  # Pillow's own
    cfg.DATASETS.MAX_IMAGE_PIXELS = 1000
    coco.register_from_config(cfg)
    assert Image.MAX_IMAGE_PIXELS == 500


# ---- channels ----


def loaded(path):
    """The pixels of the training loader, uint8 (H, W, 3), RGB."""
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0
    record = {"file_name": str(path), "width": SIZE[0], "height": SIZE[1]}
    return NamingMapper(cfg, is_train=False)(record)["image"].numpy().transpose(1, 2, 0)


def deep(kind=np.uint16):
    """20 x 30 pixels of grey, 0 to 59,900."""
    return Image.fromarray((np.arange(600).reshape(20, 30) * 100).astype(kind))


def clear(mode="RGBA"):
    image = picture().convert("RGBA")
    image.putalpha(0)
    return image.convert(mode)


@pytest.mark.parametrize(
    "name, image, kind, options",
    [
        ("a.png", picture(mode="1"), "grey", {}),
        ("a.png", picture(mode="L"), "grey", {}),
        ("a.png", picture(mode="P"), "palette", {}),
        ("a.png", deep(), "16-bit grey", {}),
        ("a.tiff", deep(), "16-bit grey", {}),
        ("a.png", deep(), "16-bit grey", {"transparency": 100}),
        ("a.jpg", picture(mode="CMYK"), "CMYK", {}),
        ("a.tiff", Image.new("LAB", SIZE), "other colours", {}),
        ("a.png", clear(), "transparency", {}),
        ("a.png", clear("LA"), "transparency", {}),
        ("a.png", picture(), "transparency", {"transparency": (1, 2, 3)}),
        ("a.png", picture(mode="L"), "transparency", {"transparency": 7}),
        ("a.png", picture(mode="P"), "transparency", {"transparency": 7}),
    ],
)
def test_channels_are_told_by_rule(tmp_path, name, image, kind, options):
    path = tmp_path / name
    image.save(path, **options)
    found = looked_at([entry(path)])
    only(found, kind, NOTICED, f"mode {read_header(str(path)).mode}", RULES[kind])
    assert loaded(path).shape == (20, 30, 3)


@pytest.mark.parametrize("kind, mode", [(np.int32, "I"), (np.float32, "F")])
def test_pixels_without_a_range_stop(tmp_path, kind, mode):
    path = tmp_path / "a.tiff"
    deep(kind).save(path)
    words = f"mode {mode}, whose values have no fixed range", "convert it to 8 or 16 bits"
    only(looked_at([entry(path)]), "32-bit integers or float", STOPS, str(path), *words)
    with pytest.raises(InputError, match="no fixed range"):
        loaded(path)


def test_plain_colour_needs_no_word(tmp_path):
    assert not looked_at([entry(save(tmp_path / "a.png"))])


def test_modes_that_no_file_here_has(tmp_path):
    """Pillow's rarer ones, by their names; one that it makes no RGB of stops."""
    path = save(tmp_path / "a.png")
    modes = {"I;16B": "16-bit grey", "RGBX": "four channels", "HSV": "other colours"}
    for mode, kind in {**modes, "BGR;15": "channels that cannot be read"}.items():
        headers, findings = {1: Header(*SIZE, mode=mode, format="TIFF")}, Findings("my.json")
        check_pictures(findings, [entry(path)], {1: str(path)}, headers)
        assert [finding.kind for finding in findings.all] == [kind]
        assert (findings.all[0].severity == STOPS) == (mode == "BGR;15")


def test_the_rules_are_what_the_loader_does(tmp_path):
    """If the reader learns other rules, coco_pictures.py has to tell them."""
    grey = save(tmp_path / "grey.png", mode="L")
    assert np.array_equal(loaded(grey), np.tile(np.asarray(Image.open(grey))[..., None], 3))
    clear().save(tmp_path / "clear.png")
    assert (loaded(tmp_path / "clear.png") == 255).all()  # laid on white
    deep().save(tmp_path / "deep.png")
    scaled = np.round(np.asarray(deep()) / 257)
    assert np.array_equal(loaded(tmp_path / "deep.png")[..., 0], scaled)
    image = Image.fromarray(np.full((20, 30, 4), (10, 20, 30, 0), np.uint8), "CMYK")
    image.save(tmp_path / "four.tiff")
    assert loaded(tmp_path / "four.tiff")[0, 0].tolist() == [245, 235, 225]  # 255 - ink
    save(tmp_path / "palette.png", mode="P")
    colours = np.asarray(picture(mode="P").convert("RGB"))
    assert np.array_equal(loaded(tmp_path / "palette.png"), colours)


def test_sixteen_bits_of_colour_are_read_as_eight(tmp_path):
    """Pillow keeps the high byte, which needs no word."""
    path = tmp_path / "a.png"
    values = np.random.default_rng(0).integers(0, 65535, (20, 30, 3), dtype=np.uint16)
    cv2 = pytest.importorskip("cv2")
    assert cv2.imwrite(str(path), values[..., ::-1])
    assert not looked_at([entry(path)])
    assert np.array_equal(loaded(path), (values >> 8).astype(np.uint8))


# ---- where they are ----


@pytest.mark.parametrize(
    "name, out",
    [
        ("a.jpg", False),
        ("sub/a.jpg", False),
        ("sub/../a.jpg", False),
        ("./a.jpg", False),
        ("..a.jpg", False),
        ("/data/../a.jpg", False),
        ("../a.jpg", True),
        ("sub/../../a.jpg", True),
        ("..", True),
    ],
)
def test_names_that_lead_out(name, out):
    assert leads_out(name) is out


def test_where_pictures_may_be(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    save(root / "a.jpg"), save(root / "sub" / "b.jpg"), save(elsewhere / "c.jpg")
    save(root / "grün ü.jpg")
    (root / "link.jpg").symlink_to(elsewhere / "c.jpg")
    (root / "folder").symlink_to(elsewhere)
    names = ["a.jpg", "sub/b.jpg", elsewhere / "c.jpg", "link.jpg", "folder/c.jpg", "grün ü.jpg"]
    images = [entry(name, n) for n, name in enumerate(names)]
    found = find_images(findings := Findings(""), images, root)
    assert [finding.kind for finding in findings.all] == []
    assert found[2] == str(elsewhere / "c.jpg") and found[0] == str(root / "a.jpg")
    assert all(os.path.isfile(path) for path in found.values())


def test_a_name_that_leads_out_stops_even_if_the_file_is_there(tmp_path):
    save(tmp_path / "a.jpg")
    (tmp_path / "root").mkdir()
    found = looked_at([entry("../a.jpg")], tmp_path / "root")
    only(
        found, "file_name that leads out of the image folder", STOPS, '"../a.jpg"', "a folder above"
    )


HINTS = {
    "no root": ("none", "a.jpg", "there is no folder"),
    "root too deep": ("root/sub", "sub/b.jpg", "give that as the image folder"),
    "one folder too many": ("root", "train/a.jpg", "in the image folder itself"),
    "backslash": ("root", "sub\\b.jpg", 'with "/"'),
    "case": ("root", "A.JPG", 'there is "a.jpg", which differs in case'),
    "Unicode form": ("root", "gru\u0308n.jpg", "Unicode form"),
    "ending": ("root", "a.png", 'there is "a.jpg"'),
    "nothing near": ("root", "z.jpg", '(file_name "z.jpg")'),
}


@pytest.mark.parametrize("root, name, words", HINTS.values(), ids=HINTS)
def test_missing_picture(tmp_path, root, name, words):
    """Path tried, name and root, and the usual causes."""
    save(tmp_path / "root" / "a.jpg"), save(tmp_path / "root" / "sub" / "b.jpg")
    save(tmp_path / "root" / "grün.jpg")
    root = tmp_path / root
    where = (f"image 1 is not at {root}/{name}", f'(file_name "{name}"', f"folder ({root})")
    only(looked_at([entry(name)], root), "missing image", STOPS, *where, words)


def test_one_picture_under_two_ids(tmp_path):
    save(tmp_path / "a.jpg")
    found = looked_at([entry("a.jpg", 1), entry("./a.jpg", 2)], tmp_path)
    only(found, "picture listed twice", NOTICED, "image 2 is the file of image 1")


# ---- many at once ----


def test_order_and_number(tmp_path):
    sizes = [(10 + n % 7, 10 + n % 5) for n in range(100)]
    paths = [str(save(tmp_path / f"{n}.png", size)) for n, size in enumerate(sizes)]
    assert [header.size for header in read_headers(paths, workers=3)] == sizes
    assert read_headers([]) == []


def test_decoding_in_processes_gives_the_same(tmp_path, monkeypatch):
    good, bad = save(tmp_path / "a.jpg"), save(tmp_path / "b.bmp", (300, 200))
    bad.write_bytes(bad.read_bytes()[:-4000])
    paths = [str(good), str(bad)]
    here = read_headers(paths, decode=True)
    assert [bool(header.error) for header in here] == [False, True]
    monkeypatch.setattr(coco_images, "FEW", 0)
    assert read_headers(paths, decode=True, workers=1) == here


# ---- a registered set ----

CONTENT = {
    "images": [entry("a.jpg", 1), entry("b.jpg", 2), entry("c.jpg", 3)],
    "annotations": [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0, "area": 25}
        for n in (1, 2, 3)
    ],
    "categories": [{"id": 1, "name": "cup"}],
}


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.jpg")
    return tmp_path


@pytest.fixture
def register(folder, request):
    """Register the set of `folder` under the test's name; forgotten afterwards."""
    names = []

    def register(content=CONTENT, name=None, **keys):
        name = name or request.node.name
        names.append(name)
        path = folder / f"{len(names)}.json"
        path.write_text(json.dumps(content))
        cfg = get_cfg()
        cfg.DATASETS.COCO_JSON = [*cfg.DATASETS.COCO_JSON, [name, str(path), str(folder)]]
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
        for key, value in keys.items():
            cfg.DATASETS[key] = value
        coco.register_from_config(cfg)
        return cfg, name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def test_missing_sizes_come_from_the_pictures(folder, register):
    save(folder / "b.jpg", size=(50, 40), orientation=6)
    content = copy.deepcopy(CONTENT)
    for image in content["images"]:
        del image["width"], image["height"]
    _, name = register(content)
    sizes = [(record["width"], record["height"]) for record in DatasetCatalog.get(name)]
    assert sizes == [SIZE, (40, 50), SIZE]


@pytest.mark.parametrize("is_checked", [True, False])
def test_bad_images_are_left_out_everywhere(folder, register, is_checked, caplog):
    """In training and, with their objects, in what the scorer reads."""
    (folder / "b.jpg").write_bytes(b"")
    (folder / "c.jpg").unlink()
    cfg, name = register(DROP_BAD_IMAGES=True)
    if is_checked:
        with caplog.at_level(logging.INFO, logger="resnext_det"):
            coco_sets.check_config_sets(cfg)
        told = [line for line in caplog.messages if line.startswith(DROPPED)]
        assert len(told) == 2 and "missing image" in told[0] and "unreadable" in told[1]
        assert f"{name}: 1 images, all entries checked" in caplog.messages
    assert [record["image_id"] for record in DatasetCatalog.get(name)] == [1]
    content = coco.read_registered(name)
    assert [one["image_id"] for one in content["annotations"]] == [1]


def refusal(cfg, *words):
    with pytest.raises(InputError) as caught:
        coco_sets.check_config_sets(cfg)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def test_before_training_pictures_are_looked_at(folder, register):
    save(folder / "b.jpg", size=(60, 40))
    cfg, _ = register()
    refusal(
        cfg, f"{folder / 'b.jpg'}: it is image 2 of {folder / '1.json'}", "(60, 40)", "(30, 20)"
    )


def test_before_training_pixels_are_read_by_choice(folder, register):
    path = save(folder / "b.bmp")
    path.write_bytes(path.read_bytes()[:-300])
    content = copy.deepcopy(CONTENT)
    content["images"][1]["file_name"] = "b.bmp"
    cfg, name = register(content)
    coco_sets.check_config_sets(cfg)
    assert MetadataCatalog.get(name).thing_classes == ["cup"]
    cfg.DATASETS.DECODE_IMAGES = True
    coco.register_from_config(cfg)
    refusal(cfg, f"{path}: it is image 2 of", "cannot be read")


def test_before_scoring_pictures_are_looked_at(folder, register):
    """Of the sets that are scored; what the detector was trained on need not be there."""
    cfg, name = register()
    cfg.DATASETS.TRAIN = ("a set of another machine",)
    coco_sets.check_test_sets(cfg)
    assert MetadataCatalog.get(name).thing_classes == ["cup"]
    (folder / "b.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.jpg: it is image 2 of .* is empty"):
        coco_sets.check_test_sets(cfg)


def test_two_training_sets_with_one_image_id(folder, register):
    """Stored proposals would be mixed up, hours later."""
    register(name="first_of_two")
    content = copy.deepcopy(CONTENT)
    content["images"], content["annotations"] = content["images"][1:2], content["annotations"][1:2]
    cfg, _ = register(content, name="second_of_two")
    cfg.DATASETS.TRAIN = ("first_of_two", "second_of_two")
    refusal(cfg, folder / "2.json", "image 2", "first_of_two")


def test_two_sets_beside_each_other(folder):
    checked = []
    for number, names in enumerate(([(1, "cup")], [(1, "mug")])):
        path = folder / f"{number}.json"
        categories = [{"id": id_, "name": name} for id_, name in names]
        images = CONTENT["images"][number : number + 2]
        content = {"images": images, "annotations": [], "categories": categories}
        path.write_text(json.dumps(content))
        read = coco_images.read_headers
        options = {"read": read, "most_detections": 100, "drops_empty_images": False}
        checked.append(coco_sets.check_set(path, folder, Rules(), **options))
    second = coco_sets.compare_sets(*checked)
    found = {finding.kind: finding for finding in second.findings}
    assert "mug" in found["categories of two files differ"].found
    shared = found["picture in two sets"]
    assert (shared.severity, shared.count, shared.entry) == (NOTICED, 1, "image 2")
    assert [finding.kind for finding in second.stops] == ["categories of two files differ"]


def test_shares_of_several_processes(folder, monkeypatch):
    """Each process reads each n-th header; all get all of them in order."""
    paths = [str(save(folder / f"{n}.png", (10 + n, 10))) for n in range(7)]
    read = {}
    for rank in range(3):
        monkeypatch.setattr(coco_sets.comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(coco_sets.comm, "get_world_size", lambda: 3)
        shares = [[Header(width=10 + n) for n in range(r, 7, 3)] for r in range(3)]

        def gather(own, shares=shares, rank=rank):
            read[rank] = [header.width for header in own]
            return shares

        monkeypatch.setattr(coco_sets.comm, "all_gather", gather)
        headers = coco_sets._read_share(paths, decode=False)
        assert [header.width for header in headers] == list(range(10, 17))
    assert read == {0: [10, 13, 16], 1: [11, 14], 2: [12, 15]}


@pytest.mark.parametrize(
    "name, images, boxes",
    [("bccd/annotations/instances_train.json", "bccd/images", 2805),
     ("coco/annotations/instances_val2017.json", "coco/val2017", 903)],
)  # fmt: skip
def test_real_sets_pass(shared_data, name, images, boxes):
    options = {"read": read_headers, "most_detections": 100, "drops_empty_images": False}
    checked = coco_sets.check_set(shared_data / name, shared_data / images, Rules(), **options)
    assert not checked.stops and len(checked.table) == boxes
    assert {finding.severity for finding in checked.findings} <= {NOTICED}
