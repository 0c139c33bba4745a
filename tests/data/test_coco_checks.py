"""Guard docs/data.md: every kind of faulty entry is found over the whole file, counted and named.

And that each is what the table there says: mended, dropped by choice, stopping, or only noticed.
"""

import copy
import json
import logging

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnext_det.data import coco
from resnext_det.data.coco_checks import Rules, check_entries
from resnext_det.data.coco_files import parse
from resnext_det.data.coco_suspicions import check_whole
from resnext_det.data.coco_table import table_of
from resnext_det.data.findings import (
    DROPPED,
    MENDED,
    NOTICED,
    STOPS,
    Findings,
    check_command,
    raise_first,
)
from resnext_det.errors import InputError

FILE = "my.json"


def image(id_, **others):
    return {"id": id_, "file_name": f"{id_}.jpg", "height": 100, "width": 200, **others}


def entry(id_, image_id=1, bbox=(10, 20, 30, 40), **others):
    values = {"id": id_, "image_id": image_id, "category_id": 1, "bbox": list(bbox)}
    return {**values, "iscrowd": 0, "area": 1200, **others}


def a_set(annotations, images=None, categories=None):
    return {
        "images": images or [image(1), image(2)],
        "annotations": annotations,
        "categories": categories or [{"id": 1, "name": "cup"}, {"id": 5, "name": "pan"}],
    }


def check(content, read_sizes=None, **rules):
    """The findings by kind, and what is left of the content."""
    content = copy.deepcopy(content)
    found = check_entries(FILE, content, Rules(**rules), read_sizes)
    assert len({finding.kind for finding in found}) == len(found)
    return {finding.kind: finding for finding in found}, content


def only(findings, kind, severity, *words, count=1):
    """The one finding, as told by a message."""
    assert list(findings) == [kind]
    finding = findings[kind]
    assert (finding.severity, finding.count) == (severity, count), finding
    text = f"{finding.entry} {finding.found}; {finding.mend}"
    for word in words:
        assert word in text, text
    return finding


def ids(content, part="annotations"):
    return [one["id"] for one in content[part]]


def test_nothing_is_wrong():
    found, content = check(a_set([entry(1), entry(2, 2)]))
    assert not found and ids(content) == [1, 2]


# ---- ids ----


@pytest.mark.parametrize("part, label", [("images", '"1.jpg"'), ("categories", '"cup"')])
def test_repeated_id_names_both(part, label):
    content = a_set([entry(1)])
    content[part][1]["id"] = 1
    found, left = check(content)
    only(found, "repeated id", STOPS, f"{part}[1] repeats the id 1 of {part}[0]", label, "of its")
    assert ids(left, part) == [1] and ids(left) == [1]


def test_exporter_that_writes_one_id_for_all():
    found, _ = check(a_set([entry(0, 1), entry(0, 2), entry(0, 2)]))
    words = ("annotations[1]", "image 2", "image 1", "DATASETS.RENUMBER_ANNOTATIONS True")
    finding = found["repeated id"]
    assert (finding.severity, finding.count) == (STOPS, 2)
    for word in words:
        assert word in f"{finding.entry} {finding.found}; {finding.mend}"


@pytest.mark.parametrize("given", [(0, 0, 0), (7, 7, 8), ("a", "b", 3), (None, 1, 2)], ids=str)
def test_renumbering(given):
    found, content = check(a_set([entry(id_) for id_ in given]), renumber_annotations=True)
    assert list(found) == ["annotation ids counted anew"]
    finding = found["annotation ids counted anew"]
    assert finding.severity == MENDED and "all 3 are numbered from 1" in finding.mend
    assert ids(content) == [1, 2, 3]


def test_renumbering_leaves_good_ids_alone():
    found, content = check(a_set([entry(9), entry(4)]), renumber_annotations=True)
    assert not found and ids(content) == [9, 4]


