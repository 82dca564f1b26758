"""The tenants of a server: adapters of one base model for every kind of task."""

from peft import LoraConfig
from tokenizers.processors import TemplateProcessing

from lsr import LsrConfig
from tests import helpers, rows, tiny

CHANGING = ("anna", "ben", "cleo", "dora")  # tenants with a second version, which has other labels and reads less
LENGTHS = (28, 12)  # tokens that the versions read
PAIR = "pia"
TAGS = "tom"
NUMBER = "nora"
ALL = (*CHANGING, PAIR, TAGS, NUMBER)
THRESHOLDS = [0.3, 0.5, 0.9]
TEXTS = [row["text"] for row in rows.examples(24)]


def config(number, rank=3):
    """Return the configuration of a LoRA, or for every other number of an adapter of LSR."""
    options = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    if number % 2:
        return LoraConfig(r=rank, **options)
    return LsrConfig(rank_shape=(rank,), separation_rank=None, **options)


def save_base(folder, single="<s> $A <unk>", pair="<s> $A <unk> $B:1 <unk>:1", **options):
    """Save a base model whose tokenizer adds special tokens by a template and marks the second text of a pair."""
    tiny.save_base(folder, "bert")
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = tiny.tokenizer("bert", model_input_names=inputs, **options)
    special = [(token, tiny.SPECIAL.index(token)) for token in ("<s>", "<unk>")]
    template = TemplateProcessing(single=single, pair=pair, special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(folder)


def save_adapters(folder):
    """Save the adapters of the tenants, on the base model in the folder.

    The second version of `cleo` is so large that it needs batches of its own.
    """
    base = folder / "base"
    for number, name in enumerate(CHANGING):
        for version, max_length in enumerate(LENGTHS):
            count = 2 + number + version * (70 if name == "cleo" else 1)
            labels = [f"{name}-{version}-{label}" for label in range(count)]
            seed = 2 * number + version
            task = {"labels": labels, "max_length": max_length}
            tiny.save_adapter(folder / f"{version}/{name}", base, config(seed, 3 + version), seed=seed, **task)
    tiny.save_adapter(folder / "0" / PAIR, base, config(8), seed=8, columns=["text", "other"])
    multi_label = {"kind": "multi_label", "thresholds": THRESHOLDS}
    tiny.save_adapter(folder / "0" / TAGS, base, config(9), seed=9, labels=["x", "y", "z"], **multi_label)
    number = tiny.save_adapter(folder / "0" / NUMBER, base, config(10), seed=10, labels=["value"], kind="number")
    helpers.edit(number / "task.json", labels=None)
