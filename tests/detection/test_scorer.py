"""Guard the scorer: the figures are pycocotools' to 1e-9, for every kind of data set and back end.

The reference is pycocotools itself, from the annotations and results as dicts with the ids as they
are, so that the packing into columns is compared too.
"""

import contextlib
import copy
import io
import json

import numpy as np
import pycocotools.mask
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnext_det.config import load_cfg
from resnext_det.config.checks import SCORERS
from resnext_det.detection import scorer_backends as backends
from resnext_det.detection.scorer import caps_of, score
from resnext_det.detection.scorer_arrays import truth_of
from resnext_det.detection.scorer_results import pack_results, read_results, write_results
from resnext_det.errors import InputError

SMALL, MEDIUM = 32**2, 96**2  # COCO's borders, pixels


@pytest.fixture(params=["pycocotools", "hotcoco"])
def scorer(request):
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco", reason="the extra `fast` is not installed")
    return request.param


# ---- pycocotools ----


def by_pycocotools(content, results, caps=(1, 10, 100), iou_type="bbox"):
    """precision and recall of COCOeval, unchanged pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iou_type)
        run.params.maxDets = list(caps)
        run.evaluate()
        run.accumulate()
        if caps == (1, 10, 100):
            run.summarize()
    return run


def assert_same(found, run):
    """Both arrays; by class; and the twelve figures where pycocotools can print them."""
    precision, recall = run.eval["precision"], run.eval["recall"]
    np.testing.assert_allclose(found.precision, precision, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.recall, recall, rtol=0, atol=1e-9)
    for k, ap in enumerate(found.class_ap()):
        there = precision[:, :, k, 0, -1]
        there = there[there > -1]
        assert np.isnan(ap) if not there.size else abs(ap / 100 - there.mean()) <= 1e-9
    figures = list(found.figures().values())
    assert len(figures) == 12
    if len(run.stats):
        expected = np.where(run.stats < 0, np.nan, run.stats)
        np.testing.assert_allclose(np.array(figures) / 100, expected, rtol=0, atol=1e-9)


# ---- generated sets ----


def make_set(seed, *, images=12, classes=4, most=8, crowds=0.0, areas="box", around=2, junk=4):
    """Objects of all sizes and detections near and away from them, in COCO's dicts.

    Args:
        most: objects of an image at most; every fifth image has none.
        crowds: share of the objects.
        areas: "box": width x height; "edges": on and beside the borders of the size ranges, and
            outside all of them.
        around: detections of an object; every fourth image has no detection.
        junk: detections of an image that are drawn anywhere.
    """
    random = np.random.default_rng(seed)
    annotations, results = [], []
    edges = [0, SMALL - 1, SMALL, SMALL + 1, MEDIUM - 1, MEDIUM, MEDIUM + 1, 1e10, 2e10]
    for image in range(1, images + 1):
        for _ in range(0 if image % 5 == 0 else random.integers(1, most + 1)):
            side = np.exp(random.uniform(np.log(6), np.log(250)))
            box = np.array([*random.uniform(0, 400, 2), side, side * random.uniform(0.5, 2)])
            class_ = int(random.integers(1, classes + 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": class_,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] if areas == "box" else random.choice(edges)),
                    "iscrowd": int(random.random() < crowds),
                }
            )
            for _ in range(around):
                moved = box + random.normal(size=4) * side * random.choice([0, 0.05, 0.2])
                results.append(result(image, class_, moved, random.random()))
        for _ in range(junk):
            box = [*random.uniform(0, 400, 2), *random.uniform(0, 200, 2)]
            class_ = int(random.integers(1, classes + 1))
            results.append(result(image, class_, box, random.random()))
    results = [results[i] for i in random.permutation(len(results)) if results[i]["image_id"] % 4]
    return content_of(images, classes, annotations), results


def result(image, class_, box, score_):
    x, y, width, height = (float(v) for v in box)
    box = [x, y, max(width, 0.0), max(height, 0.0)]
    return {"image_id": image, "category_id": class_, "bbox": box, "score": float(score_)}


def content_of(images, classes, annotations):
    return {
        "images": [{"id": n, "width": 640, "height": 640} for n in range(1, images + 1)],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, classes + 1)],
        "annotations": annotations,
    }


def equal_scores(seed):
    content, results = make_set(seed, around=4)
    for entry in results:
        entry["score"] = round(entry["score"] * 2) / 2
    return content, results


def one_score(seed):
    content, results = make_set(seed)
    for entry in results:
        entry["score"] = 0.5
    return content, results


def on_a_grid(seed):
    """IoUs that are equal to one another, and to the thresholds."""
    content, results = make_set(seed, around=4)
    for entry in (*content["annotations"], *results):
        x, y, width, height = (round(v / 20) * 20 for v in entry["bbox"])
        entry["bbox"] = [float(x), float(y), float(max(width, 20)), float(max(height, 20))]
    return content, results


def large_ids(seed):
    """Above 2^53, where a float64 holds even numbers only; categories and images out of order."""
    content, results = make_set(seed)
    far = 2**53

    def moved(number):
        return far + (number * 7919) % 9973  # neighbours, odd and even, in another order

    for entry in (*content["annotations"], *results):
        entry["image_id"] = moved(entry["image_id"])
        entry["category_id"] = moved(entry["category_id"])
    for entry in (*content["images"], *content["categories"]):
        entry["id"] = moved(entry["id"])
    for entry in content["annotations"]:
        entry["id"] = far + 3 * entry["id"]
    return content, results


def crowds_only_in_some_images(seed):
    content, results = make_set(seed, crowds=0.1)
    for entry in content["annotations"]:
        entry["iscrowd"] = int(entry["iscrowd"] or entry["image_id"] % 2)
    return content, results


def without_objects(seed):
    content, results = make_set(seed, images=6)
    return {**content, "annotations": []}, results


def without_results(seed):
    """One result of an empty box instead of none, which pycocotools cannot load: it is no match."""
    content, _ = make_set(seed)
    return content, [result(1, 1, [0, 0, 0, 0], 0.0)]


KINDS = {
    "plain": make_set,
    "crowds": lambda seed: make_set(seed, crowds=0.3),
    "crowds only in some images": crowds_only_in_some_images,
    "crowds only": lambda seed: make_set(seed, crowds=1.0),
    "areas on the borders and outside": lambda seed: make_set(seed, areas="edges", crowds=0.1),
    "few objects, many images without": lambda seed: make_set(seed, images=25, most=1, junk=1),
    "no object at all": without_objects,
    "one result that matches nothing": without_results,
    "equal scores": equal_scores,
    "one score for all": one_score,
    "equal overlaps": on_a_grid,
    "ids above 2^53": large_ids,
    "more than 100 detections": lambda seed: make_set(
        seed, images=3, classes=1, most=30, around=4, junk=120
    ),
    "one class": lambda seed: make_set(seed, classes=1),
    "one image": lambda seed: make_set(seed, images=1),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_pycocotools(kind, seed, scorer):
    content, results = KINDS[kind](seed)
    truth = truth_of(content, "generated.json")
    found = score(truth, pack_results(results, truth, "results.json"), scorer=scorer)
    assert found.backend == scorer
    assert_same(found, by_pycocotools(content, results))


@pytest.mark.parametrize("cap", [1, 5, 10, 30, 300])
def test_another_cap_is_followed(cap, scorer):
    """Also under 10, where pycocotools' list [1, 10, cap], sorted, ends in 10."""
    content, results = make_set(3, images=4, classes=1, most=30, around=5, junk=150)
    truth = truth_of(content, "generated.json")
    found = score(truth, pack_results(results, truth, ""), max_dets=cap, scorer=scorer)
    expected = by_pycocotools(content, results, (1, min(cap, 10), cap))
    assert_same(found, expected)
    if cap == 300:  # the cap matters in this set
        fewer = score(truth, pack_results(results, truth, ""), max_dets=100, scorer=scorer)
        assert found.figures()["AP"] > fewer.figures()["AP"]