def test_renumbering_fills_in_missing_ids_and_names_places():
    """A message must not use a number that the user cannot find in the file."""
    annotations = [entry(1), entry(2, bbox=(0, 0, 0, 5))]
    for one in annotations:
        del one["id"]
    found, content = check(a_set(annotations), renumber_annotations=True)
    assert ids(content) == [1]
    assert found["box without area"].entry == "annotations[1] (image 1)"


def test_id_zero_is_mended():
    found, content = check(a_set([entry(5), entry(0, 2)]))
    only(found, "annotation id 0", MENDED, "annotation 0 (image 2)", "taken as 6")
    assert ids(content) == [5, 6]


def average_precision(content):
    """Of detections equal to the objects."""
    truth = COCO()
    truth.dataset = {**copy.deepcopy(content), "info": {}}
    truth.createIndex()
    found = [
        {"image_id": e["image_id"], "category_id": 1, "bbox": e["bbox"], "score": 0.9}
        for e in content["annotations"]
    ]
    scorer = COCOeval(truth, truth.loadRes(found), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    return scorer.stats[0]


def test_id_zero_would_cost_precision():
    """The reason for mending it: pycocotools takes a match with it for none."""
    content = a_set([entry(0, 1), entry(1, 2)])
    assert average_precision(content) < 0.6
    assert average_precision(check(content)[1]) == pytest.approx(1.0)


@pytest.mark.parametrize("value", ["1", 1.0, None, True, 2**63])
@pytest.mark.parametrize("field, part", [("image_id", "images"), ("category_id", "categories")])
def test_reference_of_another_type(field, part, value):
    found, content = check(a_set([entry(1), entry(2, **{field: value})]))
    kind = f"{field} that is no whole number"
    only(found, kind, STOPS, "annotation 2", repr(value), f"ids under {part}", "as 1")
    assert ids(content) == [1]


def test_text_ids_on_both_sides():
    """Named once, not again for everything that refers to them."""
    found, _ = check(a_set([entry(1, image_id=1)], images=[image("1"), image(2)]))
    only(found, "id that is no whole number", STOPS, "images[0]", "'1'")


def test_undeclared_category_lists_few_ids():
    many = [{"id": n, "name": f"c{n}"} for n in range(1, 1001)]
    found, _ = check(a_set([entry(1, category_id=3333)], categories=many))
    finding = only(found, "undeclared category", STOPS, "category 3333", "1000 in all")
    assert len(finding.found) < 200


def test_faulty_image_is_no_second_fault():
    """The annotations of an image that is taken out go with it, without a word of their own."""
    found, content = check(a_set([entry(1), entry(2, 2)], images=[image(1), {"id": 2}]))
    only(found, "missing field", STOPS, "images[1] has no file_name")
    assert ids(content) == [1]


# ---- fields ----


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [5, None, "x", [1]], ids=str)
def test_entry_that_is_no_object(part, value):
    content = a_set([entry(1), entry(2)])
    content[part].append(value)
    found, left = check(content)
    only(found, "missing field", STOPS, f"{part}[2] is {value!r}", "not an object")
    assert len(left[part]) == 2


@pytest.mark.parametrize("part, word", [("images", "no image"), ("categories", "no category")])
def test_empty_list(part, word):
    content = a_set([])
    content[part] = []
    found, _ = check(content)
    assert found[word].severity == STOPS and found[word].entry == part


@pytest.mark.parametrize("field, word", [("caption", "captions"), ("segments_info", "panoptic")])
def test_other_kinds_of_coco_files(field, word):
    found, _ = check(a_set([{"id": 1, "image_id": 1, "category_id": 1, field: "x"}]))
    only(found, "missing field", STOPS, "has no bbox", "instances_*.json", word)


@pytest.mark.parametrize("name", ["", 7, None, "a\0b", "a\nb"], ids=repr)
def test_file_name_that_names_nothing(name):
    found, _ = check(a_set([entry(1, 2)], images=[image(1, file_name=name), image(2)]))
    only(found, "file_name that names no file", STOPS, "images[0]", repr(name))


