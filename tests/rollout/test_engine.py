"""What engines may change in this process, without an engine, and what they are asked for."""

import os
import random

import numpy
import pytest
import torch
from transformers import Qwen3Config

from ruyi_rl.family import FamilyConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.engine import beating, in_process, undisturbed
from ruyi_rl.rollout.engine_arguments import OWNED, engine_arguments, sampling_arguments
from ruyi_rl.rollout.engine_memory import GIB, cache_shape
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.worker import RolloutSpec, Sampling


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails):
    function, threads = torch.set_num_threads, torch.get_num_threads()
    drawn = [random.random(), numpy.random.rand(), torch.rand(1)]
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()

    def disturb():
        with undisturbed(eager=True, threads=3):
            assert torch.get_num_threads() == 3
            for seed in (random.seed, numpy.random.seed, torch.manual_seed):
                seed(1)
            torch.set_default_dtype(torch.float64)
            torch.set_num_threads(2)
            torch.set_num_threads = lambda count: None
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            disturb()
    else:
        disturb()
    assert torch.set_num_threads is function and torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32
    after = [random.random(), numpy.random.rand(), torch.rand(1)]
    random.setstate(states[0]), numpy.random.set_state(states[1]), torch.set_rng_state(states[2])
    assert after == [random.random(), numpy.random.rand(), torch.rand(1)] != drawn


def test_nothing_is_compiled_where_the_engine_is_eager():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    @torch.compile(backend=backend)
    def double(x):
        return x * 2

    with undisturbed(eager=True):
        assert double(torch.ones(2)).tolist() == [2, 2]
    assert not compiled
    with undisturbed(eager=False):
        double(torch.ones(2))
    assert compiled


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    before = dict(os.environ)
    with pytest.raises(KeyError), in_process():
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and "VLLM_CPU_KVCACHE_SPACE" not in os.environ
        os.environ["LD_PRELOAD"] = "libtcmalloc.so"
        raise KeyError
    assert dict(os.environ) == before


@pytest.fixture
def spec(tmp_path):
    backbone = Qwen3Config(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    config = FamilyConfig.from_backbone(backbone, {"small": 1, "large": 3})
    return RolloutSpec(config, ("small", "large"), (9,), 0, torch.bfloat16, 300, tmp_path, seed=4)


def test_arguments_on_a_cpu(spec):
    arguments = engine_arguments(RolloutOptions(), spec, "small", 1, None)
    shape = cache_shape(spec.config.branch_config("small"), 2, 128)
    assert shape.layers == 2
    assert arguments["kv_cache_memory_bytes"] == shape.bytes_for(256, 300)
    assert arguments["model"] == str(spec.folder / "small") and arguments["dtype"] == "bfloat16"
    assert arguments["enforce_eager"] and arguments["max_num_seqs"] == 256
    assert arguments["enable_chunked_prefill"] is False and arguments["max_num_batched_tokens"] >= 300
    assert not {"gpu_memory_utilization", "worker_cls", "distributed_executor_backend"} & arguments.keys()
    given = engine_arguments(RolloutOptions(kv_cache_gib=0.5), spec, "small", 2, None)
    assert given["kv_cache_memory_bytes"] == GIB // 2
    assert given["distributed_executor_backend"] == "external_launcher"


def test_the_users_arguments_win_and_decide_the_cache(spec):
    options = RolloutOptions(engine={"max_num_seqs": 8, "block_size": 64, "enforce_eager": False, "swap": 1})
    arguments = engine_arguments(options, spec, "large", 1, None)
    assert (arguments["max_num_seqs"], arguments["enforce_eager"], arguments["swap"]) == (8, False, 1)
    shape = cache_shape(spec.config.branch_config("large"), 2, 64)
    assert arguments["kv_cache_memory_bytes"] == shape.bytes_for(8, 300)
    narrow = engine_arguments(RolloutOptions(engine={"kv_cache_dtype": "fp8_e5m2"}), spec, "large", 1, None)
    wide = engine_arguments(RolloutOptions(), spec, "large", 1, None)
    assert 2 * narrow["kv_cache_memory_bytes"] == wide["kv_cache_memory_bytes"]


def test_arguments_on_a_gpu(spec):
    arguments = engine_arguments(RolloutOptions(tensor_parallel=2), spec, "small", 4, 0.2)
    assert arguments["gpu_memory_utilization"] == 0.2 and arguments["enable_sleep_mode"]
    assert arguments["tensor_parallel_size"] == 2
    assert not {"enforce_eager", "block_size", "max_num_seqs", "kv_cache_memory_bytes"} & arguments.keys()
    awake = engine_arguments(RolloutOptions(sleep=False, kv_cache_gib=2), spec, "small", 1, 0.2)
    assert not {"enable_sleep_mode", "worker_cls"} & awake.keys() and awake["kv_cache_memory_bytes"] == 2 * GIB


def test_too_small_a_cache_is_refused_with_what_is_needed(spec):
    with pytest.raises(Refusal, match=r"rollout.kv_cache_gib: 0.0001 GiB are given, and one sequence of 300 tokens"):
        engine_arguments(RolloutOptions(kv_cache_gib=1e-4), spec, "large", 1, None)


def test_what_is_owned_is_what_is_set(spec):
    """What a user's value could silently replace, or be replaced by, is refused instead."""
    for share in (None, 0.2):
        arguments = engine_arguments(RolloutOptions(kv_cache_gib=1), spec, "large", 2, share)
        free = {"disable_log_stats", "generation_config", "enforce_eager", "max_num_seqs", "block_size"}
        free |= {"enable_chunked_prefill", "max_num_batched_tokens"}
        assert arguments.keys() - free <= OWNED.keys()


def test_sampling_in_vllms_words():
    sampling = Sampling(7, temperature=0.5, top_p=0.9, top_k=3, min_p=None, repetition_penalty=1.1)
    arguments = sampling_arguments(sampling, (4, 5), 2**62)
    assert arguments["min_p"] == 0.0 and arguments["stop_token_ids"] == [4, 5] and arguments["seed"] == 2**62
    assert (arguments["max_tokens"], arguments["temperature"], arguments["top_k"]) == (7, 0.5, 3)
    assert sampling_arguments(Sampling(7, min_p=0.2), (), 0)["min_p"] == 0.2
    sampling_arguments(Sampling(7, temperature=0), (), 0)
    with pytest.raises(ValueError, match="temperature"):
        sampling_arguments(Sampling(7, temperature=0.005), (), 0)


def test_every_step_of_an_engine_beats_and_none_afterwards():
    class Steps:
        def step(self):
            return "outputs"

    engine, beats = Steps(), []
    with pytest.raises(RuntimeError), beating(engine, lambda: beats.append(1)):
        assert [engine.step(), engine.step()] == ["outputs"] * 2
        raise RuntimeError
    assert engine.step() == "outputs" and len(beats) == 2 and not vars(engine)
