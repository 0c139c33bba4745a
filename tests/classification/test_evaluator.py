"""Guard Table 6's two figures: 5K-way and 1K-way error of one network on one validation set."""

import pytest
import torch
from detectron2.utils import comm

from resnext_det.classification.evaluator import ErrorEvaluator, errors_in_words

# Seven classes, of which the images are of the first three.
RANKED = torch.tensor(
    [
        [9.0, 8, 7, 1, 2, 3, 4],  # label 0: first in both rankings
        [5.0, 3, 4, 9, 8, 1, 2],  # label 0: third of all, first of the three
        [1.0, 0, 2, 9, 8, 7, 6],  # label 0: sixth of all, second of the three
        [2.0, 1, 0, 9, 8, 7, 6],  # label 2: last of all, third of the three
    ]
)
LABELS = torch.tensor([0, 0, 0, 2])


def errors_of(logits, labels, first):
    evaluator = ErrorEvaluator(first)
    evaluator.reset()
    for chunk in (slice(0, 1), slice(1, None)):  # the counts add up over batches
        evaluator.process({"label": labels[chunk]}, {"logits": logits[chunk]})
    return evaluator.evaluate()["classification"]


def test_an_extra_class_in_front_counts_as_wrong():
    errors = errors_of(RANKED, LABELS, first=3)
    assert errors == {
        "top1_error": 75.0,
        "top5_error": 50.0,
        "top1_error_3way": 50.0,
        "top5_error_3way": 0.0,  # fewer than five classes: among all of them
    }


def test_without_first_classes_nothing_is_added():
    errors = errors_of(RANKED, LABELS, first=0)
    assert errors == {"top1_error": 75.0, "top5_error": 50.0}


def test_all_classes_are_the_same_as_no_choice():
    errors = errors_of(RANKED, LABELS, first=7)
    assert errors["top1_error_7way"] == errors["top1_error"] == 75.0
    assert errors["top5_error_7way"] == errors["top5_error"] == 50.0


def test_random_logits_against_the_definition():
    """The softmax over the first 1000 of 5000 logits, its five largest probabilities."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(1000, (64,), generator=random)
    logits = torch.randn(64, 5000, generator=random)
    logits[torch.arange(64), labels] += 3
    errors = errors_of(logits, labels, first=1000)
    for name, scores in (("", logits.softmax(1)), ("_1000way", logits[:, :1000].softmax(1))):
        own = scores[torch.arange(64), labels]
        place = (scores > own[:, None]).sum(1)  # 0 for the largest
        assert errors[f"top1_error{name}"] == 100 * (place >= 1).double().mean().item()
        assert errors[f"top5_error{name}"] == 100 * (place >= 5).double().mean().item()
    assert errors["top1_error_1000way"] < errors["top1_error"]


def test_a_second_evaluation_starts_anew():
    evaluator = ErrorEvaluator(3)
    for _ in range(2):
        evaluator.reset()
        evaluator.process({"label": LABELS}, {"logits": RANKED})
        found = evaluator.evaluate()["classification"]
    assert found == errors_of(RANKED, LABELS, first=3)


def test_the_counts_of_all_processes_are_added(monkeypatch):
    """Of another process: four images, all of them hit."""
    theirs = (4, [[4, 4], [4, 4]])
    monkeypatch.setattr(comm, "all_gather", lambda ours: [ours, theirs])
    errors = errors_of(RANKED, LABELS, first=3)
    assert errors == {
        "top1_error": 37.5,
        "top5_error": 25.0,
        "top1_error_3way": 25.0,
        "top5_error_3way": 0.0,
    }


@pytest.mark.parametrize(
    "first, words",
    [
        (0, "top-1 error 75.00 %, top-5 error 50.00 % among 7 classes"),
        (
            3,
            "top-1 error 75.00 %, top-5 error 50.00 % among 7 classes; "
            "top-1 error 50.00 %, top-5 error 0.00 % among the first 3 classes",
        ),
    ],
)
def test_errors_in_words(first, words):
    assert errors_in_words(errors_of(RANKED, LABELS, first), num_classes=7, first=first) == words
