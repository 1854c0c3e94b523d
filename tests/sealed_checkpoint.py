"""A checkpoint as a trainer leaves it, for tests that need only its folder."""

from pathlib import Path

from ruyi_rl.checkpoint_folder import Seal, file_sum, files_of, give_name, saving_folder, write_seal


def sealed_checkpoint(folder: Path, step: int, world_size: int = 1, deepspeed: str = "off") -> Path:
    """Writes `checkpoint-<step>` into `folder` with two small files."""
    inside = saving_folder(folder, step) / f"checkpoint-{step}"
    (inside / "run_state").mkdir(parents=True)
    (inside / "trainer_state.json").write_text("{}")
    (inside / "run_state" / "rank-0.json").write_text('{"a": 1}')
    write_seal(inside, Seal(step, world_size, deepspeed, {name: file_sum(inside / name) for name in files_of(inside)}))
    return give_name(folder, step)
