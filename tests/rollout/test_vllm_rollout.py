"""Engines in this process against the family itself, computed here in plain torch."""

import copy
import gc
import os
import random
import weakref
from pathlib import Path

import numpy
import pytest
import torch
from transformers import Qwen2Config, Qwen3Config

from ruyi_rl.family import Family
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.engine import Engine
from ruyi_rl.rollout.engine_arguments import check_attention, check_engine_options, engine_arguments
from ruyi_rl.rollout.engine_memory import GIB, cache_shape
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.vllm import VllmRollout
from ruyi_rl.rollout.vllm_version import import_problem, vllm_problem
from ruyi_rl.rollout.weights import branch_tensors, write_branch_config
from ruyi_rl.rollout.worker import Request, RolloutSpec, Sampling

pytestmark = pytest.mark.slow

EXITS = {"small": 0, "medium": 1, "large": 3}
VOCABULARY, ENDS, LENGTH = 259, tuple(range(20, 26)), 200
KINDS = {"qwen3, separate heads": (Qwen3Config, False, False), "qwen2, tied": (Qwen2Config, True, True)}
SAMPLINGS = {
    "plain": Sampling(12),
    "temperature": Sampling(12, temperature=0.7),
    "top_k": Sampling(12, top_k=9),
    "top_p": Sampling(12, top_p=0.8),
    "min_p": Sampling(12, min_p=0.1),
    "repetition_penalty": Sampling(12, repetition_penalty=1.4),
    "all": Sampling(12, temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
    "greedy": Sampling(12, temperature=0, repetition_penalty=1.3, top_k=3),
}
# The last is longer than a block of the cache, so that its beginning is remembered.
PROMPTS = [[65 + i, 66, 67 + i % 3][: 1 + i % 3] for i in range(11)] + [[40 + i % 97 for i in range(150)]]


@pytest.fixture(scope="module")
def vllm():
    problem = vllm_problem() or import_problem()
    if problem:
        pytest.skip(problem)


def new_family(kind: str, exits=EXITS, seed: int = 0) -> Family:
    config_class, shared, tied = KINDS[kind]
    backbone = config_class(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=60,  # none of ENDS: the model's own end must not count
        initializer_range=0.15,
        tie_word_embeddings=tied,
        **({"head_dim": 32} if config_class is Qwen3Config else {}),
    )
    return Family.from_scratch(backbone, exits, shared, seed=seed).eval()


def spec_of(family: Family, folder: Path, exits=None) -> RolloutSpec:
    return RolloutSpec(family.config, tuple(exits or family.exits), ENDS, 0, torch.float32, LENGTH, folder)


def move(family: Family) -> None:
    with torch.no_grad():
        for parameter in family.parameters():
            parameter += 0.1 * parameter.std() * torch.randn_like(parameter)


def requests_for(exits, seed: int = 1000, prompts=PROMPTS) -> list[Request]:
    return [Request(exit, prompt, seed + 100 * row) for row, prompt in enumerate(prompts) for exit in exits]


def distribution(logits: torch.Tensor, before: list[int], sampling: Sampling) -> torch.Tensor:
    """Log-probs of one position in the engine's order: penalty, temperature, min_p, top_k, top_p."""
    logits, seen = logits.clone(), sorted(set(before))
    logits[seen] = torch.where(
        logits[seen] > 0, logits[seen] / sampling.repetition_penalty, logits[seen] * sampling.repetition_penalty
    )
    if sampling.temperature == 0:
        return logits.log_softmax(-1)
    logits /= sampling.temperature
    if sampling.min_p:
        probs = logits.softmax(-1)
        logits[probs < sampling.min_p * probs.max()] = -torch.inf
    if sampling.top_k:
        logits[logits < logits.topk(sampling.top_k).values[-1]] = -torch.inf
    if sampling.top_p < 1:
        ordered, places = logits.softmax(-1).sort(descending=True)
        logits[places[ordered.cumsum(-1) - ordered >= sampling.top_p]] = -torch.inf
    return logits.log_softmax(-1)


def differences(family: Family, requests, completions, sampling) -> dict[str, torch.Tensor]:
    """Exit -> |engine's log-prob - the family's| of every token."""
    found = {exit: [] for exit in family.exits}
    for request, completion in zip(requests, completions, strict=True):
        ids = [*request.prompt_ids, *completion.token_ids]
        with torch.no_grad():
            logits = family(torch.tensor([ids]), exits=request.exit).logits[request.exit][0]
        assert len(completion.log_probs) == len(completion.token_ids)
        for place, (token, log_prob) in enumerate(
            zip(completion.token_ids, completion.log_probs), len(request.prompt_ids)
        ):
            expected = distribution(logits[place - 1], ids[:place], sampling)[token]
            found[request.exit].append(abs(expected.item() - log_prob))
    return {exit: torch.tensor(values) for exit, values in found.items() if values}


def assert_equal_log_probs(family, requests, completions, sampling=SAMPLINGS["plain"]) -> None:
    found = differences(family, requests, completions, sampling)
    assert found.keys() == {request.exit for request in requests}
    for exit, values in found.items():
        assert values.max() <= 1e-4 and values.mean() <= 1e-5, f"{exit}: {values.max():.1e}, {values.mean():.1e}"


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def family(kind):
    return new_family(kind)


@pytest.fixture(scope="module")
def rollout(vllm, family, tmp_path_factory):
    rollout = VllmRollout(RolloutOptions(), spec_of(family, tmp_path_factory.mktemp("engines")))
    rollout.update_weights(family)
    yield rollout
    rollout.close()


@pytest.mark.parametrize("name", SAMPLINGS)
def test_log_probs_are_those_of_the_sampled_distribution(family, rollout, name):
    requests = requests_for(family.exits)
    completions = rollout.generate(requests, SAMPLINGS[name])
    assert_equal_log_probs(family, requests, completions, SAMPLINGS[name])


def test_syncs_bring_every_exit_its_weights(family, rollout):
    """Also that prefixes cached before a sync are forgotten: the same long prompt comes again and again."""
    requests = requests_for(family.exits)
    before = rollout.generate(requests, SAMPLINGS["plain"])
    for _ in range(2):
        move(family)
        rollout.update_weights(family)
        assert_equal_log_probs(family, requests, rollout.generate(requests, SAMPLINGS["plain"]))
    assert rollout.generate(requests, SAMPLINGS["plain"]) != before


def test_engines_take_their_weights_in_any_order(family, rollout):
    """A reload of one engine leaves alone what it shares with the others."""
    requests = requests_for(family.exits)
    for exits in (["small", "large", "medium"], ["medium", "small", "large"], ["small", "medium", "medium", "large"]):
        move(family)
        for exit in exits:
            rollout.engines[exit].load(branch_tensors(family, rollout._layouts[exit]))
        for engine in rollout.engines.values():
            engine.llm.reset_prefix_cache()
        assert_equal_log_probs(family, requests, rollout.generate(requests, SAMPLINGS["plain"]))


def test_prefixes_are_cached_in_between(family, rollout):
    """Else the sync's forgetting them would prove nothing."""
    requests = requests_for(["large"], prompts=PROMPTS[-1:])
    rollout.generate(requests, SAMPLINGS["plain"])
    move(family)
    llm = rollout.engines["large"].llm
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": branch_tensors(family, rollout._layouts["large"])})
    stale = differences(family, requests, rollout.generate(requests, SAMPLINGS["plain"]), SAMPLINGS["plain"])
    assert stale["large"].max() > 1e-2
    rollout.update_weights(family)
    assert_equal_log_probs(family, requests, rollout.generate(requests, SAMPLINGS["plain"]))


@pytest.mark.parametrize("exit", EXITS)
def test_greedy_equals_the_stock_branch(family, rollout, exit):
    stock = family.branch(exit)
    requests = requests_for([exit])
    for request, completion in zip(requests, rollout.generate(requests, Sampling(12, temperature=0)), strict=True):
        ids = torch.tensor([list(request.prompt_ids)])
        alone = stock.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=list(ENDS)
        )
        assert completion.token_ids == alone[0, ids.shape[1] :].tolist()