def test_a_dense_image_of_perfect_boxes_scores_100_with_a_higher_cap(scorer):
    boxes = [[20.0 * i, 20.0 * j, 15.0, 15.0] for i in range(15) for j in range(10)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "area": 225.0, "iscrowd": 0}
        for n, box in enumerate(boxes, 1)
    ]
    content = content_of(1, 1, annotations)
    truth = truth_of(content, "dense.json")
    found = pack_results([result(1, 1, box, 0.9) for box in boxes], truth, "")
    ap = {n: score(truth, found, max_dets=n, scorer=scorer).figures()["AP"] for n in (100, 150)}
    assert ap[150] == pytest.approx(100)
    assert ap[100] == pytest.approx(100 * 67 / 101)  # recalls 0 to 0.66


def test_an_annotation_of_id_0_counts(scorer):
    """pycocotools takes its number for "not matched": perfect boxes get less than 100 there."""
    content, _ = make_set(0, crowds=0.0)
    for entry in content["annotations"]:
        entry["id"] -= 1
    assert content["annotations"][0]["id"] == 0
    perfect = [
        result(e["image_id"], e["category_id"], e["bbox"], 0.9) for e in content["annotations"]
    ]
    truth = truth_of(content, "zero.json")
    found = score(truth, pack_results(perfect, truth, ""), scorer=scorer)
    assert found.figures()["AP"] == pytest.approx(100)
    assert by_pycocotools(content, perfect).stats[0] < 0.999


