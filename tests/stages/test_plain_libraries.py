"""Exported exits answer a chat by plain transformers and plain vLLM, in processes that know nothing of ruyi_rl."""

import json
import os
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

from ruyi_rl.family import Family
from ruyi_rl.rollout.vllm_version import vllm_problem
from ruyi_rl.stages.export import write_exports
from ruyi_rl.stages.exported import Target
from tests.factored_family import with_factors

CHAT = [{"role": "user", "content": "3+5="}]
TOKENS = 12
QUICK = {"TORCH_COMPILE_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""vLLM would compile a few small functions of its sampler, and load everything in a second process."""
ALONE = "import json, sys; sys.modules['ruyi_rl'] = None\n"
"""From here on an import of the package raises."""
TRANSFORMERS = """
from transformers import AutoModelForCausalLM, AutoTokenizer
found = {}
for folder in sys.argv[1:]:
    trusted = folder.endswith("factored")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusted)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    found[folder] = ids[0, inputs["input_ids"].shape[1] :].tolist()
print(json.dumps(found))
"""
VLLM = """
try:
    from vllm import LLM, SamplingParams
except Exception:  # a library of it is missing here
    sys.exit(print("null"))
folder = sys.argv[1]
llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=128, kv_cache_memory_bytes=2**26)
sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, logprobs=0)
output = llm.chat(CHAT, sampling, use_tqdm=False)[0].outputs[0]
log_probs = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids)]
print(json.dumps([list(output.token_ids), log_probs, llm.get_default_sampling_params().temperature]))
"""


def started(program, *folders):
    values = f"CHAT = {CHAT!r}\nTOKENS = {TOKENS}\n"
    command = [sys.executable, "-c", ALONE + values + program, *map(str, folders)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, env=os.environ | QUICK, cwd=folders[0].parent)


def answer(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_merged_and_factored_exits_answer_as_the_family_does(family_folder, tmp_path):
    compressed = tmp_path / "compressed"
    family = with_factors(Family.from_pretrained(str(family_folder)), "small", std=0.3)
    family.save_pretrained(compressed)
    tokenizer = AutoTokenizer.from_pretrained(family_folder)
    tokenizer.save_pretrained(compressed)
    targets = [
        Target("small", "merged", tmp_path / "small"),
        Target("small", "factored", tmp_path / "small-factored"),
        Target("large", "merged", tmp_path / "large"),
    ]
    write_exports(compressed, targets, Console(quiet=True), {"temperature": 0.7, "top_p": 1.0, "top_k": 0})
    processes = [started(TRANSFORMERS, *(target.folder for target in targets))]
    if vllm_problem() is None:
        processes.append(started(VLLM, targets[0].folder))

    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    expected = {}
    for exit in ("small", "large"):
        with family.at_exit(exit):
            ids = family.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)
        expected[exit] = ids[0, len(prompt) :].tolist()
    with torch.no_grad():
        logits = family(torch.tensor([prompt + expected["small"]]), exits="small").logits["small"]
    steps = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    log_probs = steps.gather(1, torch.tensor(expected["small"])[:, None]).squeeze(1).tolist()

    answers = [answer(process) for process in processes]
    assert answers[0] == {str(target.folder): expected[target.exit] for target in targets}
    if answers[1:] not in ([], [None]):
        tokens, found, temperature = answers[1]
        assert tokens == expected["small"] and temperature == 0.7
        assert found == pytest.approx(log_probs, abs=1e-4)
