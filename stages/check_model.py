"""Check params.yaml against the names and shapes of the model's layers. Writes artifacts/checked-model.json.

Like `check`, it has nothing to lose: its output is the same for all valid inputs. Reads the configuration and the
tokenizer of the model, but none of its weights, and the frames of another adapter in a folder.
"""

from pipeline import params, stage
from pipeline.core import artifacts, console
from pipeline.methods import adapters, base_models


def check_model(view: params.CheckModelView) -> None:
    """Check that texts of max_length and the chosen section fit the model.

    Raises:
        UserError: if they do not, or the model is missing.
    """
    row = view.base_model
    if base_models.brings_code(row):
        name = base_models.public_name(row)[0]
        console.warn(
            f"{row.where}: {name}: not checked, because it brings code, which a later stage runs as the row says"
        )
        return
    base_models.check_tokens(base_models.load_tokenizer(row), view.tokenize.max_length)
    model = base_models.outline(row)
    base_models.check_positions(model, view.tokenize.max_length)
    adapters.check_section(model, view.section, row)


def main(view: params.CheckModelView) -> None:
    check_model(view)
    artifacts.write_metrics(artifacts.CHECKED_MODEL, {"valid": "what params.yaml asks of the model"})


if __name__ == "__main__":
    stage.run(main, params.CheckModelView)