def test_no_detections_score_0(scorer):
    content, _ = make_set(0)
    truth = truth_of(content, "generated.json")
    found = score(truth, pack_results([], truth, "results.json"), scorer=scorer)
    assert_same(found, by_pycocotools(*without_results(0)))
    assert found.figures()["AP"] == 0


def test_back_ends_agree_where_pycocotools_cannot_be_asked():
    """A set without objects and without detections."""
    pytest.importorskip("hotcoco")
    truth = truth_of(content_of(3, 2, []), "empty.json")
    both = [score(truth, pack_results([], truth, ""), scorer=name) for name in backends.BACKENDS]
    np.testing.assert_array_equal(both[0].precision, both[1].precision)
    assert all(np.isnan(value) for one in both for value in one.figures().values())


# ---- real sets ----

REAL = {
    "coco train": "coco/annotations/instances_train2017.json",
    "coco val": "coco/annotations/instances_val2017.json",
    "bccd train": "bccd/annotations/instances_train.json",
    "bccd val": "bccd/annotations/instances_val.json",
    "bccd test": "bccd/annotations/instances_test.json",
}


def near_the_truth(content, seed=0):
    """Detections near the objects, some of another class, some twice, scores to two digits."""
    random = np.random.default_rng(seed)
    classes = [category["id"] for category in content["categories"]]
    results = []
    for entry in content["annotations"]:
        for _ in range(random.integers(0, 4)):
            moved = np.array(entry["bbox"])
            moved = moved + random.normal(size=4) * random.choice([0, 0.04, 0.15]) * moved[2:].min()
            own = random.random() < 0.9
            class_ = entry["category_id"] if own else int(random.choice(classes))
            results.append(result(entry["image_id"], class_, moved, round(random.random(), 2)))
    return results


@pytest.mark.parametrize("name", REAL)
def test_real_sets(shared_data, name, scorer):
    content = json.loads((shared_data / REAL[name]).read_text())
    results = near_the_truth(content)
    truth = truth_of(content, name)
    found = score(truth, pack_results(results, truth, ""), scorer=scorer)
    assert_same(found, by_pycocotools(content, results))
    assert 20 < found.figures()["AP"] < 95


# ---- masks ----


