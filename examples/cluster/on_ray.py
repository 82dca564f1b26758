"""Run all lines of a list as tasks of a Ray cluster.

    ray job submit --address http://HEAD:8265 -- python FOLDER/examples/cluster/on_ray.py REPOSITORY LIST FOLDER

FOLDER is the path of this repository, with .venv and LIST, on each node; CPUS is how many cores a task takes (4). A
task whose node is lost runs elsewhere. What failed runs again when the same command is typed again, and nothing else
does: LIST.ray, on the disk of the head, has the lines that are done.
"""

import os
import subprocess
import sys
from pathlib import Path

import ray

LOST = 3  # times that a task may lose its node


@ray.remote(max_retries=LOST)
def run(number: int, repository: str, jobs: str, folder: str) -> tuple[int, str]:
    """Run a line on some node; return the exit status and the last lines that were printed."""
    environment = os.environ | {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}"}
    # The line ends with this worker, or it would be done here and elsewhere.
    words = ["setpriv", "--pdeathsig", "TERM", f"{folder}/examples/cluster/job.sh", repository, jobs, str(number)]
    # Our own words, and no shell.
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    return ended.returncode, "\n".join((ended.stdout + ended.stderr).splitlines()[-5:])


def main(repository: str, jobs: str, folder: str) -> int:
    """Run what is not done; return the exit status."""
    path = Path(folder, jobs)
    done = Path(f"{path}.ray")
    before = {int(number) for number in done.read_text().split()} if done.exists() else set()
    numbers = set(range(1, len(path.read_text().splitlines()) + 1)) - before
    ray.init()
    task = run.options(num_cpus=int(os.environ.get("CPUS", "4")))
    waiting = {task.remote(number, repository, jobs, folder): number for number in sorted(numbers)}
    failed = 0
    while waiting:
        (ready, *_), _ = ray.wait(list(waiting))
        number = waiting.pop(ready)
        try:
            status, said = ray.get(ready)
        except ray.exceptions.RayError as error:
            status, said = 1, str(error)
        if status:
            failed += 1
            print(f"{jobs}: line {number}: exit status {status}: {said}", file=sys.stderr)
        else:
            with done.open("a") as file:
                file.write(f"{number}\n")
            print(f"{jobs}: line {number}: done, {len(waiting)} to go", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: on_ray.py REPOSITORY LIST FOLDER")
    raise SystemExit(main(*sys.argv[1:]))