def test_batches_do_not_decide(family, rollout):
    """Shuffled over exits, in two calls, one by one: but for draws on an edge, the same tokens."""
    requests = requests_for(family.exits) + requests_for(family.exits, seed=7)
    sampling = Sampling(20)
    together = rollout.generate(requests, sampling)
    order = list(range(len(requests)))
    random.Random(3).shuffle(order)
    shuffled = dict(zip(order, rollout.generate([requests[row] for row in order], sampling)))
    halves = [c for part in (requests[:9], requests[9:]) for c in rollout.generate(part, sampling)]
    single = [rollout.generate([request], sampling)[0] for request in requests]
    for other in ([shuffled[row] for row in range(len(requests))], halves, single):
        same = sum(a.token_ids == b.token_ids for a, b in zip(together, other, strict=True))
        assert same >= 0.97 * len(requests), f"{same} of {len(requests)}"


def test_more_prompts_than_a_step_takes(vllm, family, rollout, tmp_path):
    """An engine that cut a prompt in two would have to wind its request's generator back, which a CPU's cannot."""
    requests = [Request("small", [30 + row, *range(31, 130)], 50 + row) for row in range(9)]
    whole = rollout.generate(requests, SAMPLINGS["plain"])
    narrow = VllmRollout(RolloutOptions(engine={"max_num_batched_tokens": 260}), spec_of(family, tmp_path, ["small"]))
    narrow.update_weights(family)
    cut = narrow.generate(requests, SAMPLINGS["plain"])
    narrow.close()
    assert [c.token_ids for c in cut] == [c.token_ids for c in whole]


def test_sample_i_of_one_request_has_the_seed_s_plus_i(rollout):
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=12, seed=50, n=4, stop_token_ids=list(ENDS), ignore_eos=True)
    llm = rollout.engines["small"].llm
    (output,) = llm.generate([{"prompt_token_ids": PROMPTS[0]}], parameters, use_tqdm=False)
    completions = rollout.generate([Request("small", PROMPTS[0], 50 + i) for i in range(4)], Sampling(12))
    assert [list(sample.token_ids) for sample in output.outputs] == [c.token_ids for c in completions]
    assert len({tuple(c.token_ids) for c in completions}) > 1


def test_ends(family, rollout):
    requests = [Request(exit, PROMPTS[1], seed) for seed in range(40) for exit in family.exits]
    completions = rollout.generate(requests, Sampling(30))
    assert {completion.finished for completion in completions} == {True, False}
    for completion in completions:
        ends = [place for place, token in enumerate(completion.token_ids) if token in ENDS]
        assert ends == ([len(completion.token_ids) - 1] if completion.finished else [])
        assert completion.finished or len(completion.token_ids) == 30
        assert max(completion.token_ids) < VOCABULARY
    assert any(60 in completion.token_ids[:-1] for completion in completions)


def test_statistics_and_health(family, rollout):
    rollout.statistics()
    requests = requests_for(["small", "large"])
    completions = rollout.generate(requests, Sampling(5))
    rollout.update_weights(family)
    taken = rollout.statistics()
    for exit in ("small", "large"):
        tokens = sum(len(c.token_ids) for r, c in zip(requests, completions) if r.exit == exit)
        assert taken[exit].tokens == tokens and taken[exit].seconds > 0 and taken[exit].sync_seconds > 0
    assert taken["medium"].tokens == 0 and taken["medium"].sync_seconds > 0
    assert rollout.statistics() == {}
    assert {worker.exit for worker in rollout.health() if worker.alive} == set(EXITS)


def test_what_cannot_be_generated_is_said(rollout):
    with pytest.raises(ValueError, match="no engine serves the exit 'huge'"):
        rollout.generate([Request("huge", [65])], Sampling(5))
    with pytest.raises(ValueError, match="more than the engines' 200"):
        rollout.generate([Request("small", PROMPTS[-1])], Sampling(51))
    with pytest.raises(ValueError, match="temperature"):
        rollout.generate([Request("small", [65])], Sampling(5, temperature=1e-3))
    assert rollout.generate([], Sampling(5)) == []


