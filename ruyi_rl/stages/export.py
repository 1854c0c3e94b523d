"""`stage=export`: one exit's branch on disk as a model of its own, merged into a stock Qwen or with its factors."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ruyi_rl.config import RunConfig
from ruyi_rl.failure import StageFailed
from ruyi_rl.report.batch import byte_size
from ruyi_rl.report.libraries import quiet_libraries
from ruyi_rl.report.streams import note_console
from ruyi_rl.run_folder import write_json
from ruyi_rl.stages.exported import MARK, default_exit, export_folder, is_export, origin, require_own
from ruyi_rl.tools import find_family
from ruyi_rl.validation.model import family_exits, read_model_config

if TYPE_CHECKING:
    import torch

ROWS, LENGTH = 4, 32
"""Rows and tokens a row that an export is checked on."""


@dataclass(frozen=True)
class Export:
    """What was written."""

    parameters: int
    bytes: int
    """Of the weight files."""
    difference: float
    """Largest |logit of the folder's model - logit of the family's exit|."""
    largest_logit: float


def run(config: RunConfig) -> None:
    """Exports the branch where that has not been done, prints the lines of Python that load it on standard output and
    everything else on standard error.

    Raises:
        Refusal: a folder in the way, or a family that cannot be loaded.
        StageFailed: what was written is not the family's exit.
    """
    options, family, notes = config.export, find_family(config), note_console()
    stored = read_model_config("start_from" if config.start_from else "run_dir", family)
    exit = options.exit or default_exit(stored, family_exits(stored))
    folder = export_folder(config, exit)

    def note(text: str) -> None:
        notes.print(text, style="dim", markup=False, soft_wrap=True)

    if not config.fresh and is_export(folder, origin(family, exit, options.format)):
        note(f"{folder} holds {exit} of {family} already, {options.format}")
    else:
        require_own("export.output", folder)
        with notes.status(f"exporting {exit} of {family}"):
            quiet_libraries()
            written = write_export(family, exit, folder, options.format)
        note(f"{exit} of {family} exported to {folder}, {options.format}")
        note(f"{written.parameters:,} parameters, {byte_size(written.bytes)} ({written.bytes:,} bytes) of weights")
        note(f"largest difference of a logit {written.difference:.2g}, largest logit {written.largest_logit:.3g}")
    print(loading_lines(folder, options.format), flush=True)


def loading_lines(folder: Path, format: str) -> str:
    """Lines of Python that load an export."""
    arguments = f"{str(folder)!r}{', trust_remote_code=True' if format == 'factored' else ''}"
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({arguments})\n"
        # Without being trusted the tokenizer's class would ask about the model's code.
        f"tokenizer = AutoTokenizer.from_pretrained({arguments})"
    )


def write_export(family: Path, exit: str, folder: Path, format: str) -> Export:
    """Writes an exit's branch with its tokenizer, loads it again and compares it with the family's exit.

    Merged, transformers and vLLM load it as a stock Qwen; factored, transformers loads it with the modelling file that
    is beside it. One model at a time is held in memory.

    Args:
        folder: what it holds is deleted.
        format: `merged` or `factored`.

    Raises:
        Refusal: no family there.
        StageFailed: the logits differ by more than `tolerance`; the folder then says of itself that it is not whole.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from ruyi_rl.family.options import ModelOptions
    from ruyi_rl.rollout.transformers import end_token_ids
    from ruyi_rl.stages.inputs import load_family, load_tokenizer

    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / MARK, {})
    # No weight depends on the attention that the run is configured with, and not every one runs on a CPU.
    tokenizer, source = load_tokenizer(family), load_family(family, ModelOptions()).eval()
    rows = check_rows(source.config.vocab_size, source.config.max_position_embeddings)
    with torch.no_grad():
        expected = source(rows, exits=exit).logits[exit].float()
    branch = (source.branch if format == "merged" else source.factored_branch)(exit, copy=False)
    branch.generation_config.eos_token_id = end_token_ids(source, tokenizer)
    branch.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del branch, source
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=format == "factored", local_files_only=True)
    with torch.no_grad():
        difference = (model.eval()(rows).logits.float() - expected).abs().max().item()
    largest = expected.abs().max().item()
    allowed = tolerance(model.dtype, largest)
    if not difference <= allowed:  # nor where either is not a number
        raise StageFailed(
            f"export failed: the logits of {folder} differ from those of {exit} in {family} by up to {difference:.3g}, "
            f"more than {allowed:.3g}; it must not be used"
        )
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    export = Export(model.num_parameters(), size, difference, largest)
    write_json(folder / MARK, origin(family, exit, format) | asdict(export))
    return export


def check_rows(vocabulary: int, positions: int) -> torch.Tensor:
    """(ROWS, LENGTH or what fits) token ids, drawn with a fixed seed."""
    import torch

    return torch.randint(vocabulary, (ROWS, min(LENGTH, positions)), generator=torch.Generator().manual_seed(0))


def tolerance(dtype: torch.dtype, largest: float) -> float:
    """How far logits up to `largest` may differ: 1e-4 of it (and of 1), or eight times the dtype's rounding.

    The weights are equal but for merged ones, which are rounded once more.
    """
    import torch

    return max(1e-4, 8 * torch.finfo(dtype).eps) * max(1.0, largest)
