"""What the trainers rely on of TRL's private surface. A failure means: read TRL's change before raising the pin."""

import hashlib
import inspect

import pytest
import trl
from trl import GRPOTrainer, SFTTrainer

CALLED = {
    "_get_eval_sampler": ["self", "eval_dataset"],
    "_generate_single_turn": [
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["self", "model", "inputs"],
}
# First 16 hex digits of the sha256 of the source of what is replaced, or whose inner workings are built on.
SOURCES = [
    (GRPOTrainer, "_prepare_inputs", "f824e7fb07147956"),
    (GRPOTrainer, "_get_train_sampler", "36497afb4d311dc9"),
    (GRPOTrainer, "_get_per_token_logps_and_entropies", "ea73c3909275851d"),
    (GRPOTrainer, "_compute_loss", "80295546bbdbf6f7"),
    (SFTTrainer, "compute_loss", "ca448211ff653fe6"),
    (GRPOTrainer, "_generate_and_score_completions", "1fa48922792dcd5c"),
    # With a scorer: what a reward function gets and may log, and how completions are decoded before it does.
    (GRPOTrainer, "_calculate_rewards", "736ae29b083840b5"),
    (GRPOTrainer, "_generate", "2a27fdf8f5e6f356"),
    # That args.beta alone decides whether a reference is loaded, and how it is prepared.
    (GRPOTrainer, "__init__", "18f01b7a46c9544b"),
]


@pytest.mark.parametrize("method, parameters", CALLED.items())
def test_signature(method, parameters):
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters


@pytest.mark.parametrize("owner, method, digest", SOURCES)
def test_source(owner, method, digest):
    source = inspect.getsource(getattr(owner, method))
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == digest, f"{method} changed in TRL {trl.__version__}"
