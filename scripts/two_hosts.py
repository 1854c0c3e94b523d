"""A run on two hosts whose link is cut in mid-step, mended, and the same command started again.

Two hosts with one rank each and, for `--rollout vllm_server`, a third with a vLLM server: namespaces of this machine,
see `linked_hosts.py`; as root. For each variant it shows how long after the cut either host's launcher ended, with
which status and message, and whether the continued run's weights are those of a run that nothing disturbed, bit by bit.

    python scripts/two_hosts.py                                   # all four variants
    python scripts/two_hosts.py --rollout transformers --folder own --steps 4
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from linked_hosts import Host, LinkedHosts, problem
from rich.console import Console
from rich.table import Table

HOSTS = ("alpha", "beta")
SERVER, PORT = "gamma", 8000
TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
REWARD = """
from ruyi_rl.rewards.completions import completion_text

def digits(completions, **kwargs):
    return [sum(c.isdigit() for c in completion_text(completion)) / 40 for completion in completions]
"""
"""Rewards that differ between completions of a family that has learnt nothing: else there would be no gradient."""


@dataclass(frozen=True)
class Variant:
    """What is run."""

    rollout: str
    """`transformers` or `vllm_server`."""
    folder: str
    """`shared`, or `own`: each host has a run folder of its own."""


@dataclass
class Ending:
    """How both hosts' launchers ended."""

    statuses: dict[str, int | None] = field(default_factory=dict)
    """None: it did not end."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Since the start, or since the cut where there was one."""
    cut: bool = False


class Stand:
    """The hosts, the family to start from, and the files of one variant's runs.

    Args:
        variant: what is run.
        work: folder for everything.
        options: of the command line.
    """

    def __init__(self, variant: Variant, work: Path, options: argparse.Namespace):
        self.variant, self.work, self.options = variant, work, options
        self.family = work / "start" / "init"
        (work / "digits.py").write_text(REWARD)

    def arguments(self, name: str) -> list[str]:
        """The run's command line after `-m ruyi_rl`."""
        # The vLLM server serves one exit.
        exits = ["grpo.exits=[large]", f"+rollout.addresses.large=[http://{SERVER}:{PORT}]"]
        exits += [f"rollout.exchange={self.work}", f"rollout.timeout={self.options.watchdog_seconds}"]
        return [
            *("stage=grpo", f"rollout={self.variant.rollout}", f"name={name}", f"start_from={self.family}"),
            *("deepspeed=zero2", "evaluation.problems=0", f"watchdog_minutes={self.options.watchdog_seconds / 60}"),
            *("grpo.trainer.per_device_train_batch_size=24", f"grpo.trainer.max_steps={self.options.steps}"),
            *("grpo.trainer.save_steps=1", f"+reward.functions.digits={{path: {self.work}/digits.py, weight: 1.0}}"),
            *(exits if self.variant.rollout == "vllm_server" else []),
        ]

    def launch(self, hosts: LinkedHosts, name: str, cut_after: int | None = None) -> Ending:
        """Starts the command on both hosts and waits for both ends.

        Args:
            name: of the run.
            cut_after: optimiser steps after which the link is cut, half a second into the next.
        """
        endpoint = [f"--rdzv-endpoint={HOSTS[0]}:29400", "--rdzv-backend=c10d", "--rdzv-id=two-hosts"]
        words = [TORCHRUN, "--nnodes=2", "--nproc-per-node=1", *endpoint, "-m", "ruyi_rl", *self.arguments(name)]
        running = {host: hosts[host].start(words, self.work, self.log(host, name), ENVIRONMENT) for host in HOSTS}
        ending, begin = Ending(), time.monotonic()
        while running and time.monotonic() - begin < self.options.patience:
            time.sleep(0.1)
            if cut_after is not None and not ending.cut and self.steps(name) >= cut_after:
                time.sleep(0.5)
                hosts.cut(self.options.cut)
                ending.cut, begin = True, time.monotonic()
            for host in [host for host in running if running[host].poll() is not None]:
                ending.statuses[host] = running.pop(host).returncode
                ending.seconds[host] = time.monotonic() - begin
        ending.statuses |= dict.fromkeys(running)
        return ending

    def run_folder(self, host: str) -> Path:
        """Where this machine finds a host's `runs`."""
        return self.work / ("runs" if self.variant.folder == "shared" else f"runs-{host}")

    def log(self, host: str, name: str) -> Path:
        return self.work / f"{name}-{host}.log"

    def steps(self, name: str) -> int:
        """Optimiser steps that rank 0 has logged."""
        file = self.run_folder(HOSTS[0]) / name / "grpo" / "metrics.jsonl"
        return file.read_text().count("\n") if file.is_file() else 0

    def weights(self, host: str, name: str) -> str:
        """Digest of the trained family's weights on a host."""
        return digest(self.run_folder(host) / name / "grpo" / "model.safetensors")

    def hosts(self) -> LinkedHosts:
        names = (*HOSTS, SERVER) if self.variant.rollout == "vllm_server" else HOSTS
        hosts = LinkedHosts(names, self.work, name_is_loopback=self.options.name_is_loopback)
        if self.variant.folder == "own":
            for host in HOSTS:
                hosts[host].own(self.run_folder(host), self.work / "runs")
        return hosts

    def serve(self, host: Host) -> None:
        """Starts the vLLM server and waits until it answers.

        Raises:
            TimeoutError: it does not.
        """
        words = [sys.executable, "-m", "ruyi_rl", "stage=serve", "serve.exit=large", "launch=true"]
        words += [f"start_from={self.family}", f"serve.output={self.work}/served", "serve.host=0.0.0.0"]
        words += [f"serve.port={PORT}", "+serve.engine.max_model_len=128", "+serve.engine.enforce_eager=true"]
        host.start(words, self.work, self.work / "server.log", {**ENVIRONMENT, "TORCH_COMPILE_DISABLE": "1"})
        asked = f"import urllib.request; urllib.request.urlopen('http://{host.address}:{PORT}/health', timeout=5)"
        deadline = time.monotonic() + self.options.patience
        while host.status(sys.executable, "-c", asked) != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server does not answer: {self.work / 'server.log'}")
            time.sleep(1)


