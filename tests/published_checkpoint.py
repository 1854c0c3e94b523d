"""A checkpoint as the Ruyi models were published, made without any code of the package."""

import json

import torch
from safetensors.torch import save_file


def written_by_hand(folder, model_type: str, shared: bool) -> dict[str, torch.Tensor]:
    """Writes a small one with random weights under the published keys and names; returns its tensors."""
    qwen2 = model_type == "ruyi_qwen2"
    vocab, hidden, inner, layers, heads, kv, points = 61, 24, 40, 4, 3, 1, [0, 1, 3]
    head_dim = hidden // heads
    config = {
        "model_type": model_type,
        "architectures": ["RuyiForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 0,
        "early_exit_points": points,
        "shared_heads": shared,
        "default_early_exit_point": -1,
        **({} if qwen2 else {"head_dim": head_dim}),
    }
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    tensors = {"model.embed_tokens.weight": random(vocab, hidden)}
    places = [f"model.layers.{i}" for i in range(layers)] + [f"model.eelayers.{j}" for j in range(len(points) - 1)]
    for place in places:
        for name, rows in (("q_proj", heads * head_dim), ("k_proj", kv * head_dim), ("v_proj", kv * head_dim)):
            tensors[f"{place}.self_attn.{name}.weight"] = random(rows, hidden)
            if qwen2:
                tensors[f"{place}.self_attn.{name}.bias"] = random(rows)
        tensors[f"{place}.self_attn.o_proj.weight"] = random(hidden, heads * head_dim)
        if not qwen2:
            tensors[f"{place}.self_attn.q_norm.weight"] = random(head_dim) + 1
            tensors[f"{place}.self_attn.k_norm.weight"] = random(head_dim) + 1
        tensors[f"{place}.mlp.gate_proj.weight"] = random(inner, hidden)
        tensors[f"{place}.mlp.up_proj.weight"] = random(inner, hidden)
        tensors[f"{place}.mlp.down_proj.weight"] = random(hidden, inner)
        tensors[f"{place}.input_layernorm.weight"] = random(hidden) + 1
        tensors[f"{place}.post_attention_layernorm.weight"] = random(hidden) + 1
    for index in range(len(points)):
        tensors[f"model.norms.{index}.weight"] = random(hidden) + 1
        if not shared:
            tensors[f"lm_head.{index}.weight"] = random(vocab, hidden)
    if shared:
        tensors["lm_head.weight"] = random(vocab, hidden)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors
