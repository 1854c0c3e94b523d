"""One rank of a run that test_killed_runs.py starts: it kills itself at a moment of its training."""

import os
import signal
from collections import Counter

from ruyi_rl import ranks
from ruyi_rl.pipeline import run_stages
from ruyi_rl.training import checkpoints
from ruyi_rl.training.phases import PhaseClock


def main(config, moment: str, visit: int, victims: tuple[int, ...]) -> None:
    """Runs the stages until `moment`, a phase or `rename`, has come for the `visit`-th time."""
    if ranks.rank() in victims:
        visits = Counter()

        def at(place: str) -> None:
            visits[place] += 1
            if (place, visits[place]) == (moment, visit):
                os.kill(os.getpid(), signal.SIGKILL)

        enter, rename = PhaseClock.__call__, checkpoints.give_name
        PhaseClock.__call__ = lambda self, name: at(name) or enter(self, name)
        checkpoints.give_name = lambda *arguments: at("rename") or rename(*arguments)
    run_stages(config, [])
