"""A disk that refuses is told from other failures, whichever library ran into it."""

import errno
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from ruyi_rl.disk import REMEDIES, refused_write


@pytest.mark.parametrize("number", REMEDIES)
def test_what_the_system_refuses_is_said_with_its_remedy(tmp_path, number):
    said = refused_write(OSError(number, os.strerror(number), "a"), tmp_path / "not" / "there")
    assert os.strerror(number) in said and REMEDIES[number] in said and str(tmp_path) in said and "free" in said


def test_the_cause_of_an_error_counts_and_other_errors_do_not(tmp_path):
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert "make room" in refused_write(error, tmp_path)
    for other in (FileNotFoundError(errno.ENOENT, "no such file"), ValueError("No space between the words")):
        assert refused_write(other, tmp_path) is None


@pytest.mark.parametrize("library", ["safetensors", "torch", "python"])
def test_every_library_that_writes_a_checkpoint_on_a_full_disk(tmp_path, small_disk, library):
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(Exception) as full:
        if library == "safetensors":
            save_file({"a": torch.zeros(100_000)}, small_disk / "a")
        elif library == "torch":
            torch.save({"a": torch.zeros(100_000)}, small_disk / "a")
        else:
            (small_disk / "a").write_text("a" * 100_000)
    assert "No space left on device; make room there" in refused_write(full.value, small_disk)
