"""Texts of animals with any number of labels: the rows of `workspace.ROWS["animals"]`."""

NAMES = ("awake", "cat", "wet")
WORDS = (("rests", "runs"), ("dog", "cat"), ("garden", "river"))  # without a label, and with it


def animal(number):
    """A text, and the labels that apply to it."""
    bits = [number >> place & 1 for place in range(3)]
    does, what, where = (pair[bit] for pair, bit in zip(WORDS, bits, strict=True))
    tags = [name for name, bit in zip(NAMES, bits, strict=True) if bit]
    return f"the {what} number {number} {does} in the {where}", tags


def rows(count):
    """Rows of a file, in which a text joins the labels."""
    return [{"text": text, "tags": "|".join(tags)} for text, tags in map(animal, range(count))]
