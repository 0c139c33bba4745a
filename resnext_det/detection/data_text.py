"""The report of tools/check_data.py as text for a terminal."""

from typing import Any

from ..data.findings import SEVERITIES, Finding
from .anchor_advice import LEAST_GAIN
from .data_report import LARGE, SMALL

ROWS = 20  # of a table; the JSON holds all
WORST = 5  # classes
BETTER = (
    "of all objects the shares with IoU 0.5 and 0.7 are not lower, and one is at least "
    f"{LEAST_GAIN:g} point higher"
)


def as_text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    counts = report["counts"]
    lines = [
        f"{report['json']}: {counts['images']:,} images ({counts['images_without_objects']:,} "
        f"without objects), {counts['annotations']:,} annotations ({counts['crowds']:,} crowds), "
        f"{counts['categories']:,} categories, at most {counts['most_objects_in_an_image']:,} "
        "objects an image",
        *findings_text([Finding(**finding) for finding in report["findings"]]),
    ]
    lines += ["", *_classes_text(report["classes"])]
    if report["boxes"] is None:
        lines += ["", "no object is left to measure"]
    else:
        lines += ["", *_boxes_text(report["boxes"]), "", *_anchors_text(report)]
    sheet = report.get("sheet")
    if sheet:
        lines += ["", f"pictures: {sheet['path']}"]
        lines += [f"  not drawn (--decode looks for all such): {e}" for e in sheet["not_drawn"]]
    return "\n".join(lines)


def findings_text(findings: list[Finding]) -> list[str]:
    """Lines, what stops first."""
    if not findings:
        return ["", "nothing is wrong"]
    titles = {
        "stops": "stops training",
        "dropped": "left out, as the config says",
        "mended": "mended by itself",
        "noticed": "worth knowing",
    }
    lines = []
    for severity in SEVERITIES:
        kinds = [finding for finding in findings if finding.severity == severity]
        if kinds:
            lines += ["", f"{titles[severity]}:"]
        for finding in kinds:
            lines.append(f"  {finding.count:,} x {finding.kind}: {finding.mend}")
            lines += [f"      {example}" for example in finding.examples]
            if finding.count > len(finding.examples):
                lines.append(f"      ... {finding.count - len(finding.examples):,} more")
    return lines


def _classes_text(classes: list[dict[str, Any]]) -> list[str]:
    width = max(len("class"), *(len(row["name"]) for row in classes), 0)
    lines = [f"{'class':{width}}  objects   share  images  recall at IoU 0.5  0.7"]
    ordered = sorted(classes, key=lambda row: -row["objects"])
    for row in ordered[:ROWS]:
        shares = [_number(value, 5) for value in row["recall"].values()]
        lines.append(
            f"{row['name']:{width}}  {row['objects']:7,} {row['share']:6.1f}% {row['images']:7,}"
            f"  {shares[0]:>17}  {shares[1]}"
        )
    rest = ordered[ROWS:]
    if rest:
        total = sum(row["objects"] for row in rest)
        lines.append(f"... {len(rest)} more classes with {total:,} objects")
    empty = [row["name"] for row in classes if not row["objects"]]
    if empty:
        more = f", ... {len(empty)} in all" if len(empty) > ROWS else ""
        lines.append(f"without objects: {', '.join(empty[:ROWS])}{more}")
    used = [row["objects"] for row in classes if row["objects"]]
    if len(used) > 1:
        lines.append(
            f"the most frequent class has {max(used) / min(used):.1f} times the objects of the "
            "rarest one"
        )
    return lines


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.1f}':>{width}}"


def _boxes_text(boxes: dict[str, Any]) -> list[str]:
    short, longest = boxes["input_size"]
    lines = [
        f"objects at the network's scale, px (short side {short}, long side at most {longest}):",
        f"{'percentile':16}" + "".join(f"{q:>8}" for q in boxes["percentiles"]),
    ]
    for name, values in boxes["quantiles"].items():
        lines.append(f"{name:16}" + "".join(f"{value:8.2f}" for value in values))
    for key, what in (("network_scale", "there"), ("original_scale", "in the original pictures")):
        shares = ", ".join(f"{name} {share:.1f} %" for name, share in boxes[key].items())
        lines.append(f"{what}: {shares} (COCO's limits, {SMALL} and {LARGE} px square)")
    if boxes["narrower_than_a_cell"]:
        lines.append(
            f"{boxes['narrower_than_a_cell']:.1f} % are narrower or lower than a cell of the "
            f"feature map ({boxes['cell']} px): larger INPUT.MIN_SIZE_* and MAX_SIZE_* serve "
            "those, anchors alone do not"
        )
    return lines


def _anchors_text(report: dict[str, Any]) -> list[str]:
    own, advice = report["anchors"]["config"], report["anchors"]["advice"]
    ranked = sorted(
        (row for row in report["classes"] if row["objects"]), key=lambda row: row["recall"]["0.5"]
    )
    worst = ", ".join(f"{row['name']} {row['recall']['0.5']:.1f} %" for row in ranked[:WORST])
    object_ = report["anchors"]["worst_object"]
    lines = [
        f"anchors of the config: sizes {own['sizes']}, ratios {own['ratios'][0]}, every "
        f"{own['strides']} px",
        f"  objects with an anchor of IoU {_recalls(own)}",
        f"  worst classes at IoU 0.5: {worst}",
        f"  worst object: {object_['entry']}, IoU {object_['iou']:.2f}",
    ]
    if advice is None:
        tried = [f"  none better of their number was found (better: {BETTER})"]
        return lines + tried * report["anchors"]["searched"]
    return [
        *lines,
        f"anchors that would serve better, as many (better: {BETTER}):",
        f"  {advice['overrides']}",
        f"  objects with an anchor of IoU {_recalls(advice)}",
    ]


def _recalls(anchors: dict[str, Any]) -> str:
    mean = anchors["recall_class_mean"]
    return ", ".join(
        f"{iou}: {share:.1f} % (mean of classes {mean[iou]:.1f} %)"
        for iou, share in anchors["recall"].items()
    )