def test_masks_are_scored_by_pycocotools():
    """The area of a detection is its mask's, as Detectron2 has it, not its box's."""
    content, results = make_set(5, images=4, junk=1)
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w / 2, y + h]]
    truth = truth_of(content, "masks.json", masks=True)
    boxes = pack_results(results, truth, "")
    masks = []
    for x, y, w, h in boxes.boxes.tolist():
        polygon = [x, y, x + w + 1, y, x + w / 2, y + h + 1]
        masks += pycocotools.mask.frPyObjects([polygon], 640, 640)
    found = score(truth, with_masks(boxes, masks), iou_type="segm")
    bare = [
        {**{k: v for k, v in entry.items() if k != "bbox"}, "segmentation": mask}
        for entry, mask in zip(results, masks, strict=True)
    ]
    assert found.backend == "pycocotools"
    assert_same(found, by_pycocotools(content, bare, iou_type="segm"))
    assert 10 < found.figures()["AP"] < 90


def with_masks(found, masks):
    return type(found)(found.images, found.classes, found.boxes, found.scores, masks)


def test_masks_without_segmentation_are_refused():
    content, _ = make_set(0)
    with pytest.raises(InputError, match="gen.json: annotation 1 has no segmentation"):
        truth_of(content, "gen.json", masks=True)


# ---- a choice of classes ----


def test_a_choice_of_classes(scorer):
    """As if the file and the results held nothing else; the others have no figure."""
    content, results = make_set(1)
    truth = truth_of(content, "generated.json")
    names = ["class 4", "class 2"]
    found = score(truth, pack_results(results, truth, ""), classes=names, scorer=scorer)
    kept = {
        "images": content["images"],
        "categories": [entry for entry in content["categories"] if entry["name"] in names],
        "annotations": [e for e in content["annotations"] if e["category_id"] in (2, 4)],
    }
    run = by_pycocotools(kept, [e for e in results if e["category_id"] in (2, 4)])
    np.testing.assert_allclose(found.precision[:, :, [1, 3]], run.eval["precision"], atol=1e-9)
    assert (found.precision[:, :, [0, 2]] == -1).all()
    expected = np.where(run.stats < 0, np.nan, run.stats)
    np.testing.assert_allclose(np.array(list(found.figures().values())) / 100, expected, atol=1e-9)
    assert np.isnan(np.array(found.class_ap())[[0, 2]]).all()


def test_a_class_that_is_not_there_is_refused():
    truth = truth_of(make_set(0)[0], "val.json")
    with pytest.raises(InputError, match="TEST.CLASSES: holds 'cat', no class of val.json; .*4"):
        score(truth, pack_results([], truth, ""), classes=["class 1", "cat"])


# ---- choosing a back end ----


def test_auto_takes_the_fast_one_where_it_is_installed():
    pytest.importorskip("hotcoco")
    assert backends.choose("auto", "bbox") == "hotcoco"
    assert backends.choose("auto", "segm") == "pycocotools"
    assert backends.choose("pycocotools", "bbox") == "pycocotools"


def test_auto_falls_back_where_figures_differ(monkeypatch, caplog):
    """A release that counts otherwise: seen on the small set, said, and not used."""
    pytest.importorskip("hotcoco")
    real = backends.by_hotcoco

    def a_little_off(*arguments):
        precision, recall = real(*arguments)
        return precision + 1e-6, recall

    backends.fault_of_fast.cache_clear()
    monkeypatch.setattr(backends, "by_hotcoco", a_little_off)
    try:
        assert backends.choose("auto", "bbox") == "pycocotools"
        assert "hotcoco is not used: it is 1.0e-06 off pycocotools" in caplog.text
        with pytest.raises(InputError, match='TEST.SCORER: is "hotcoco", which is 1.0e-06 off'):
            backends.choose("hotcoco", "bbox")
    finally:
        backends.fault_of_fast.cache_clear()


def test_a_fast_one_that_fails_is_not_used(monkeypatch):
    pytest.importorskip("hotcoco")

    def broken(*_):
        raise TypeError("no such argument")

    backends.fault_of_fast.cache_clear()
    monkeypatch.setattr(backends, "by_hotcoco", broken)
    try:
        assert backends.choose("auto", "bbox") == "pycocotools"
        assert "no such argument" in backends.fault_of_fast()
    finally:
        backends.fault_of_fast.cache_clear()