# ---- boxes ----


def test_every_faulty_box_is_counted():
    annotations = [entry(n, bbox=(0, 0, n % 3, 5)) for n in range(1, 31)]
    found, content = check(a_set(annotations))
    finding = only(found, "box without area", STOPS, "annotation 3 (image 1)", count=10)
    assert len(finding.examples) == 3 and finding.examples[2].startswith("annotation 9 (image 1) ")
    assert len(content["annotations"]) == 20


@pytest.mark.parametrize(
    "bbox", [(200, 5, 10, 10), (5, 100, 3, 3), (-10, 5, 10, 10), (65535, 0, 2, 2), (0, -9, 5, 5)]
)
def test_box_wholly_outside(bbox):
    content = a_set([entry(1), entry(2, bbox=bbox)])
    found, left = check(content)
    words = ("annotation 2 (image 1), an image of 200 x 100,", "wholly outside", str(list(bbox)))
    only(found, "box wholly outside its image", STOPS, *words, "DATASETS.DROP_EMPTY_BOXES")
    assert ids(left) == [1]
    found, left = check(content, drop_empty_boxes=True)
    only(found, "box wholly outside its image", DROPPED, *words)
    assert ids(left) == [1]


def test_box_partly_outside_is_counted_and_kept():
    boxes = [(190, 5, 30, 10), (-3, 0, 10, 10), (0, 0, 200.3, 100)]  # the last is rounding
    found, content = check(a_set([entry(n, bbox=box) for n, box in enumerate(boxes, 1)]))
    words = ("annotation 1 (image 1)", "20 px over the border of its 200 x 100", "clips it")
    only(found, "box partly outside its image", MENDED, *words, count=2)
    assert [one["bbox"] for one in content["annotations"]] == [list(box) for box in boxes]


@pytest.mark.parametrize("value", [1e10, -1e30, 10**400, float("-inf")], ids=lambda v: f"{v!r:.9}")
def test_numbers_beyond_measure(value):
    found, _ = check(a_set([entry(1, bbox=(0, 0, value, 5))]))
    only(found, "box that is not four finite numbers", STOPS, "annotation 1 (image 1)")


def test_empty_segmentation_keeps_its_box():
    found, content = check(a_set([entry(1, segmentation=[]), entry(2, segmentation=None)]))
    assert not found and ids(content) == [1, 2]


# ---- iscrowd, area, sizes ----


def test_missing_crowd_and_area_are_two_counted_notices():
    annotations = [entry(1), entry(2, iscrowd=None), entry(3, area=None), entry(4)]
    del annotations[3]["iscrowd"], annotations[3]["area"]
    found, content = check(a_set(annotations))
    assert {kind: (f.severity, f.count) for kind, f in found.items()} == {
        "missing iscrowd": (MENDED, 2),
        "missing area": (MENDED, 2),
    }
    left = content["annotations"]
    assert [one["iscrowd"] for one in left] == [0, 0, 0, 0]
    assert [one["area"] for one in left] == [1200, 1200, 1200, 1200]


@pytest.mark.parametrize("value", ["12", float("nan"), -1], ids=str)
def test_area_that_is_none(value):
    found, content = check(a_set([entry(1, area=value)]))
    only(found, "missing area", MENDED, "width x height")
    assert content["annotations"][0]["area"] == 1200


@pytest.mark.parametrize("value", ["0", 2, [1]], ids=str)
def test_crowd_that_is_neither(value):
    found, _ = check(a_set([entry(1, iscrowd=value)]))
    only(found, "iscrowd that is not 0 or 1", STOPS, "annotation 1 (image 1)", repr(value))


def test_missing_sizes_are_read():
    images = [image(1), image(2), image(3, height="100"), image(4, width=0)]
    del images[1]["height"]
    asked = []

    def read_sizes(names):
        asked.extend(names)
        return [(30 * n, 10 * n) for n in range(1, len(names) + 1)]

    found, content = check(a_set([], images=images), read_sizes)
    only(found, "missing height or width", MENDED, "images[1] has no height", count=3)
    assert asked == ["2.jpg", "3.jpg", "4.jpg"]
    sizes = [(one["width"], one["height"]) for one in content["images"]]
    assert sizes == [(200, 100), (30, 10), (60, 20), (90, 30)]


def test_boxes_are_held_against_sizes_that_were_read():
    images = [{"id": 1, "file_name": "a.jpg"}]
    found, _ = check(a_set([entry(1, bbox=(50, 0, 9, 9))], images), lambda names: [(20, 20)])
    assert found["box wholly outside its image"].count == 1


@pytest.mark.parametrize("drop", [False, True])
def test_size_of_a_picture_that_cannot_be_read(drop):
    images = [image(1), {"id": 2, "file_name": "b.jpg"}]
    content = a_set([entry(1), entry(2, 2)], images)
    found, left = check(content, lambda names: [None], drop_bad_images=drop)
    kind = "missing height or width of a picture that cannot be read"
    only(found, kind, DROPPED if drop else STOPS, "images[1] has no height", '"b.jpg"')
    assert ids(left, "images") == [1] and ids(left) == [1]


def test_whole_sizes_written_with_a_point():
    found, content = check(a_set([], images=[image(1, height=100.0)]))
    assert not found and type(content["images"][0]["height"]) is int


# ---- the whole set ----


def whole(content, most_detections=100, drops_empty_images=False):
    findings = Findings(FILE)
    check_whole(
        findings,
        table_of(check(content)[1]),
        most_detections=most_detections,
        drops_empty_images=drops_empty_images,
    )
    return {finding.kind: finding for finding in findings.all}


def one_class(annotations, images=None):
    return a_set(annotations, images or [image(1)], [{"id": 1, "name": "cup"}])


def random_boxes(count, corners):
    """Boxes inside 200 x 100, as XYWH or as corners."""
    random = np.random.default_rng(0)
    first = random.uniform((0, 0), (150, 70), (count, 2))
    size = random.uniform((5, 5), (200, 100) - first)
    return np.concatenate([first, first + size if corners else size], axis=1).round(2).tolist()


@pytest.mark.parametrize("count, severity", [(60, STOPS), (12, NOTICED)])
def test_boxes_written_as_corners(count, severity):
    boxes = random_boxes(count, corners=True)
    found = whole(one_class([entry(n, bbox=box) for n, box in enumerate(boxes, 1)]))
    finding = found["boxes written as corners"]
    assert finding.severity == severity
    assert "100 % fit as corners" in finding.found and f"of the {count} boxes" in finding.found
    assert "annotation " in finding.entry and "200 x 100" in finding.found


def test_true_boxes_are_not_taken_for_corners():
    boxes = random_boxes(60, corners=False)
    found = whole(one_class([entry(n, bbox=box) for n, box in enumerate(boxes, 1)]))
    assert "boxes written as corners" not in found


def test_one_box_an_image_that_fills_it_is_not_taken_for_corners():
    images = [image(n) for n in range(1, 41)]
    found = whole(one_class([entry(n, n, bbox=(0, 0, 200, 100)) for n in range(1, 41)], images))
    assert not found


def test_a_file_of_both_kinds_is_noticed():
    boxes = random_boxes(40, corners=True) + random_boxes(40, corners=False)
    found = whole(one_class([entry(n, bbox=box) for n, box in enumerate(boxes, 1)]))
    assert found["boxes written as corners"].severity == NOTICED


@pytest.mark.parametrize(("count", "severity"), [(30, STOPS), (19, NOTICED)])
def test_boxes_in_parts_of_the_image(count, severity):
    """YOLO's, mostly: no box of a whole file is smaller than a pixel."""
    boxes = [entry(n + 1, bbox=(0.1, 0.2, 0.3, 0.5)) for n in range(count)]
    found = whole(one_class(boxes))["boxes in parts of the image"]
    assert (found.severity, found.count) == (severity, count)
    assert "200 x 100" in found.found and "times the image's width" in found.mend
    boxes[0]["bbox"] = [0, 0, 50, 50]
    assert "boxes in parts of the image" not in whole(one_class(boxes))


def test_all_crowds():
    found = whole(one_class([entry(1, iscrowd=1), entry(2, iscrowd=1, bbox=(0, 0, 9, 9))]))
    finding = found["every annotation is a crowd"]
    assert (finding.severity, finding.count) == (STOPS, 2)
    assert "iscrowd 1, as all 2" in finding.found and "RLE" in finding.mend
    assert "every annotation is a crowd" not in whole(one_class([entry(1), entry(2, iscrowd=1)]))


def test_duplicates():
    same = [entry(1), entry(2), entry(3, 2), entry(4, category_id=5), entry(5, bbox=(1, 2, 3, 4))]
    found = whole(a_set(same))
    finding = found["same box and category twice in an image"]
    assert (finding.severity, finding.count) == (NOTICED, 1)
    assert finding.entry == "annotation 2 (image 1)"


@pytest.mark.parametrize("drops, severity", [(False, NOTICED), (True, DROPPED)])
def test_images_without_objects(drops, severity):
    images = [image(n) for n in (1, 2, 3)]
    found = whole(one_class([entry(1), entry(2, 2, iscrowd=1)], images), drops_empty_images=drops)
    finding = found["image without objects"]
    assert (finding.severity, finding.count) == (severity, 2)
    assert "DATALOADER.FILTER_EMPTY_ANNOTATIONS" in finding.mend
    assert "1 crowds" in finding.examples[0] and "no annotation" in finding.examples[1]


def test_more_objects_than_are_scored():
    images = [image(n) for n in (1, 2, 3)]
    annotations = [entry(n, 2, bbox=(n, 0, 9, 9)) for n in range(1, 8)]
    annotations += [entry(n, 3, bbox=(n, 0, 9, 9)) for n in range(11, 20)] + [entry(30)]
    finding = whole(one_class(annotations, images), most_detections=6)[
        "more objects in an image than are scored"
    ]
    assert (finding.severity, finding.count, finding.entry) == (NOTICED, 2, "image 3")
    assert "has 9 objects" in finding.found and "now 6, to 9" in finding.mend


def test_classes_without_objects_and_of_one_name():
    names = [{"id": n, "name": name} for n, name in ((1, "cup"), (5, "pan"), (6, "pan"))]
    found = whole(a_set([entry(1), entry(2, 2, category_id=6)], categories=names))
    assert found["category without objects"].entry == 'category "pan"'
    assert found["category name used twice"].count == 1
    assert {finding.severity for finding in found.values()} == {NOTICED}


def test_specks():
    found = whole(one_class([entry(1, bbox=(5, 5, 1, 30)), entry(2)]))
    assert found["box of one pixel or less in width or height"].count == 1


def test_a_set_of_background_alone_does_not_stop():
    found = whole(one_class([]))
    assert [finding.severity for finding in found.values()] == [NOTICED]


def test_table():
    """Ids in any order; classes numbered by id."""
    names = [{"id": 9, "name": "pan"}, {"id": 4, "name": "cup"}]
    images = [image(7), image(3, width=50)]
    annotations = [entry(1, 3, category_id=9), entry(2, 7, category_id=4, iscrowd=1)]
    table = table_of(a_set(annotations, images, names))
    assert table.class_names == ["cup", "pan"]
    assert table.image.tolist() == [1, 0] and table.category.tolist() == [1, 0]
    assert table.sizes.tolist() == [[200, 100], [50, 100]]
    assert table.objects_per_image().tolist() == [0, 1]
    assert table.name(0) == "annotation 1 (image 3)"


