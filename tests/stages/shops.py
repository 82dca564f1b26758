"""Tenants of a small data set: the rows of `workspace.ROWS["shops"]`."""

from tests import workspace

LABELS = {"acme": ["no", "yes"], "bolt": ["x", "y", "z"], "cast": ["no", "yes"]}


def rows(labels):
    """Rows of tenants, by the labels of each; those of a longer name are more."""
    pairs = workspace.sentences(120)
    made = []
    for name, own in labels.items():
        for number in range(30 + 10 * len(name)):
            text = f"{pairs[number][number % 2]} {name}"
            made.append({"shop": name, "text": text, "label": own[number % len(own)]})
    return made