def digest(path: Path) -> str:
    """`-` where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "-"


def said(log: Path) -> str:
    """What the run itself said about its end, without its stacks."""
    lines = re.findall(r"^ruyi_rl: (?!.*Its stacks:$).*(?:\n(?:Once|Go on).*)?", log.read_text(), re.MULTILINE)
    return "\n".join(lines) or "nothing"


def check(stand: Stand, console: Console) -> bool:
    """Runs a variant undisturbed, then cut and continued; prints what it saw; returns whether all was as it must be."""
    variant, options = stand.variant, stand.options
    title = f"rollout={variant.rollout}, run folder {variant.folder}"
    with console.status(title), stand.hosts() as hosts:
        if variant.rollout == "vllm_server":
            stand.serve(hosts[SERVER])
        whole = stand.launch(hosts, "whole")
        cut = stand.launch(hosts, "cut", cut_after=options.steps // 2)
        messages = {host: said(stand.log(host, "cut")) for host in HOSTS}
        hosts.mend(options.cut)
        time.sleep(2)
        continued = stand.launch(hosts, "cut")
    start, expected = digest(stand.family / "model.safetensors"), stand.weights(HOSTS[0], "whole")
    found = {host: stand.weights(host, "cut") for host in HOSTS}
    named = {host: bool(re.search(r"rank \d.* in \w+ after step \d+", messages[host])) for host in HOSTS}
    table = Table("", *HOSTS, title=title)
    table.add_row("undisturbed run: status", *(str(whole.statuses[host]) for host in HOSTS))
    table.add_row("after the cut: status", *(str(cut.statuses[host]) for host in HOSTS))
    table.add_row("seconds from cut to end", *(f"{cut.seconds.get(host, float('nan')):.1f}" for host in HOSTS))
    table.add_row("phase and rank named", *("yes" if named[host] else "no" for host in HOSTS))
    table.add_row("same command again: status", *(str(continued.statuses[host]) for host in HOSTS))
    table.add_row(
        "weights as undisturbed", *("the same bits" if found[host] == expected else "others" for host in HOSTS)
    )
    console.print(table)
    for host in HOSTS:
        console.print(f"{host} after the cut:\n{messages[host]}", markup=False, highlight=False, soft_wrap=True)
    ended = cut.cut and all(cut.statuses.get(host) not in (0, None) for host in HOSTS)
    done = all(ending.statuses[host] == 0 for ending in (whole, continued) for host in HOSTS)
    trained = expected not in ("-", start)
    return done and ended and all(named.values()) and trained and set(found.values()) == {expected}


def prepare(work: Path, patience: float) -> None:
    """Makes the family that all runs start from.

    Raises:
        RuntimeError: the command failed.
    """
    host = Host("prepared", "")
    try:
        log = work / "start.log"
        words = [sys.executable, "-m", "ruyi_rl", "stage=init", f"run_dir={work}/start"]
        if host.start(words, work, log, ENVIRONMENT).wait(patience) != 0:
            raise RuntimeError(log.read_text())
    finally:
        host.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollout", choices=("transformers", "vllm_server"), action="append")
    parser.add_argument("--folder", choices=("shared", "own"), action="append")
    parser.add_argument("--cut", choices=HOSTS, default=HOSTS[1], help="the host whose link is cut")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of a run")
    parser.add_argument("--watchdog-seconds", type=float, default=15.0)
    parser.add_argument("--patience", type=float, default=900.0, help="seconds after which a run counts as hung")
    parser.add_argument("--name-is-loopback", action="store_true", help="a host's own name stands for 127.0.1.1")
    parser.add_argument("--work", type=Path, help="folder for all files; otherwise a temporary one, removed at the end")
    options = parser.parse_args()
    if (why := problem()) is not None:
        print(f"two_hosts: {why}", file=sys.stderr)
        return 2
    console, good = Console(), True
    with tempfile.TemporaryDirectory(prefix="ruyi-two-hosts-") as temporary:
        root = (options.work or Path(temporary)).absolute()
        for rollout in options.rollout or ("transformers", "vllm_server"):
            for folder in options.folder or ("shared", "own"):
                work = root / f"{rollout}-{folder}"
                work.mkdir(parents=True)
                prepare(work, options.patience)
                good &= check(Stand(Variant(rollout, folder), work, options), console)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
