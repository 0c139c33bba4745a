"""Guard the data report: boxes at the network's scale, the recall anchors can reach, the sheet.

The best IoU is compared with all anchors of Detectron2's own generator.
"""

import json
import shlex

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image

from resnext_det.config import load_cfg
from resnext_det.data.coco_checks import Rules
from resnext_det.data.coco_images import read_headers
from resnext_det.data.coco_sets import check_set
from resnext_det.data.coco_table import BoxTable
from resnext_det.detection import anchor_advice, data_report, data_text
from resnext_det.detection.anchor_report import (
    Anchors,
    Objects,
    anchors_of,
    as_overrides,
    best_iou,
    network_sizes,
    objects_of,
    recall,
)
from resnext_det.detection.data_pictures import HEIGHT, WIDTH, draw_sheet
from resnext_det.errors import InputError

ROOT = __file__.rsplit("/tests/", 1)[0]
SMALL = f"{ROOT}/configs/custom/small.yaml"
PAPER = f"{ROOT}/configs/faster_rcnn_X50_32x4d.yaml"
FPN = ["MODEL.BACKBONE.NAME", "build_resnext_fpn_backbone", "MODEL.RPN.IN_FEATURES"]
FPN += ["['p2','p3','p4']", "MODEL.RESNETS.OUT_FEATURES", "['res2','res3','res4','res5']"]
FPN += ["MODEL.FPN.IN_FEATURES", "['res2','res3','res4','res5']"]
FPN += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[16],[40],[90]]"]


def table(boxes, sizes=((200, 100),), image=None, category=None, crowd=None, names=("cup", "pan")):
    count = len(boxes)
    return BoxTable(
        boxes=np.array(boxes, float).reshape(-1, 4),
        image=np.array(image if image is not None else [0] * count, int),
        category=np.array(category if category is not None else [0] * count, int),
        is_crowd=np.array(crowd if crowd is not None else [False] * count, bool),
        sizes=np.array(sizes, float),
        image_ids=np.arange(len(sizes)) + 1,
        annotation_ids=np.arange(count) + 1,
        class_names=list(names),
    )


def random_boxes(count, width, height, least=1):
    random = np.random.default_rng(3)
    size = np.exp(random.uniform(np.log(least), np.log((width, height)), (count, 2)))
    first = random.uniform(0, 1, (count, 2)) * ((width, height) - size)
    return np.concatenate([first, size], axis=1)


# ---- the network's scale ----


@pytest.mark.parametrize("short, longest", [(320, 512), (600, 1000), (96, 1333)])
def test_sizes_are_those_of_the_mapper(short, longest):
    cfg = load_cfg(SMALL, ["INPUT.MIN_SIZE_TEST", str(short), "INPUT.MAX_SIZE_TEST", str(longest)])
    sizes = [(640, 480), (480, 640), (500, 333), (100, 100), (2000, 90)]
    expected = []
    for width, height in sizes:
        turn = ResizeShortestEdge(short, longest).get_transform(
            np.zeros((height, width, 3), np.uint8)
        )
        expected.append((turn.new_w, turn.new_h))
    assert network_sizes(np.array(sizes, float), cfg).tolist() == [list(x) for x in expected]


def test_sizes_as_they_are():
    cfg = load_cfg(SMALL, ["INPUT.MIN_SIZE_TEST", "0"])
    assert network_sizes(np.array([[640.0, 480.0]]), cfg).tolist() == [[640, 480]]


def test_objects_are_scaled_clipped_and_no_crowds():
    cfg = load_cfg(SMALL, ["INPUT.MIN_SIZE_TEST", "200", "INPUT.MAX_SIZE_TEST", "1000"])
    boxes = [(10, 20, 30, 40), (1, 1, 9, 9), (190, 90, 30, 30)]
    objects = objects_of(table(boxes, crowd=[False, True, False], category=[1, 0, 0]), cfg)
    assert objects.boxes.tolist() == [[20, 40, 80, 120], [380, 180, 400, 200]]
    assert objects.number.tolist() == [0, 2] and objects.category.tolist() == [1, 0]


# ---- anchors ----


def test_anchors_of_the_configs():
    anchors = anchors_of(load_cfg(SMALL))
    assert anchors.sizes == ((24, 48, 96, 160),) and anchors.ratios == ((0.5, 1, 2),)
    assert anchors.strides == (16,) and anchors.offset == 0.5
    shapes = anchors.shapes()[0]
    assert shapes.prod(axis=1) == pytest.approx(np.repeat([24, 48, 96, 160], 3) ** 2, rel=1e-5)
    assert (shapes[:, 1] / shapes[:, 0]) == pytest.approx(np.tile([0.5, 1, 2], 4), rel=1e-5)
    pyramid = anchors_of(load_cfg(PAPER, FPN))
    assert pyramid.strides == (4, 8, 16) and pyramid.sizes == ((16,), (40,), (90,))


