"""The chunked divergence against the whole formula in float64, and what no chunking may change."""

import pytest
import torch
from torch import nn

from ruyi_rl.family.modeling_factored_qwen import FactoredLinear
from ruyi_rl.training.distillation import divergence

HIDDEN, VOCABULARY, TOKENS = 12, 41, 37


def heads(dtype=torch.float64, factored=True):
    torch.manual_seed(1)
    student = FactoredLinear(HIDDEN, VOCABULARY, 5) if factored else nn.Linear(HIDDEN, VOCABULARY, bias=False)
    return student.to(dtype), nn.Linear(HIDDEN, VOCABULARY, bias=False).to(dtype)


def states(*shape, dtype=torch.float64):
    torch.manual_seed(2)
    return 3 * torch.randn(*shape, dtype=dtype), 3 * torch.randn(*shape, dtype=dtype)


def weight_of(head):
    return head.u.weight @ head.v.weight if isinstance(head, FactoredLinear) else head.weight


def whole(student_hidden, teacher_hidden, student, teacher, temperature):
    """Σ p log(p / q), from probabilities alone."""
    p = torch.softmax(teacher_hidden @ weight_of(teacher).T / temperature, -1)
    q = torch.softmax(student_hidden @ weight_of(student).T / temperature, -1)
    return (p * torch.log(p / q)).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("factored", [True, False])
def test_it_is_the_formula_and_so_are_its_gradients(factored, temperature):
    student, teacher = heads(factored=factored)
    mine, theirs = (hidden.requires_grad_() for hidden in states(TOKENS, HIDDEN))
    trained = [mine, *student.parameters()]
    found = divergence(mine, theirs, student, teacher, temperature=temperature, chunk=8).kl.mean()
    wanted = whole(mine, theirs.detach(), student, teacher, temperature).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12) and found.item() > 0.1
    for got, expected in zip(torch.autograd.grad(found, trained), torch.autograd.grad(wanted, trained)):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 7, TOKENS, 1000])
def test_the_size_of_the_chunks_changes_nothing(chunk):
    student, teacher = heads()
    mine, theirs = states(TOKENS, HIDDEN)
    found, wanted = (divergence(mine, theirs, student, teacher, chunk=size) for size in (chunk, 16))
    torch.testing.assert_close(found.kl, wanted.kl, rtol=1e-12, atol=0)
    assert torch.equal(found.agrees, wanted.agrees)


def test_a_student_that_is_the_teacher_loses_nothing_and_gets_no_gradient():
    _, teacher = heads()
    mine, _ = states(TOKENS, HIDDEN)
    student = nn.Linear(HIDDEN, VOCABULARY, bias=False).double()
    student.load_state_dict(teacher.state_dict())
    found = divergence(mine, mine, student, teacher)
    found.kl.sum().backward()
    assert torch.equal(found.kl, torch.zeros(TOKENS, dtype=torch.float64)) and found.agrees.all()
    assert student.weight.grad.abs().max() < 1e-14


def test_the_teacher_gets_no_gradient():
    student, teacher = heads()
    mine, theirs = (hidden.requires_grad_() for hidden in states(TOKENS, HIDDEN))
    divergence(mine, theirs, student, teacher).kl.sum().backward()
    assert theirs.grad is None and teacher.weight.grad is None and mine.grad.any() and student.v.weight.grad.any()


def test_agreement_is_that_of_the_most_likely_tokens():
    student, teacher = heads(factored=False)
    mine, theirs = states(TOKENS, HIDDEN)
    mixed = torch.cat([mine[:20], theirs[20:]])
    with torch.no_grad():
        student.weight.copy_(teacher.weight)
    found = divergence(mixed, theirs, student, teacher)
    expected = (mixed @ teacher.weight.T).argmax(-1) == (theirs @ teacher.weight.T).argmax(-1)
    assert torch.equal(found.agrees, expected) and found.agrees[20:].all() and not found.agrees.all()


def test_without_tokens_there_is_a_graph_and_a_gradient_of_zero():
    student, teacher = heads()
    mine, theirs = states(0, HIDDEN)
    loss = divergence(mine.requires_grad_(), theirs, student, teacher).kl.sum()
    loss.backward()
    assert loss == 0 and not student.u.weight.grad.any() and not student.v.weight.grad.any()


def test_sixteen_bit_logits_are_summed_in_float32():
    student, teacher = heads(torch.bfloat16)
    mine, theirs = states(TOKENS, HIDDEN, dtype=torch.bfloat16)
    found = divergence(mine, theirs, student, teacher).kl
    assert found.dtype == torch.float32
    p = torch.log_softmax(teacher(theirs).double(), -1)
    q = torch.log_softmax(student(mine).double(), -1)
    torch.testing.assert_close(found.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-5, atol=1e-6)


def test_no_tensor_of_tokens_times_vocabulary_is_kept():
    student, teacher = heads()
    mine, theirs = states(64, HIDDEN)
    saved = []

    def note(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        divergence(mine.requires_grad_(), theirs, student, teacher, chunk=4)
    assert saved and not [shape for shape in saved if VOCABULARY in shape and HIDDEN not in shape and 5 not in shape]
