"""Top-1 and top-5 error in percent, every validation image counted exactly once."""

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class ErrorEvaluator(DatasetEvaluator):
    """100 * (1 - hits / images); with fewer than five classes, "top 5" is among all of them.

    Args:
        first: > 0: the error among the first so many classes alone is given as well. All images
            must be of these (paper, Sec. 5.2: a network of 5,000 classes on the validation set of
            ImageNet-1K, 5K-way and 1K-way; there 1000). 0: not given.
    """

    def __init__(self, first: int = 0):
        self.first = first

    def reset(self) -> None:
        self.images = 0
        self.hits = torch.zeros(2, 2, dtype=torch.int64)  # all, first; top 1, top 5

    def process(self, inputs: dict, outputs: dict) -> None:
        """``inputs["label"]``: (N,); ``outputs["logits"]``: (N, num_classes)."""
        labels, logits = inputs["label"], outputs["logits"].cpu()
        self.images += len(labels)
        self.hits[0] += _hits(logits, labels)
        if self.first:
            # A softmax over these logits alone ranks them as they are.
            self.hits[1] += _hits(logits[:, : self.first], labels)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """{"classification": {"top1_error": .., "top5_error": ..}}, percent, among all classes.

        With ``first`` = 1000 also "top1_error_1000way" and "top5_error_1000way".
        """
        counts = comm.all_gather((self.images, self.hits.tolist()))
        images = sum(count for count, _ in counts)
        hits = torch.tensor([hits for _, hits in counts], dtype=torch.float64).sum(0)
        (top1, top5), (first1, first5) = (100 * (1 - hits / images)).tolist()
        errors = {"top1_error": top1, "top5_error": top5}
        if self.first:
            errors[f"top1_error_{self.first}way"] = first1
            errors[f"top5_error_{self.first}way"] = first5
        return {"classification": errors}


def _hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many labels come first, and how many are among the first five: int64 (2,)."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum()])


def errors_in_words(errors: dict[str, float], num_classes: int, first: int = 0) -> str:
    """The "classification" part of the results as the log says it.

    >>> errors_in_words({"top1_error": 22.2, "top5_error": 6.0}, num_classes=1000)
    'top-1 error 22.20 %, top-5 error 6.00 % among 1000 classes'
    """
    text = "top-1 error {:.2f} %, top-5 error {:.2f} % among {} classes"
    parts = [text.format(errors["top1_error"], errors["top5_error"], num_classes)]
    if first:
        names = (f"top1_error_{first}way", f"top5_error_{first}way")
        parts.append(text.format(*(errors[name] for name in names), f"the first {first}"))
    return "; ".join(parts)