def test_the_process_is_left_as_it_was(vllm, tmp_path):
    """Making an engine seeds every generator, replaces torch.set_num_threads and sets a dozen variables."""

    def state():
        return (
            random.getstate(),
            numpy.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            torch.set_num_threads,
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        )

    family = new_family("qwen3, separate heads")
    beats = []
    check_engine_options({}), check_attention(family.config)  # so that all is imported, which sets variables too
    torch.set_num_threads(2)
    random.seed(5), numpy.random.seed(6), torch.manual_seed(7)
    before, frozen = state(), gc.get_freeze_count()
    rollout = VllmRollout(RolloutOptions(), spec_of(family, tmp_path, ["small"]), beat=lambda: beats.append(1))
    assert state() == before
    rollout.update_weights(family)
    completions = rollout.generate(requests_for(["small"]), SAMPLINGS["all"])
    assert len(beats) >= max(len(completion.token_ids) for completion in completions)  # with every step of the engine
    assert state() == before
    rollout.close()
    assert state() == before
    # Some of what is frozen may be freed by itself; a freeze or its end would change the count by far more.
    assert abs(gc.get_freeze_count() - frozen) < 0.01 * frozen
    torch.set_num_threads(1)


def storages(*models) -> dict[int, int]:
    """Address -> bytes of every parameter, each memory once."""
    found = [p.untyped_storage() for model in models for _, p in torch.nn.Module.named_parameters(model)]
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


def test_the_trunk_is_held_once(kind, family, rollout, tmp_path):
    """Each of the trunk's modules is one object, and the answers are those of engines that hold their own."""
    models = {exit: engine.model for exit, engine in rollout.engines.items()}
    for exit, depth in EXITS.items():
        for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", "input_layernorm"):
            for layer in range(depth + 1):
                path = f"model.layers.{layer}.{name}"
                one = models[exit].get_submodule(path) is models["large"].get_submodule(path)
                assert one == (layer < depth or exit == "large")
        caches = [models[e].get_submodule("model.layers.0.self_attn.attn") for e in EXITS]
        assert len({id(cache) for cache in caches}) == 3
        assert models[exit].model.embed_tokens is models["large"].model.embed_tokens
        assert (models[exit].lm_head is models["large"].lm_head) == (KINDS[kind][1] or exit == "large")
    # What another engine holds is out of a reload's reach.
    assert models["large"].model.embed_tokens not in set(models["small"].modules())
    assert models["small"].model.norm in set(models["small"].modules())
    alone = VllmRollout(RolloutOptions(), spec_of(family, tmp_path), share_trunk=False)
    own = [engine.model for engine in alone.engines.values()]
    assert len(storages(*own)) == sum(len(storages(model)) for model in own)
    assert sum(storages(*models.values()).values()) < sum(storages(*own).values())
    move(family)
    rollout.update_weights(family)
    alone.update_weights(family)
    requests = requests_for(family.exits)
    separate = alone.generate(requests, SAMPLINGS["plain"])
    assert_equal_log_probs(family, requests, separate)
    assert [c.token_ids for c in separate] == [c.token_ids for c in rollout.generate(requests, SAMPLINGS["plain"])]
    alone.close()
    assert_equal_log_probs(family, requests, rollout.generate(requests, SAMPLINGS["plain"]))


def test_expanded_and_compressed_exits(vllm, tmp_path):
    """The shallowest exit's branch is deeper than the trunk and than the engine that it takes the trunk from."""
    kind = "qwen3, separate heads"
    family = new_family(kind).expand("small", 5).expand("large", 1)
    config = copy.deepcopy(family.config)
    config.factor_ranks = {"model.expansions.0.1.mlp.up_proj": 9, "model.expansions.2.0.self_attn.q_proj": 7}
    config.factor_ranks["lm_head.0"] = 20
    compressed = Family(config).eval()
    compressed.load_state_dict(family.state_dict(), strict=False)
    for parameter in compressed.model.expansions.parameters():  # the silent matrices too
        parameter.data += 0.1 * torch.randn_like(parameter)
    assert config.depths == {"small": 6, "medium": 2, "large": 5}
    rollout = VllmRollout(RolloutOptions(), spec_of(compressed, tmp_path))
    models = {exit: engine.model for exit, engine in rollout.engines.items()}
    for exit, depth in EXITS.items():
        assert len(models[exit].model.layers) == config.depths[exit]
        for layer in range(min(config.depths[exit], config.depths["large"])):
            path = f"model.layers.{layer}.mlp.down_proj"
            one = models[exit].get_submodule(path) is models["large"].get_submodule(path)
            assert one == (layer < depth or exit == "large")
    requests = requests_for(EXITS)
    for _ in range(2):
        rollout.update_weights(compressed)
        assert_equal_log_probs(compressed, requests, rollout.generate(requests, SAMPLINGS["plain"]))
        move(compressed)
    compressed.freeze_except(["small", "large"], only_expansion=True)
    loss = compressed(torch.tensor([PROMPTS[-1]]), labels=torch.tensor([PROMPTS[-1]])).loss
    loss.backward()
    torch.optim.SGD([p for p in compressed.parameters() if p.requires_grad], 0.05).step()
    rollout.update_weights(compressed)
    assert_equal_log_probs(compressed, requests, rollout.generate(requests, SAMPLINGS["plain"]))
    rollout.close()


