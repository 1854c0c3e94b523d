"""A branch some of whose layers are factored, beside the branch that it was made of: what recovery trains."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from ruyi_rl.family.modeling_factored_qwen import factor_modules
from ruyi_rl.family.rotary import rotary_embedding
from ruyi_rl.family.truncation import Factors
from ruyi_rl.training.distillation import Divergence, divergence


class TaughtBranch(PreTrainedModel):
    """The student: the layers above the trunk and the head, with factors. It alone is this module's, and of it the
    factors alone take gradients; so engines, optimisers and checkpoints hold nothing of the rest.

    The trunk and the teacher's layers and head stand beside it, in evaluation mode. The trunk runs once for both, and
    without a graph.

    Args:
        branch: the stock model that the factors were made of. Its modules are used as they are.
        trunk: its layers below the student's.
        factors: name of a linear layer in `branch`, above the trunk -> what takes its place.
        dtype: of the frozen parts. The student's is float32, which an engine or autocast makes smaller.

    Raises:
        ValueError: factors in the trunk.
    """

    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = True
    """So that the trainer counts the tokens of a whole step."""

    def __init__(self, branch: PreTrainedModel, trunk: int, factors: Mapping[str, Factors], dtype: torch.dtype):
        super().__init__(copy.deepcopy(branch.config))
        self.generation_config = copy.deepcopy(branch.generation_config)  # TRL writes to it
        self.own_names = {name: _own_name(name, trunk) for name in factors}
        branch = branch.requires_grad_(False).eval()
        teacher = _Layers(branch, trunk, len(branch.model.layers), branch.model.norm, branch.lm_head)
        self.student = _factored(teacher, {own: factors[name] for name, own in self.own_names.items()})
        below = _Layers(branch, 0, trunk, nn.Identity())
        # In a tuple, so that they are no submodules.
        self._beside = (below.to(dtype), teacher.to(dtype))

    def forward(
        self,
        input_ids: torch.LongTensor,
        labels: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> Divergence:
        """How far the student is from the teacher where a label counts.

        Args:
            input_ids: (batch, length).
            labels: (batch, length), -100 where a token does not count; position t is predicted from t - 1.
            attention_mask: (batch, length), 1 for tokens, 0 for padding.
            position_ids: (batch, length); restarts at 0 mark packed sequences where there is no attention mask.

        Returns:
            Of the tokens that count, in order.
        """
        below, teacher = self._beside
        places = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": False}
        with torch.no_grad():
            hidden = below.decoder(input_ids=input_ids, **places).last_hidden_state
            wanted = teacher.decoder(inputs_embeds=hidden, **places).last_hidden_state
        hidden = hidden.to(next(self.student.parameters()).dtype)
        if self.student.decoder.gradient_checkpointing and torch.is_grad_enabled():
            hidden.requires_grad_()  # reentrant checkpointing gives no gradient otherwise
        given = self.student.decoder(inputs_embeds=hidden, **places).last_hidden_state
        counted = labels[:, 1:] != -100
        return divergence(given[:, :-1][counted], wanted[:, :-1][counted], self.student.head, teacher.head)

    def factors(self) -> dict[str, Factors]:
        """The factors as they are now, by the names that they came with; copies on the CPU."""
        found = {}
        for name, own in self.own_names.items():
            factored = self.student.get_submodule(own)
            found[name] = Factors(*(part.weight.detach().cpu().clone() for part in (factored.u, factored.v)))
        return found

    def place(self, device: torch.device) -> TaughtBranch:
        """All of it, what stands beside it too, on `device`."""
        for module in self._beside:
            module.to(device)
        return self.to(device)


class _Layers(nn.Module):
    """Some consecutive layers of a stock model as a decoder of their own, which shares their modules."""

    def __init__(self, branch: PreTrainedModel, first: int, last: int, norm: nn.Module, head: nn.Module | None = None):
        super().__init__()
        config = copy.deepcopy(branch.config)
        config.num_hidden_layers, config.layer_types = last - first, config.layer_types[first:last]
        with torch.device("meta"):
            self.decoder = type(branch.model)(config)
        self.decoder.embed_tokens = branch.model.embed_tokens if first == 0 else None
        self.decoder.layers = nn.ModuleList(branch.model.layers[first:last])
        self.decoder.norm, self.decoder.rotary_emb = norm, rotary_embedding(branch.config).to(branch.device)
        self.head = head
        self.eval()


def _factored(teacher: _Layers, factors: Mapping[str, Factors]) -> _Layers:
    """A float32 copy with the factors in place, which alone take gradients."""
    # What they replace is not to be held twice, not even for a moment.
    replaced = {id(weight): weight for weight in (teacher.get_submodule(name).weight for name in factors)}
    student = copy.deepcopy(teacher, memo=replaced)
    factor_modules(student, {name: found.rank for name, found in factors.items()})
    student.float().requires_grad_(False)
    for name, found in factors.items():
        factored, bias = student.get_submodule(name), teacher.get_submodule(name).bias
        with torch.no_grad():
            factored.u.weight.copy_(found.u)
            factored.v.weight.copy_(found.v)
            if bias is not None:
                factored.u.bias.copy_(bias)
        factored.u.weight.requires_grad_()
        factored.v.weight.requires_grad_()
    return student


def _own_name(name: str, trunk: int) -> str:
    if name == "lm_head":
        return "head"
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    if not number.isdigit() or int(number) < trunk:
        raise ValueError(f"{name} is not above a trunk of {trunk} layers")
    return f"decoder.layers.{int(number) - trunk}.{rest}"