def test_without_the_fast_one(monkeypatch):
    backends.fault_of_fast.cache_clear()
    monkeypatch.setattr(backends, "is_installed", lambda: False)
    try:
        assert backends.choose("auto", "bbox") == "pycocotools"
        with pytest.raises(InputError, match="TEST.SCORER: .*not installed.*; set it to"):
            backends.choose("hotcoco", "bbox")
    finally:
        backends.fault_of_fast.cache_clear()


def test_an_unknown_scorer_is_refused():
    with pytest.raises(InputError, match='TEST.SCORER: is "fast".*auto, pycocotools, hotcoco'):
        backends.choose("fast", "bbox")


def test_caps():
    assert [caps_of(n) for n in (1, 5, 100)] == [(1, 1, 1), (1, 5, 5), (1, 10, 100)]
    with pytest.raises(InputError, match="TEST.DETECTIONS_PER_IMAGE: is 0"):
        caps_of(0)


# ---- results files ----


def test_results_are_read_back(tmp_path):
    content, results = large_ids(0)
    truth = truth_of(content, "val.json")
    found = pack_results(results, truth, "")
    write_results(tmp_path / "results.json", found, truth)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    again = read_results(tmp_path / "results.json", truth)
    for name in ("images", "classes", "boxes", "scores"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def change(results, **fields):
    return [{**results[0], **fields}, *results[1:]]


FAULTS = {
    "no list": (lambda r: {"a": 1}, "holds a dict, no list of results"),
    "no mapping": (lambda r: [3], "result 0 is 3, no mapping"),
    "no score": (lambda r: change(r, score=None), "result 0 has no score"),
    "short box": (lambda r: change(r, bbox=[1, 2, 3]), r"has the bbox \[1, 2, 3\]"),
    "text as score": (lambda r: change(r, score="0.9"), "has the score '0.9', no number"),
    "NaN": (lambda r: change(r, score=float("nan")), "not finite: score nan"),
    "another category": (
        lambda r: change(r, category_id=91),
        r"category_id 91; val.json has 1, 2, 3, .. \(4 of 5 overlap\)",
    ),
    "another split": (
        lambda r: change(r, image_id=777),
        r"does not match val.json: 9 of 10 image ids overlap with its 12; here 777 of type int, "
        r"there 1, 2, 3, .. of type int; give the results and the annotations of the same split",
    ),
    "ids as text": (
        lambda r: [{**entry, "image_id": str(entry["image_id"])} for entry in r],
        r"0 of 9 image ids overlap with its 12; here '\d+', '\d+', '\d+', .. of type str, there 1, "
        r"2, 3, .. of type int; give image ids as the whole numbers",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_results_that_do_not_fit_are_refused(tmp_path, fault):
    content, results = make_set(0)
    spoil, message = FAULTS[fault]
    (tmp_path / "results.json").write_text(json.dumps(spoil(results)))
    with pytest.raises(InputError, match=f"results.json: .*{message}"):
        read_results(tmp_path / "results.json", truth_of(content, "val.json"))


def test_a_results_file_that_is_not_there(tmp_path):
    truth = truth_of(make_set(0)[0], "val.json")
    with pytest.raises(InputError, match="none.json: cannot be read"):
        read_results(tmp_path / "none.json", truth)
    (tmp_path / "half.json").write_text('[{"image_id": 1')
    with pytest.raises(InputError, match="half.json: is not JSON"):
        read_results(tmp_path / "half.json", truth)


def test_the_config_knows_the_same_scorers():
    """Which may not import them: checked before anything is trained."""
    assert SCORERS == backends.CHOICES
    with pytest.raises(InputError, match="TEST.SCORER"):
        load_cfg("", ["TEST.SCORER", "cocoapi"])
