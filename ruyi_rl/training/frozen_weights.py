"""What `train_only` promises on disk: all that was frozen is, bit by bit, what it was."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from ruyi_rl.family import Family
from ruyi_rl.family.stored import stored_family, weight_files
from ruyi_rl.family.weights import expansion_parameters


def restore_frozen(start: Path, saved: Path, exits: Collection[str]) -> bool:
    """Give a saved family the dtype and the frozen tensors of the one that its training started from.

    DeepSpeed's engines cast a whole model, what is frozen too, and save it so: a float32 family that was trained in
    bf16 would come back rounded everywhere.

    Args:
        start: folder of the family before.
        saved: folder of the family after; written anew where its dtype is another.
        exits: whose expansion blocks, norms and heads were trained: these keep what they learnt, in the dtype before.

    Returns:
        Whether it was written anew.
    """
    before, after = stored_family(start), stored_family(saved)
    if all(tensor.dtype == before.tensors[name].dtype for name, tensor in after.tensors.items()):
        return False
    trained = expansion_parameters(after.config, exits, after.tensors)
    family = Family.from_pretrained(str(start), dtype="auto")
    learnt = Family.from_pretrained(str(saved), dtype="auto").state_dict()
    with torch.no_grad():
        for name, tensor in family.state_dict().items():
            if name in trained:
                tensor.copy_(learnt[name])
    for file in (*weight_files(saved), *saved.glob("model.safetensors.index.json")):
        file.unlink()  # a wider family may take several files, and the one file of before would be read
    family.save_pretrained(saved)
    return True
