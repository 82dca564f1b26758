"""`train.class_weights: balanced` gives each class an equal share of the gradient, however a split is cut into batches.

The reference is the gradient over the whole split at once, with the weights that scikit-learn gives its labels.
"""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from pipeline import tasks
from tests.pipeline.data.rows import SPLITS, row_of

ROWS = 1280
FILES = dict.fromkeys(SPLITS, "t.csv")
# A split's number of labels by class; 13 of 1,280 are 1 %.
CLASSES = {"two": (13, 1267), "two, the rare one last": (1267, 13), "four": (1000, 200, 67, 13)}
BATCHES = (8, 16, 32, 128, ROWS)


def gradient(loss, logits, labels, batches):
    """The gradient of the mean of the batches' losses, with respect to each example's logits."""
    logits = logits.clone().requires_grad_()
    torch.stack([loss(logits[rows], labels[rows]) for rows in batches]).mean().backward()
    return logits.grad


def of_classes(counts):
    """A task of classes, its labels in an order that is drawn, and logits; with one rare example in a batch or none."""
    drawn = torch.Generator().manual_seed(0)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[torch.randperm(ROWS, generator=drawn)]
    names = [f"class {number}" for number in range(len(counts))]
    task = tasks.of(row_of(FILES, label={"column": "label", "names": names}))
    return task, labels, torch.randn(ROWS, len(counts), generator=drawn)


@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("counts", CLASSES.values(), ids=CLASSES)
def test_batches_of_any_size_have_the_gradient_of_the_whole_split_in_which_classes_weigh_the_same(counts, size):
    task, labels, logits = of_classes(counts)
    balanced = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels.numpy())
    weight = torch.from_numpy(balanced).float()
    whole = gradient(lambda *given: F.cross_entropy(*given, weight=weight), logits, labels, [slice(None)])
    loss = task.head.build_balanced_loss(labels.numpy())
    found = gradient(loss, logits, labels, torch.arange(ROWS).split(size))
    torch.testing.assert_close(found, whole)
    # Where all outputs are alike, each example's gradient is as long as its weight.
    found = gradient(loss, torch.zeros_like(logits), labels, torch.arange(ROWS).split(size))
    shares = torch.stack([found[labels == number].norm(dim=1).sum() for number in range(len(counts))])
    torch.testing.assert_close(shares / shares.sum(), torch.full_like(shares, 1 / len(counts)))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_with_a_part_of_each_batch_have_the_gradient_of_one_with_all_of_it(processes):
    """The Trainer takes the mean of the processes' losses; accelerate gives each as many rows, of a last batch too."""
    task, labels, logits = of_classes(CLASSES["two"])
    loss = task.head.build_balanced_loss(labels.numpy())
    for batch in torch.arange(ROWS).split(32):
        alone = gradient(loss, logits, labels, [batch])
        torch.testing.assert_close(gradient(loss, logits, labels, batch.chunk(processes)), alone)


@pytest.mark.parametrize("size", BATCHES)
def test_texts_with_a_label_weigh_as_much_as_those_without_it_for_each_of_several_labels(size):
    drawn = torch.Generator().manual_seed(0)
    often = torch.tensor([0.01, 0.5, 0.9])
    labels = (torch.rand(ROWS, 3, generator=drawn) < often).float()
    labels = torch.cat([labels, torch.ones(ROWS, 1)], dim=1)  # a label that every text has
    logits = torch.randn(ROWS, 4, generator=drawn)
    label = {"multi_label": "label", "separator": "|", "names": ["rare", "half", "often", "always"]}
    task = tasks.of(row_of(FILES, label=label, metrics=["micro_f1"]))
    weights = torch.ones(ROWS, 4)
    for number in range(3):
        column = labels[:, number].numpy()
        without, with_it = compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=column)
        weights[:, number] = torch.from_numpy(np.where(column == 1, with_it, without))
    weights[:, 3] = (
        0.5  # what scikit-learn's formula, rows / (classes * rows of the class), gives the only class there is
    )

    def of_rows(outputs, wanted):
        each = -wanted * F.logsigmoid(outputs) - (1 - wanted) * F.logsigmoid(-outputs)
        return (weights * each).mean()

    whole = gradient(of_rows, logits, labels, [slice(None)])
    found = gradient(task.head.build_balanced_loss(labels.numpy()), logits, labels, torch.arange(ROWS).split(size))
    torch.testing.assert_close(found, whole)
