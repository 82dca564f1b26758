"""Texts of very different lengths, some of which are truncated, and their labels of every kind in one file."""

FILE = "animals.csv"
ENDINGS = ("", " at night", " and nobody saw it", " while the owl sleeps in the barn and the fox rests")
USUAL = {
    "source": {"kind": "files", "files": {"train": FILE}},
    "text": ["text"],
    "split": {"validation": 0.2, "test": 0.2},
}
NUMBER = {"column": "rating", "low": 0.0, "high": 4.0}
OF_CLASSES = ["accuracy", "macro_f1"]
ROWS = {  # the names of classes are in no alphabetical order
    "two": {"label": {"column": "weather", "names": ["wet", "dry"], "positive": "wet"}, "metrics": ["accuracy", "f1"]},
    "three": {"label": {"column": "size", "names": ["mid", "low", "high"]}, "metrics": OF_CLASSES},
    "pairs": {
        "text": ["text", "other"],
        "label": {"column": "weather", "names": ["wet", "dry"]},
        "metrics": ["accuracy", "f1", "matthews_correlation"],
    },
    "multi_label": {
        "label": {"multi_label": "tags", "separator": "|", "names": ["wet", "awake", "cat"]},
        "metrics": ["micro_f1", "macro_f1"],
    },
    "number": {"label": NUMBER, "metrics": ["pearson", "spearman"]},
    "comparisons": {"label": NUMBER, "pairs": {"margin": 0.5}, "metrics": ["accuracy", "f1"]},
    "grouped": {
        "label": {"column": "weather", "names": ["wet", "dry"]},
        "group": ["herd"],
        "metrics": ["exact_match", "macro_f1"],
    },
    "choices": {
        "text": ["{choice}"],
        "choices": ["text", "other"],
        "label": {"column": "weather", "names": ["wet", "dry"]},
        "metrics": ["accuracy"],
    },
}
ROWS = {name: USUAL | row for name, row in ROWS.items()}


def examples(count):
    """Return rows with two texts and labels of every kind; what is true of a row can be read in its first text."""
    return [example(number) for number in range(count)]


def example(number):
    cat, awake, wet = (number >> place & 1 for place in range(3))
    animal = ("dog", "cat")[cat]
    does = ("rests", "runs")[awake]
    place = ("garden", "river")[wet]
    text = f"the {animal} number {number} {does} in the {place}{ENDINGS[number % 4]}"
    tags = [name for name, applies in (("wet", wet), ("awake", awake), ("cat", cat)) if applies]
    return {
        "text": text,
        "other": f"nobody saw {number}{ENDINGS[number % 3]}",
        "herd": f"herd {number // 3}",
        "weather": ("dry", "wet")[wet],
        "size": ("low", "mid", "high")[wet + awake],
        "tags": "|".join(tags),
        "rating": wet + 2 * awake + number % 5 / 5,
    }
