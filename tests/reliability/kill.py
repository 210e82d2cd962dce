"""Kill a run at random moments, again and again, and see that it ends as if nothing had been.

    python tests/reliability/kill.py                 # 30 times
    python tests/reliability/kill.py --processes 2   # one of two processes is killed, the other has to end by itself

Every kill is a SIGKILL of the training process: three in ten at a moment of its start, the others up to six steps later
(two epochs, with their evaluations and checkpoints) and a moment. After each, the newest checkpoint has to load; at the
end, weights, optimiser, averages and metrics have to be those of a run that was left alone, and there may be no file
that is not there then.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs import Job, files_of, options_of, same, write_inputs

from pvlr.train.checkpoint import Checkpoints

MORE = {"loop__accumulate": 2, "optimizer__lr": 0.01}


def kill(folder: Path, kills: int, *, processes: int = 1, seed: int = 0, **more: object) -> list[str]:
    """Print the table of kills; return the failures."""
    draw = random.Random(seed)
    write_inputs(folder)
    whole, run = folder / "whole", folder / "killed"
    more = {**MORE, "loop__epochs": 4 * kills, **more}
    job = Job(options_of(folder, whole, **more), whole, processes=processes)
    wrong = [] if set(job.wait()) == {0} else [f"the run left alone ended otherwise: {job.log.read_text()[-1000:]}"]
    print("kill  after  checkpoint  unfinished files")
    done, starts, step, start = 0, 0, 0, 0.0
    while True:
        job = Job(options_of(folder, run, **more), run, processes=processes)
        starts += 1
        if done == kills:
            break
        begun = time.monotonic()
        if start == 0:
            job.wait_for_steps(1)
            start = time.monotonic() - begun
        elif draw.random() < 0.3:  # While it starts.
            time.sleep(draw.uniform(0, start))
        else:  # After a few more steps, somewhere between two of them, in an evaluation or while something is written.
            job.wait_for_steps(step + draw.randint(0, 6))
            time.sleep(draw.uniform(0, 0.15))
        wait = time.monotonic() - begun
        victim = draw.choice(job.processes)
        if not job.alive():
            wrong.append(f"the run ended after {done} of {kills} kills")
            break
        victim.kill()
        try:
            # Before the processes have met, nobody misses one but their launcher, which ends the others by SIGTERM.
            if not job.ended(20):
                job.signal(signal.SIGTERM)
            job.wait(60)
        except TimeoutError as err:
            wrong.append(f"kill {done + 1}: {err}")
        done += 1
        try:
            found = Checkpoints(run / "checkpoints").load()
        except ValueError as err:
            wrong.append(f"kill {done}: {err}")
            continue
        step = found[1]["step"] if found else 0
        there = f"step {step}" if found else "none yet"
        print(f"{done:4}  {wait:4.1f} s  {there:>10}  {sum('.partial' in name for name in files_of(run))}", flush=True)
    codes = job.wait()
    if set(codes) != {0}:
        wrong.append(f"the last start ended with {codes}: {job.log.read_text()[-1000:]}")
    elif not same(run, whole):
        wrong.append("the outcome is another than that of a run left alone")
    more_files = sorted(set(files_of(run)) ^ set(files_of(whole)))
    if more_files:
        wrong.append(f"files that are there in one of the two: {more_files}")
    last = "its weights, optimiser, averages, metrics and files are those of the run left alone"
    print(f"{done} kills, {starts} starts; {last if not wrong else 'WRONG: ' + '; '.join(wrong)}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--features", choices=("compute", "cache"), default="compute")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        more = {"data__workers": args.workers, "tower__features": args.features}
        return bool(kill(Path(name), args.kills, processes=args.processes, seed=args.seed, **more))


if __name__ == "__main__":
    sys.exit(main())
