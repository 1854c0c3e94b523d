"""`stage=export`: the exits of a family on disk as models of their own, or the family as one; each with a model card,
and compared with the family before it counts as done."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ruyi_rl.config import RunConfig
from ruyi_rl.failure import StageFailed
from ruyi_rl.report.batch import byte_size
from ruyi_rl.report.libraries import quiet_libraries
from ruyi_rl.report.streams import note_console
from ruyi_rl.rollout.vllm_version import vllm_problem
from ruyi_rl.run_folder import write_json
from ruyi_rl.stages import hub
from ruyi_rl.stages.exported import (
    MARK,
    Target,
    clear,
    export_targets,
    held,
    is_export,
    origin,
    require_own,
    weight_bytes,
)
from ruyi_rl.tools import find_family
from ruyi_rl.validation.model import family_exits, read_model_config

if TYPE_CHECKING:
    import torch

    from ruyi_rl.stages.parity import Parity


def run(config: RunConfig) -> None:
    """Exports what has not been, writes the cards, uploads where that is asked for; prints the lines of Python that
    load each folder on standard output and everything else on standard error.

    Raises:
        Refusal: a folder in the way, a family that cannot be loaded, a hub that takes no upload.
        StageFailed: what was written is not what the family computes, or could not be uploaded.
    """
    family, notes = find_family(config), note_console()
    stored = read_model_config("start_from" if config.start_from else "run_dir", family)
    targets = export_targets(config, stored, family_exits(stored))
    repositories = hub.repositories(config.push_to, targets) if config.push_to else {}
    api = hub.hub() if repositories else None

    asked = config.export.check == "all" and vllm_problem() is None
    done = [each for each in targets if not config.fresh and is_export(family, each, asked_by(each, asked))]
    missing = [each for each in targets if each not in done]
    for target in targets:
        if target in done:
            _note(notes, f"{target.folder} holds {target.content} of {family} already, {target.format}")
        else:
            require_own("export.output", target.folder)
    quiet_libraries()
    from ruyi_rl.stages.cards import write_card
    from ruyi_rl.stages.provenance import provenance, run_name

    if missing:
        sampling = provenance(family).sampling
        write_exports(family, missing, notes, sampling, vllm=config.export.check == "all")
    for target in targets:
        if write_card(config, family, target, repositories.get(target)) and target in done:
            _note(notes, f"{target.folder / 'README.md'} was brought up to date")
    for target, repository in repositories.items():
        with notes.status(f"uploading {target.folder} to {repository}"):
            address = hub.push(api, target, repository, f"{target.content} of {run_name(family)}")
        _note(notes, f"{target.folder} uploaded to {address}")
    print("\n\n".join(loading_lines(target.folder, target.format) for target in targets), flush=True)


def asked_by(target: Target, vllm: bool) -> bool:
    """Whether vLLM can be asked about a folder of this format."""
    return vllm and target.format == "merged"


def loading_lines(folder: Path, format: str) -> str:
    """Lines of Python that load an export."""
    if format in ("family", "ruyi"):
        return (
            "from ruyi_rl.family import Family\n"
            "from transformers import AutoTokenizer\n"
            f"family = Family.from_pretrained({str(folder)!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})"
        )
    arguments = f"{str(folder)!r}{', trust_remote_code=True' if format == 'factored' else ''}"
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({arguments})\n"
        # Without being trusted the tokenizer's class would ask about the model's code.
        f"tokenizer = AutoTokenizer.from_pretrained({arguments})"
    )


def write_exports(
    family: Path, targets: Sequence[Target], notes: Console, sampling: Mapping[str, Any] = {}, vllm: bool = False
) -> None:
    """Writes folders with their tokenizers, loads each again and compares it with the family.

    The family is loaded once; one model at a time is held in memory.

    Args:
        targets: what their folders hold is deleted.
        notes: is told how far it is and what was found.
        sampling: generation values for a family that recommends none itself.
        vllm: also compare vLLM's log-probs, where vLLM can be used and has a class for the format.

    Raises:
        Refusal: no family there, or another process writes one of the folders.
        StageFailed: an export differs by more than its tolerance; its folder then says of itself that it is not whole.
            The others are done.
    """
    quiet_libraries()
    with held([target.folder for target in targets]):
        failures = _written(family, targets, notes, sampling, vllm)
    if failures:
        raise StageFailed("\n".join(failures))


def _written(
    family: Path, targets: Sequence[Target], notes: Console, sampling: Mapping[str, Any], vllm: bool
) -> list[str]:
    """Writes and checks the folders, as `write_exports` says; returns what is wrong with which."""
    from ruyi_rl.family.options import ModelOptions
    from ruyi_rl.stages.export_files import logits_by_exit, write_files
    from ruyi_rl.stages.inputs import load_family, load_tokenizer
    from ruyi_rl.stages.parity import check_rows

    with notes.status(f"loading {family}"):
        # No weight depends on the attention that the run is configured with, and not every one runs on a CPU.
        tokenizer, source = load_tokenizer(family), load_family(family, ModelOptions()).eval()
    rows, expected = check_rows(source.config.vocab_size, source.config.max_position_embeddings), {}
    for number, target in enumerate(targets, 1):
        with notes.status(f"writing {target.content} of {family} ({number} of {len(targets)})"):
            write_json(target.folder / MARK, {})
            clear(target.folder)
            expected[target] = logits_by_exit(source, target, rows)
            write_files(source, tokenizer, target, family, sampling)
    del source
    gc.collect()
    failures = []
    for number, target in enumerate(targets, 1):
        with notes.status(f"checking {target.content} of {family} ({number} of {len(targets)})"):
            mark, parity = checked(target, rows, expected.pop(target), asked_by(target, vllm))
        if parity.failure is not None:
            # Nothing loads it by mistake.
            (target.folder / "config.json").rename(target.folder / "config.rejected.json")
            failures.append(f"export failed: {target.folder} must not be used: {parity.failure}")
            continue
        write_json(target.folder / MARK, origin(family, target) | mark | asdict(parity))
        _note(notes, f"{target.content} of {family} exported to {target.folder}, {target.format}")
        _note(notes, figures(mark, parity))
    return failures


def checked(
    target: Target, rows: torch.Tensor, expected: Mapping[str, torch.Tensor], vllm: bool
) -> tuple[dict[str, Any], Parity]:
    """Loads a folder and compares it; returns its `parameters`, `bytes` of weight files and `dtype`, and the outcome.

    Args:
        rows: (rows, length) token ids.
        expected: exit name -> the family's logits (rows, length, vocabulary).
        vllm: ask vLLM too.
    """
    from ruyi_rl.stages.export_files import load_export, logits_by_exit
    from ruyi_rl.stages.parity import compared, vllm_parity

    model = load_export(target)
    dtype, config = model.dtype, model.config
    mark = {
        "parameters": model.num_parameters(),
        "bytes": weight_bytes(target.folder),
        "dtype": str(dtype).removeprefix("torch."),
    }
    parity = compared(logits_by_exit(model, target, rows), expected, dtype)
    del model
    gc.collect()
    if vllm and parity.failure is None:
        asked = vllm_parity(target.folder, rows, expected[target.exit], config, dtype)
        parity = replace(parity, vllm=asked)
    return mark, parity


def figures(mark: Mapping[str, Any], parity: Parity) -> str:
    """The size of an export and how far it is from the family, a line each."""
    lines = [
        f"{mark['parameters']:,} parameters, {byte_size(mark['bytes'])} ({mark['bytes']:,} bytes) of weights",
        f"largest difference of a logit {parity.difference:.2g}, largest logit {parity.largest_logit:.3g}",
    ]
    if parity.vllm is not None and "difference" in parity.vllm:
        lines.append(f"largest difference of a log-prob of vLLM's {parity.vllm['difference']:.2g}")
    elif parity.vllm is not None:
        lines.append(f"not compared with vLLM: {parity.vllm['problem']}")
    return "\n".join(lines)


def _note(notes: Console, text: str) -> None:
    notes.print(text, style="dim", markup=False, soft_wrap=True)