def test_anchors_that_cannot_be_compared():
    cfg = load_cfg(SMALL, ["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]"])
    with pytest.raises(InputError, match="2 lists of sizes and 1 of ratios for 1 feature maps"):
        anchors_of(cfg)
    cfg = load_cfg(SMALL, ["MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"])
    with pytest.raises(InputError, match="RotatedAnchorGenerator"):
        anchors_of(cfg)


@pytest.mark.parametrize("size", [(512, 320), (321, 319), (40, 200)], ids=str)
@pytest.mark.parametrize("opts", [[], ["MODEL.ANCHOR_GENERATOR.OFFSET", "0.0"], FPN], ids=len)
def test_best_iou_is_that_of_all_anchors(opts, size):
    cfg = load_cfg(PAPER, opts)
    anchors = anchors_of(cfg)
    boxes = random_boxes(60, *size)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    count = len(boxes)
    objects = Objects(corners, np.tile(size, (count, 1)), np.zeros(count, int), np.arange(count))
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=s) for s in anchors.strides])
    features = [torch.zeros(1, 1, -(-size[1] // s), -(-size[0] // s)) for s in anchors.strides]
    every = Boxes(torch.cat([grid.tensor for grid in generator(features)]).double())
    expected = pairwise_iou(Boxes(torch.tensor(corners)), every).max(dim=1).values.numpy()
    # Detectron2's are float32.
    np.testing.assert_allclose(best_iou(objects, anchors), expected, atol=1e-5)


def test_recall():
    assert recall(np.array([0.5, 0.69, 0.7, 0.1])) == {"0.5": 75.0, "0.7": 25.0}
    assert np.isnan(recall(np.zeros(0))["0.5"])


# ---- advice ----


def objects_of_side(sides, category, image=512):
    count = len(sides)
    first = np.random.default_rng(0).uniform(0, image - max(sides), (count, 2))
    boxes = np.concatenate([first, first + np.array(sides)[:, None]], axis=1)
    sizes = np.full((count, 2), float(image))
    return Objects(boxes, sizes, np.array(category), np.arange(count))


FAR = Anchors(sizes=((300.0, 400.0),), ratios=((0.5, 2.0),), strides=(8,), offset=0.5)


def test_advice_finds_where_the_objects_are():
    objects = objects_of_side([40] * 50 + [120] * 50, [0] * 50 + [1] * 50)
    advised = anchor_advice.advise(objects, FAR)
    assert [len(part) for part in advised.sizes] == [2]
    assert advised.sizes[0] == pytest.approx((40, 120), rel=0.1)
    before, after = (recall(best_iou(objects, anchors)) for anchors in (FAR, advised))
    assert before["0.5"] == 0 and after["0.7"] > 90


def test_rare_classes_count_as_much():
    """One object in fifty is small; AP is a mean of classes."""
    objects = objects_of_side([120] * 490 + [30] * 10, [0] * 490 + [1] * 10)
    one = Anchors(sizes=((60.0, 70.0),), ratios=((1.0,),), strides=(8,), offset=0.5)
    ious = best_iou(objects, anchor_advice.advise(objects, one))
    assert ious[-10:].mean() > 0.6 and ious[:490].mean() > 0.6


def test_good_anchors_are_kept():
    objects = objects_of_side([40] * 20 + [120] * 20, [0] * 20 + [1] * 20)
    good = Anchors(sizes=((40.0, 120.0),), ratios=((1.0,),), strides=(4,), offset=0.5)
    assert anchor_advice.advise(objects, good) is good


@pytest.mark.parametrize(
    "before, after, better",
    [
        ([0.4] * 100, [0.4] * 99 + [0.5], True),
        ([0.4] * 101, [0.4] * 100 + [0.5], False),  # less than a point
        ([0.5] * 100, [0.5] * 99 + [0.7], True),
        ([0.5] * 100, [0.49] + [0.9] * 99, False),  # IoU 0.5 falls
        ([0.7] + [0.4] * 99, [0.69] + [0.6] * 99, False),  # IoU 0.7 falls
        ([0.4] * 100, [0.49] * 100, False),
    ],
)
def test_what_is_better(before, after, better):
    assert anchor_advice.serve_better(np.array(after), np.array(before)) is better


@pytest.mark.parametrize("seed", range(3))
def test_advice_is_better_over_all_objects_or_not_given(seed):
    """Rare classes weigh in the search; what costs the objects as a whole is not shown."""
    random = np.random.default_rng(seed)
    sides = [*random.uniform(90, 150, 300), *random.uniform(6, 12, 4), *random.uniform(7, 9, 4)]
    objects = objects_of_side(sides, [0] * 300 + [1] * 4 + [2] * 4)
    one = Anchors(sizes=((115.0,),), ratios=((1.0,),), strides=(8,), offset=0.5)
    advised = anchor_advice.advise(objects, one)
    old, new = (recall(best_iou(objects, anchors)) for anchors in (one, advised))
    assert all(new[key] >= old[key] for key in old)
    assert advised is one or any(new[key] >= old[key] + 1 for key in old)


def test_none_better_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(anchor_advice, "advise", lambda objects, anchors: anchors)
    text = data_text.as_text(data_report.make_report(checked_set(tmp_path), load_cfg(SMALL)))
    assert "none better of their number was found (better: of all objects the shares" in text
    assert "would serve better" not in text


def test_the_measure_is_said(tmp_path):
    text = data_text.as_text(data_report.make_report(checked_set(tmp_path), load_cfg(SMALL)))
    assert "would serve better, as many (better: of all objects the shares with IoU 0.5" in text
    assert "at least 1 point higher" in text


def test_advice_for_a_pyramid_keeps_its_form():
    anchors = anchors_of(load_cfg(PAPER, FPN))
    objects = objects_of_side([10] * 30 + [25] * 30 + [300] * 30, [0] * 90)
    advised = anchor_advice.advise(objects, anchors)
    sizes = [size for part in advised.sizes for size in part]
    assert [len(part) for part in advised.sizes] == [1, 1, 1] and sizes == sorted(sizes)
    assert best_iou(objects, advised).mean() > best_iou(objects, anchors).mean() + 0.1


def test_no_objects_no_advice():
    none = Objects(np.zeros((0, 4)), np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, int))
    assert anchor_advice.advise(none, FAR) is FAR and best_iou(none, FAR).shape == (0,)


@pytest.mark.parametrize("opts", [[], FPN], ids=len)
def test_advice_is_ready_for_the_command_line(opts):
    anchors = anchors_of(load_cfg(PAPER, opts))
    objects = objects_of_side([40] * 50 + [120] * 50, [0] * 100)
    advised = anchor_advice.advise(objects, anchors)
    assert advised != anchors
    assert anchors_of(load_cfg(PAPER, [*opts, *shlex.split(as_overrides(advised))])) == advised


# ---- the report ----


def make_set(folder, annotations, names=("cup", "pan"), pictures=3):
    for number in range(pictures):
        noise = np.random.default_rng(number).integers(0, 255, (100, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    images = [
        {"id": n, "file_name": f"{n}.png", "width": 200, "height": 100} for n in range(pictures)
    ]
    path = folder / "set.json"
    categories = [{"id": n, "name": name} for n, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def box(id_, image, bbox, category=0, **others):
    values = {"id": id_, "image_id": image, "category_id": category, "bbox": list(bbox)}
    return {**values, "iscrowd": 0, "area": bbox[2] * bbox[3], **others}


FEW = [
    box(1, 0, (10, 10, 30, 40)),
    box(2, 0, (50, 10, 30, 30)),
    box(3, 1, (150, 60, 80, 30), 1),
    box(4, 1, (0, 0, 90, 90), iscrowd=1),
    box(5, 0, (3, 3, 5, 2)),
]


def checked_set(folder, annotations=FEW, **options):
    path = make_set(folder, annotations, **options)
    return check_set(
        path, folder, Rules(), read=read_headers, most_detections=100, drops_empty_images=False
    )


def test_report_counts(tmp_path):
    report = data_report.make_report(checked_set(tmp_path), load_cfg(SMALL))
    assert report["counts"] == {
        "images": 3,
        "images_without_objects": 1,
        "annotations": 5,
        "crowds": 1,
        "categories": 2,
        "most_objects_in_an_image": 3,
    }
    rows = [(r["name"], r["objects"], r["share"], r["images"]) for r in report["classes"]]
    assert rows == [("cup", 3, 75.0, 1), ("pan", 1, 25.0, 1)]
    kinds = {finding["kind"]: finding["severity"] for finding in report["findings"]}
    assert kinds == {"box partly outside its image": "mended", "image without objects": "noticed"}
    assert not data_report.stops(report)


def test_report_measures_at_the_networks_scale(tmp_path):
    """200 x 100 becomes 512 x 256: the long side decides."""
    boxes = data_report.make_report(checked_set(tmp_path), load_cfg(SMALL))["boxes"]
    sides = 2.56 * np.sqrt([30 * 40, 30 * 30, 50 * 30, 5 * 2])  # the third is clipped
    expected = np.percentile(sides, boxes["percentiles"])
    assert boxes["quantiles"]["sqrt(area)"] == pytest.approx(expected, abs=0.01)
    assert boxes["network_scale"] == {"small": 25.0, "medium": 50.0, "large": 25.0}
    assert boxes["original_scale"] == {"small": 50.0, "medium": 50.0, "large": 0.0}
    assert boxes["narrower_than_a_cell"] == 25.0 and boxes["cell"] == 16


def test_report_is_json_and_text(tmp_path):
    report = data_report.make_report(checked_set(tmp_path), load_cfg(SMALL))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    text = data_text.as_text(report)
    for words in ("3 images (1 without objects)", "1 x box partly outside its image", "cup"):
        assert words in text
    assert "annotation 5 (image 0)" in text  # the worst for the anchors
    assert "MODEL.ANCHOR_GENERATOR.SIZES" in text


def test_advice_is_for_training_sets_only(tmp_path):
    cfg = load_cfg(SMALL)
    checked = checked_set(tmp_path)
    assert data_report.make_report(checked, cfg)["anchors"]["advice"]
    second = data_report.make_report(checked, cfg, advise=False)
    assert second["anchors"]["advice"] is None and "OVERRIDES" not in data_text.as_text(second)


@pytest.mark.parametrize("annotations", [[], [box(1, 0, (0, 0, 9, 9), iscrowd=1)]], ids=len)
def test_report_of_a_set_without_objects(tmp_path, annotations):
    report = data_report.make_report(checked_set(tmp_path, annotations), load_cfg(SMALL))
    assert report["boxes"] is None and report["anchors"] is None
    json.dumps(report, allow_nan=False)
    assert "no object is left" in data_text.as_text(report)
    assert data_report.stops(report) is bool(annotations)


def test_long_tables_are_cut_in_the_text_alone(tmp_path):
    names = [f"class{n}" for n in range(200)]
    report = data_report.make_report(checked_set(tmp_path, names=names), load_cfg(SMALL))
    text = data_text.as_text(report)
    assert len(report["classes"]) == 200 and len(text.splitlines()) < 80
    assert "180 more classes" in text and "198 in all" in text


def test_real_objects_are_not_reached_by_large_anchors(shared_data):
    """Field report 48 in numbers: platelets, a tenth as large as the paper's anchors expect."""
    root = shared_data / "bccd"
    options = {"read": read_headers, "most_detections": 100, "drops_empty_images": False}
    path = root / "annotations" / "instances_train.json"
    checked = check_set(path, root / "images", Rules(), **options)
    cfg = load_cfg(SMALL, ["MODEL.ANCHOR_GENERATOR.SIZES", "[[128, 256, 512]]"])
    report = data_report.make_report(checked, cfg)
    rows = {row["name"]: row["recall"]["0.5"] for row in report["classes"]}
    assert rows["Platelets"] < 5 and rows["WBC"] > 50
    assert report["anchors"]["advice"]["recall_class_mean"]["0.5"] > 85


# ---- pictures ----


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_sheet(tmp_path):
    """Three pictures and four to five close-ups: two rows of four fields."""
    path = tmp_path / "new" / "sheet.png"
    assert draw_sheet(checked_set(tmp_path), load_cfg(SMALL), path) == []
    width, height = size_of(path)
    assert 4 * WIDTH < width < 4 * (WIDTH + 20) and HEIGHT < height < 2 * (HEIGHT + 110)
    with Image.open(path) as image:
        assert np.asarray(image.convert("RGB")).std() > 30


def test_sheet_leaves_out_what_cannot_be_drawn(tmp_path):
    checked = checked_set(tmp_path)
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(whole[:100])
    (error,) = {str(e) for e in draw_sheet(checked, load_cfg(SMALL), tmp_path / "sheet.png")}
    assert error.startswith(f"{tmp_path / '0.png'}: ")
    assert (tmp_path / "sheet.png").is_file()
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(b"")
    assert draw_sheet(checked, load_cfg(SMALL), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_sheet_of_a_set_without_anything(tmp_path):
    checked = checked_set(tmp_path, [])
    assert draw_sheet(checked, load_cfg(SMALL), tmp_path / "sheet.png") == []
    checked.paths.clear()
    draw_sheet(checked, load_cfg(SMALL), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_close_ups_name_their_object(tmp_path, monkeypatch):
    """The smallest, the one over the border (also the lowest), the largest, the narrowest."""
    captions = []

    def draw(view, names):
        captions.append(view.caption)
        return np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    monkeypatch.setattr("resnext_det.detection.data_pictures._draw", draw)
    draw_sheet(checked_set(tmp_path), load_cfg(SMALL), tmp_path / "sheet.png")
    assert captions[:3] == ["0.png", "1.png", "2.png"]
    said = {line.split("\n")[1]: line.split(":")[0] for line in captions[3:]}
    assert said["annotation 5 (image 0)"].startswith("smallest")
    assert "farthest over the border" in said["annotation 3 (image 1)"]
    assert said["annotation 1 (image 0)"] == "narrowest for its height"
