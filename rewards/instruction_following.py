"""The share of a prompt's verifiable instructions that a completion follows.

Formula: r = instructions followed / all instructions of the row, the thinking removed first; None for a row without
any; 0 for an empty answer. With `whole=true`: r = 1 if all are followed, else 0.
Source: IFEval (https://arxiv.org/abs/2311.07911), its strict or loose accuracy by instruction (or, whole, by prompt).

A row is as IFEval publishes it: `instruction_id_list` and, for each of these, the arguments in a column `kwargs` or
`instruction_kwargs`. The 25 ids are in `ruyi_rl.rewards.instructions`.
"""

import json

from ruyi_rl.rewards.completions import completion_text, without_thinking
from ruyi_rl.rewards.instructions import followed


def instruction_following(
    completions, instruction_id_list, instruction_kwargs=None, loose=False, whole=False, log_extra=None, **columns
) -> list[float | None]:
    """One reward a completion, in [0, 1].

    Args:
        instruction_id_list: the ids of every row's instructions.
        instruction_kwargs: their arguments; the column may also be called `kwargs`. JSON text is read.
        loose: a first or last line and asterisks do not count against the completion.
        whole: all or nothing.

    Raises:
        ValueError: an unknown instruction, or one whose arguments do not fit.
    """
    _start(loose, whole)
    arguments = columns.get("kwargs") if instruction_kwargs is None else instruction_kwargs
    if arguments is None:
        raise ValueError("the rows have neither `instruction_kwargs` nor `kwargs`, the arguments of their instructions")
    results = []
    for completion, ids, given in zip(completions, instruction_id_list, arguments, strict=True):
        given = json.loads(given) if isinstance(given, str) else given
        text = without_thinking(completion_text(completion))
        results.append(followed(ids or [], given or [], text, loose))
    if log_extra is not None:
        log_extra("instruction_following/followed", ["".join("-+"[is_met] for is_met in met) for met in results])
    return [(float(all(met)) if whole else sum(met) / len(met)) if met else None for met in results]


def _start(loose=False, whole=False, **kwargs) -> None:
    """Refuse options that are impossible."""
    for name, value in {"loose": loose, "whole": whole}.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is true or false, not {value!r}")
