"""Top-1 and top-5 error in percent, every validation image counted exactly once."""

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class ErrorEvaluator(DatasetEvaluator):
    """100 * (1 - hits / images); with fewer than five classes, "top 5" is among all of them."""

    def reset(self) -> None:
        self.images = self.hits1 = self.hits5 = 0

    def process(self, inputs: dict, outputs: dict) -> None:
        """``inputs["label"]``: (N,); ``outputs["logits"]``: (N, num_classes)."""
        labels = inputs["label"]
        logits = outputs["logits"].cpu()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = ranked == labels[:, None]
        self.images += len(labels)
        self.hits1 += int(hits[:, 0].sum())
        self.hits5 += int(hits.sum())

    def evaluate(self) -> dict[str, dict[str, float]]:
        counts = comm.all_gather((self.images, self.hits1, self.hits5))
        images, hits1, hits5 = torch.tensor(counts, dtype=torch.float64).sum(0).tolist()
        return {
            "classification": {
                "top1_error": 100 * (1 - hits1 / images),
                "top5_error": 100 * (1 - hits5 / images),
            }
        }