def test_some_exits_closed_and_made_again(vllm, tmp_path):
    """The deepest of the exits in use lends the trunk; closing gives every weight back and leaves the group."""
    family = new_family("qwen3, separate heads", seed=3)
    requests = requests_for(["small", "medium"])
    answers, gone = [], []
    for _ in range(2):
        rollout = VllmRollout(RolloutOptions(), spec_of(family, tmp_path, ["medium", "small"]))
        assert list(rollout.engines) == ["medium", "small"]
        rollout.update_weights(family)
        answers.append(rollout.generate(requests, SAMPLINGS["plain"]))
        assert_equal_log_probs(family, requests, answers[-1])
        for engine in rollout.engines.values():
            gone += [weakref.ref(module) for module in engine.model.modules()]
        rollout.close()
        rollout.close()
        assert not any(worker.alive for worker in rollout.health())
        del rollout, engine
        gc.collect()
        assert not any(reference() for reference in gone)
        assert torch.distributed.is_initialized()
    assert [c.token_ids for c in answers[0]] == [c.token_ids for c in answers[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_the_cache(vllm, kind, tmp_path):
    """vLLM makes as many blocks as were computed, and takes exactly what is said to be enough for one sequence."""
    family = new_family(kind)
    spec = spec_of(family, tmp_path)
    write_branch_config(family.config, "large", tmp_path / "large", torch.float32)
    shape = cache_shape(family.config.branch_config("large"), 4, 128)
    arguments = engine_arguments(RolloutOptions(engine={"max_num_seqs": 5}), spec, "large", 1, None)
    assert arguments["kv_cache_memory_bytes"] == shape.bytes_for(5, LENGTH) == 11 * shape.block_bytes
    needed = shape.bytes_for(1, LENGTH)
    for given, blocks in ((arguments["kv_cache_memory_bytes"], 11), (needed, 3)):
        engine = Engine("large", {**arguments, "kv_cache_memory_bytes": given})
        assert engine.llm.llm_engine.vllm_config.cache_config.num_gpu_blocks == blocks
        engine.shut_down()
    with pytest.raises(Refusal, match=r"rollout.kv_cache_gib: the engine of the exit large does not fit"):
        Engine("large", {**arguments, "kv_cache_memory_bytes": needed - 1})
    with pytest.raises(Refusal, match=r"rollout.kv_cache_gib: .* exit large"):
        VllmRollout(RolloutOptions(kv_cache_gib=(needed - 1) / GIB), spec)


def test_what_vllm_cannot_do_is_refused(vllm, tmp_path):
    family = new_family("qwen3, separate heads")
    spec = spec_of(family, tmp_path)
    for engine, message in (
        ({"max_num_seq": 3}, r"rollout.engine.max_num_seq: .*did you mean 'max_num_seqs'"),
        ({"seed": 3}, r"rollout.engine.seed: 3 cannot be set"),
        ({"max_model_len": 3}, r"rollout.max_model_len"),
    ):
        with pytest.raises(Refusal, match=message):
            VllmRollout(RolloutOptions(engine=engine), spec)
    with pytest.raises(Refusal, match=r"rollout.tensor_parallel: 1 rank"):
        VllmRollout(RolloutOptions(tensor_parallel=2), spec)
    family.config.head_dim = 16
    with pytest.raises(Refusal, match="no attention for heads of 16"):
        VllmRollout(RolloutOptions(), spec)