# ---- files of another kind ----

VOC = '<?xml version="1.0"?>\n<annotation><object><name>cup</name></object></annotation>'
OTHERS = {
    "empty": ("  \n", "is empty"),
    "YOLO": ("0 0.5 0.5 0.1 0.2\n3 0.1 0.1 0.2 0.2\n", "YOLO label file"),
    "VOC": (VOC, "Pascal VOC"),
    "HTML": ("<!DOCTYPE html><p>404", "XML or HTML"),
    "results": ('[{"image_id": 1, "category_id": 1, "bbox": [], "score": 1}]', "detections"),
    "LabelMe": ('{"shapes": [], "imagePath": "a.jpg"}', "LabelMe"),
    "VIA": ('{"_via_img_metadata": {}, "_via_settings": {}}', "VGG Image Annotator"),
    "LFS": ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "JSON lines": ('{"id": 1}\n{"id": 2}\n', "second at line 2"),
    "cut off": ('{"images": [{"id": 1, "file_name": "a', "ends inside a value"),
    "cut off between": ('{"images": [{"id": 1},', "ends inside a value"),
    "deep": ('{"images": ' + "[" * 200_000, "nested too deeply"),
    "long number": ('{"images": ' + "9" * 10_000 + "}", "cannot be read as JSON"),
    "zip": ("PK\x03\x04 and so on", "zip archive"),
    "a number": ("5", 'no list "images"'),
    "unlabelled": ('{"images": [], "categories": []}', 'write "annotations": []'),
}


@pytest.mark.parametrize("text, words", OTHERS.values(), ids=OTHERS)
def test_the_wrong_thing_altogether(tmp_path, text, words):
    path = tmp_path / "given.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        parse(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 400
    assert words in message


def test_a_folder_and_a_picture(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        parse(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    with pytest.raises(InputError, match="JPEG picture; give the annotation file first"):
        parse(tmp_path / "a.jpg")


def test_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(a_set([])), encoding="utf-8-sig")
    assert parse(path)["images"]


# ---- how it is told ----


def test_the_first_fault_says_how_many_more(tmp_path):
    annotations = [entry(1, bbox=(0, 0, 0, 1)), entry(2, bbox=(0, 0, 0, 1)), entry(3, 99)]
    path = tmp_path / "my set.json"
    path.write_text(json.dumps(a_set([*annotations, entry(4, 98)])))
    with pytest.raises(InputError) as caught:
        coco.read_coco(path, image_root=tmp_path / "images")
    message = str(caught.value)
    assert message.startswith(f"{path}: annotation 3 (image 99) belongs to no image")
    assert "1 more like it and 2 of other kinds" in message
    assert f"`python tools/check_data.py '{path}' {tmp_path / 'images'}` lists all" in message


def test_one_fault_alone_names_no_tool():
    found, _ = check(a_set([entry(1, 99)]))
    with pytest.raises(InputError) as caught:
        raise_first(found.values(), check_command(FILE, None))
    assert "check_data" not in str(caught.value)


def test_notices_do_not_raise():
    found, _ = check(a_set([entry(0, bbox=(0, 0, 0, 1)), entry(1)]), drop_empty_boxes=True)
    assert found
    raise_first(found.values(), "")


def test_notices_are_logged_once(tmp_path, caplog):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(a_set([entry(0), entry(2, area=None)])))
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        coco.read_coco(path)
        coco.read_coco(path)
    lines = [line for line in caplog.messages if str(path) in line]
    assert len(lines) == 2 and all(line.startswith(f"{MENDED}: {path}: 1 x ") for line in lines)


def test_reading_gives_what_was_mended(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(a_set([entry(0), entry(3, bbox=(300, 0, 5, 5))])))
    assert ids(coco.read_coco(path, Rules(drop_empty_boxes=True))) == [1]
