"""`python -m held -m stages.train`: a stage that waits, once it has begun and read its parameters, until it may go on.

Of the stage that the environment variable HELD names; every other module runs as usual. In the folder HELD_IN, the file
`begun` says that it waits, and the file `go` lets it go on.
"""

import os
import runpy
import sys
import time
from pathlib import Path

_, _, module, *words = sys.argv
if module == os.environ.get("HELD"):
    import stages  # noqa: F401 as `python -m stages.NAME` does, before anything else of ours
    from pipeline import stage

    folder = Path(os.environ["HELD_IN"])
    start = stage.run

    def run(main, view, description):
        def wait(loaded):
            (folder / "begun").touch()
            while not (folder / "go").exists():
                time.sleep(0.02)
            main(loaded)

        wait.__module__ = main.__module__
        start(wait, view, description)

    stage.run = run
sys.argv = [module, *words]
runpy.run_module(module, run_name="__main__", alter_sys=True)
