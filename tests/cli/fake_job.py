"""A run without torch, for tests of sweeps: `python -m fake_job <overrides>` leaves what a finished run leaves.

`grpo.trainer.beta` says how it ends: 0.1 and 0.2 are killed at the first attempt, 0.9 fails at each.
"""

import os
import signal
import sys
import time
from pathlib import Path

from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.cli.sweep.process import end_with_sweep
from ruyi_rl.pipeline import steps
from ruyi_rl.run_folder import DONE, Manifest, write_json
from ruyi_rl.validation import validate


def main(overrides: list[str]) -> int:
    end_with_sweep()
    config = to_run_config(compose_config(overrides))
    validate(config)
    beta = config.grpo.trainer["beta"]
    print(f"job {beta} on {os.environ.get('CUDA_VISIBLE_DEVICES')} with {os.environ.get('OMP_NUM_THREADS')}")
    if beta == 0.9:
        print("ruyi_rl: grpo failed: beta is 0.9\nSafe on disk: nothing", file=sys.stderr)
        return 1
    attempts = Path(f"attempts-{beta}")
    attempts.mkdir(exist_ok=True)
    (attempts / str(len(list(attempts.iterdir())))).touch()
    if beta == 0.5:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        Path("waiting").touch()
        time.sleep(60)
    if beta in (0.1, 0.2) and len(list(attempts.iterdir())) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    for step in steps(config):
        step.folder.path.mkdir(parents=True, exist_ok=True)
        (step.folder.path / "config.json").write_text("{}")
        exits = {"small": {"pass_before": 0.2, "pass_after": 0.5 - (beta - 0.3) ** 2}}
        write_json(step.folder.path / "summary.json", {"seed": config.seed, "exits": exits, "seconds": 1.0})
        known = {"stage": step.stage, "config_hash": step.config_hash, "decided_by": step.decided_by}
        made = {"input": None, "input_hash": None, "seed": config.seed, "world_size": 1, "deepspeed": "off"}
        step.folder.write_manifest(Manifest(status=DONE, versions={}, started="", **known, **made))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
