"""What a newcomer sees: the stages, the config groups with their choices, examples."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ruyi_rl.cli.compose import ConfigSource

COMMAND = "python -m ruyi_rl"
GROUPS = {
    "stage": "what to run",
    "model": "which family",
    "data": "which problems",
    "reward": "what scores a completion",
    "rollout": "what generates completions",
    "benchmark": "what stage=eval measures; several: benchmark=\\[gsm8k,math]",
    "deepspeed": "how training is sharded over ranks",
    "experiment": "a whole set of values",
    "preset": "values for one model on one data set, chosen by themselves",
}
EXAMPLES = (
    ("stage=grpo", "the main job, on the embedded default"),
    ("stage=generate", "talk to what it has trained, all exits side by side"),
    ("stage=export", "each exit on disk as a stock Qwen, with a model card"),
    ("stage=new_reward name=mine", "write a reward of your own: a file that works at once, to be edited"),
    ("stage=grpo data=gsm8k data.path=<folder with train.jsonl>", "the main job on real rows"),
    (
        "-m stage=grpo grpo.trainer.learning_rate=1e-4,3e-4 grpo.advantage.scale=group,exit",
        "four runs, one after another",
    ),
)
OPTIONS = (
    ("--cfg job", "print the configuration that the command would run with, and run nothing"),
    ("-m, --multirun", "run one job for every combination of values such as seed=1,2,3"),
    ("hydra/launcher=joblib", "with -m: hydra.launcher.n_jobs=3 jobs at a time; submitit_slurm: in SLURM's queue"),
    ("hydra/sweeper=optuna", "with -m: hydra.sweeper.n_trials=20 trials that search by interval(a,b) and a,b,c"),
    (
        "-cd, --config-dir DIR",
        "a folder of your own with further choices: DIR/experiment/mine.yaml; conf/ is searched too",
    ),
    ("-cn, --config-name NAME", "another root file than config"),
    ("--hydra-help", "Hydra's other options"),
)


def print_overview(console: Console, source: ConfigSource) -> None:
    """Print the stages, the groups and examples."""
    console.print(
        "[bold]ruyi_rl[/] trains familial models: one network with several exits, each a model of its own size."
    )
    console.print(_stages(source))
    console.print(_groups(source))
    _print_examples(console)
    console.print(f"More: {COMMAND} --help; the values of a command: {COMMAND} stage=grpo --cfg job")


def print_help(console: Console, source: ConfigSource) -> None:
    """Print what `--help` shows: the overview, one line for every choice, the options."""
    console.print(f"[bold]{COMMAND}[/] {escape('[options] [group=choice …] [key=value …]')}")
    console.print(_stages(source))
    console.print(_choices(source))
    console.print(_options())
    _print_examples(console)
    console.print(
        "Any key of the configuration can be set: seed=2, model.base=<folder or hub id>, grpo.exits=\\[small,large],\n"
        "grpo.trainer.<any field of TRL's GRPOConfig>, sft.trainer.<any field of TRL's SFTConfig>; "
        "[bold]--cfg job[/] prints them all."
    )


def _stages(source: ConfigSource) -> Table:
    table = _table("Stages")
    for name in _stage_order(source):
        table.add_row(f"stage={name}", _first_line(source, "stage", name))
    return table


def _stage_order(source: ConfigSource) -> list[str]:
    from ruyi_rl.pipeline import ORDER, TOOLS

    known = [*ORDER, "pipeline", *TOOLS]
    choices = [name for name in source.choices()["stage"] if name != "overview"]
    return sorted(choices, key=lambda name: known.index(name) if name in known else len(known))


def _groups(source: ConfigSource) -> Table:
    table = _table("Config groups: group=choice", columns=3)
    for group, choices in _shown_groups(source).items():
        if group != "preset":
            table.add_row(group, GROUPS.get(group, ""), escape(", ".join(choices)))
    return table


def _choices(source: ConfigSource) -> Table:
    table = _table("Config groups: group=choice", columns=3)
    for group, choices in _shown_groups(source).items():
        for number, choice in enumerate(choices):
            table.add_row("" if number else group, choice, _first_line(source, group, choice))
    return table


def _shown_groups(source: ConfigSource) -> dict[str, list[str]]:
    choices = source.choices()
    return {group: choices[group] for group in [*GROUPS, *choices] if group in choices and group != "stage"}


def _print_examples(console: Console) -> None:
    console.print("\n[bold]Examples[/]")
    for arguments, meaning in EXAMPLES:
        # Not wrapped, so that a line can be copied as it is.
        console.print(f"# {meaning}\n{escape(f'{COMMAND} {arguments}')}", soft_wrap=True)
    console.print()


def _options() -> Table:
    table = _table("Options")
    for option, meaning in OPTIONS:
        table.add_row(option, meaning)
    return table


def _table(title: str, columns: int = 2) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    for number in range(columns):
        table.add_column(style="cyan" if number == 0 else None, overflow="fold")
    return table


def _first_line(source: ConfigSource, group: str, choice: str) -> str:
    """The comment that opens a choice's file, without the package header."""
    lines = source.file(group, choice).read_text(encoding="utf-8").splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
    return escape(comments[0]) if comments else ""
