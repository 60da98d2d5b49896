#!/usr/bin/env python3
"""Writes the golden models beside this script: small random models of every family, each as a Hugging Face folder and as a
GGUF file of the same weights, with the logits that Transformers computes from the folder. Nothing here calls kivi: the
mapping from the folder's names and orders to GGUF's is stated here a second time. Needs torch (a CPU will do),
transformers 5, safetensors, gguf and NumPy.

    python3 generate.py            writes all models
    python3 generate.py NAME...    writes these

NAME/config.json, *.safetensors, ...  what a folder has, as people publish it
NAME/model.gguf                       the same model
NAME/logits.bin                       f32 [tokens][vocabulary], little-endian: row i follows token i
index.json                            of each model its tokens, the number of them that are the prompt, and the largest
                                      logit

The logits are computed in f32 from the stored weights, the prompt at once and then a token at a time. As in kivi's cache,
keys (after RoPE) and values are rounded to binary16 before anything attends to them. Before a model is written, every
tensor and every setting of `matters` is shown to move the logits, and f64 not to.
"""

import argparse
import json
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

HERE = Path(__file__).parent
N_PROMPT, N_DECODE = 50, 40
EXACT = 6e-5  # what f64 may make of the logits: the models must not blow up what f32 rounds
VISIBLE = 6e-4  # what a tensor or a setting moves some logit by, at least: three times what kivi's may be off

CHARACTERS = [chr(c) for c in range(33, 127)]
MERGES = ["h e", "t he", "i n", "Ġ the"]
END = "<|endoftext|>"
TOKENS = CHARACTERS + ["Ġ"] + [m.replace(" ", "") for m in MERGES] + [END]  # in the byte-level alphabet


@dataclass
class Golden:
    name: str
    seed: int
    dtypes: list[str]  # of matrices, in turn
    config: dict
    n_shards: int = 2
    vector_dtype: str = "f32"  # of norms and biases
    matters: list[dict] = field(default_factory=list)  # changes of the config that must change the logits


def settings(model_type, architecture, **more):
    return dict(architectures=[architecture], model_type=model_type, vocab_size=len(TOKENS), hidden_size=32,
                num_hidden_layers=2, max_position_embeddings=256, bos_token_id=len(TOKENS) - 1,
                eos_token_id=len(TOKENS) - 1, **more)


GROUPED = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=64)
GATED = dict(intermediate_size=64, rms_norm_eps=1e-6)

GOLDENS = [
    Golden("llama", 1, ["f32", "f16", "bf16"], n_shards=1, vector_dtype="f16",
           config=settings("llama", "LlamaForCausalLM", num_attention_heads=2, head_dim=64, **GATED, hidden_act="silu",
                           rope_theta=10000.0, tie_word_embeddings=True, torch_dtype="float32")),
    Golden("llama3", 2, ["bf16"], vector_dtype="bf16",
           config=settings("llama", "LlamaForCausalLM", **GROUPED, **GATED, hidden_act="silu", rope_theta=500000.0,
                           tie_word_embeddings=False, torch_dtype="bfloat16",
                           rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                             original_max_position_embeddings=64)),
           matters=[dict(rope_scaling=None)]),
    Golden("mistral", 3, ["f16"], n_shards=3, vector_dtype="f16",
           config=settings("mistral", "MistralForCausalLM", **GROUPED, **GATED, hidden_act="silu", rope_theta=10000.0,
                           sliding_window=24, tie_word_embeddings=False, torch_dtype="float16"),
           matters=[dict(sliding_window=None), dict(sliding_window=25)]),
    Golden("qwen2", 14, ["bf16"], vector_dtype="bf16",
           config=settings("qwen2", "Qwen2ForCausalLM", **GROUPED, **GATED, hidden_act="silu", rope_theta=1000000.0,
                           tie_word_embeddings=True, use_sliding_window=False, sliding_window=32, max_window_layers=2,
                           torch_dtype="bfloat16")),
    Golden("qwen3", 5, ["f16", "bf16"],
           config=settings("qwen3", "Qwen3ForCausalLM", **GROUPED, **GATED, hidden_act="silu", tie_word_embeddings=False,
                           attention_bias=False, use_sliding_window=False, sliding_window=None, max_window_layers=2,
                           rope_parameters=dict(rope_type="default", rope_theta=1000000.0), dtype="float16")),
    Golden("gemma2", 36, ["bf16"], vector_dtype="bf16",
           config=settings("gemma2", "Gemma2ForCausalLM", **GROUPED, **GATED, hidden_activation="gelu_pytorch_tanh",
                           rope_theta=10000.0, sliding_window=24, query_pre_attn_scalar=40, attn_logit_softcapping=5.0,
                           final_logit_softcapping=8.0, torch_dtype="bfloat16"),
           matters=[dict(sliding_window=25), dict(query_pre_attn_scalar=64), dict(attn_logit_softcapping=None),
                    dict(final_logit_softcapping=None), dict(layer_types=["full_attention"] * 2),
                    dict(layer_types=["sliding_attention"] * 2), dict(hidden_activation="gelu")]),
    Golden("gemma3", 27, ["bf16"], vector_dtype="bf16",
           config=settings("gemma3_text", "Gemma3ForCausalLM", **GROUPED, **GATED, hidden_activation="gelu_pytorch_tanh",
                           query_pre_attn_scalar=100, sliding_window=24, attn_logit_softcapping=None,
                           final_logit_softcapping=None, layer_types=["sliding_attention", "full_attention"],
                           rope_theta=1000000.0, rope_local_base_freq=10000.0,
                           rope_scaling=dict(rope_type="linear", factor=8.0), torch_dtype="bfloat16"),
           matters=[dict(sliding_window=25), dict(rope_scaling=None), dict(rope_theta=10000.0),
                    dict(rope_local_base_freq=1000000.0), dict(layer_types=["full_attention"] * 2),
                    dict(layer_types=["full_attention", "sliding_attention"])]),
    Golden("phi3", 8, ["bf16", "f16"], vector_dtype="bf16",
           config=settings("phi3", "Phi3ForCausalLM", **GROUPED, **GATED, hidden_act="silu", rope_theta=10000.0,
                           partial_rotary_factor=0.75, sliding_window=37, original_max_position_embeddings=256,
                           rope_scaling=None, pad_token_id=None, tie_word_embeddings=False, attention_bias=False,
                           torch_dtype="bfloat16"),
           matters=[dict(sliding_window=None), dict(partial_rotary_factor=1.0)]),
    Golden("falcon-7b", 9, ["bf16"], vector_dtype="bf16",
           config=settings("falcon", "FalconForCausalLM", num_attention_heads=2, multi_query=True, parallel_attn=True,
                           new_decoder_architecture=False, alibi=False, bias=False, layer_norm_epsilon=1e-5,
                           ffn_hidden_size=64, torch_dtype="bfloat16") | dict(hidden_size=128),
           matters=[dict(activation="gelu_pytorch_tanh")]),
    Golden("falcon-40b", 10, ["f16"],
           config=settings("falcon", "FalconForCausalLM", num_attention_heads=4, num_kv_heads=2, parallel_attn=True,
                           new_decoder_architecture=True, alibi=False, bias=False, layer_norm_epsilon=1e-5,
                           ffn_hidden_size=64, torch_dtype="float16") | dict(hidden_size=128)),
]

DTYPES = dict(f32=torch.float32, f16=torch.float16, bf16=torch.bfloat16)


# ---- the folder ----


def draw(name, shape, config, rng):
    """Numbers with which all parts matter, and a key or value that f32 rounds to the other neighbour does not: what a layer
    adds is small beside what it is added to, and logits are small."""
    x = rng.standard_normal(shape)
    is_gemma = config["model_type"].startswith("gemma")
    is_tied = config.get("tie_word_embeddings", is_gemma or config["model_type"] == "falcon")
    if "norm" in name or ".ln_" in name:
        if name.endswith("bias"):
            return 0.2 * x
        is_last = name in ("model.norm.weight", "transformer.ln_f.weight")
        size = 0.3 if is_gemma and "post_attention" in name else 0.5 if is_last and is_tied and not is_gemma else 1.0
        return size * (1 + 0.2 * x) - is_gemma
    if name.endswith("bias"):
        return 0.2 * x
    gain = 1.0
    if "embed" in name and not is_gemma:  # Gemma's are multiplied by the square root of their length
        gain = 2.0 if is_tied else math.sqrt(shape[1])
    if "o_proj" in name or "attention.dense" in name:
        gain = 0.3
    if "gate" in name or "h_to_4h" in name:  # where the two GELUs differ
        gain = 2.0
    return gain * x / math.sqrt(shape[1])


def draw_weights(golden):
    """Names as in the folder; in the dtypes that they are stored in."""
    rng = np.random.default_rng(golden.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**golden.config))
    tied = {name for name, p in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    weights, n_matrices = {}, 0
    for name, parameter in model.state_dict().items():
        if name in tied:
            continue
        dtype = golden.vector_dtype
        if parameter.dim() == 2:
            dtype = golden.dtypes[n_matrices % len(golden.dtypes)]
            n_matrices += 1
        values = draw(name, tuple(parameter.shape), golden.config, rng)
        weights[name] = torch.from_numpy(values).to(DTYPES[dtype])
    return weights


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(folder, weights, n_shards):
    if n_shards == 1:
        return save_file(weights, folder / "model.safetensors", metadata=dict(format="pt"))
    names = list(weights)
    size = math.ceil(len(names) / n_shards)
    files = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = names[i * size : (i + 1) * size]
        save_file({name: weights[name] for name in part}, folder / file, metadata=dict(format="pt"))
        files |= dict.fromkeys(part, file)
    total = sum(w.numel() * w.element_size() for w in weights.values())
    write_json(folder / "model.safetensors.index.json", dict(metadata=dict(total_size=total), weight_map=files))


def write_tokenizer(folder):
    end = dict(id=len(TOKENS) - 1, content=END, single_word=False, lstrip=False, rstrip=False, normalized=False,
               special=True)
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    write_json(folder / "tokenizer.json", dict(
        version="1.0", truncation=None, padding=None, added_tokens=[end], normalizer=None, pre_tokenizer=byte_level,
        post_processor=None, decoder=byte_level,
        model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                   fuse_unk=False, byte_fallback=False, vocab={t: i for i, t in enumerate(TOKENS)}, merges=MERGES)))
    write_json(folder / "tokenizer_config.json",
               dict(tokenizer_class="PreTrainedTokenizerFast", eos_token=END, bos_token=END))


def write_folder(golden, folder, weights):
    write_json(folder / "config.json", golden.config)
    write_json(folder / "generation_config.json", dict(bos_token_id=golden.config["bos_token_id"],
                                                       eos_token_id=[golden.config["eos_token_id"]]))
    write_tokenizer(folder)
    write_tensors(folder, weights, golden.n_shards)


# ---- the logits ----


class RoundedCache(DynamicCache):
    def update(self, keys, values, *args, **kwargs):
        return super().update(keys.half().to(keys), values.half().to(values), *args, **kwargs)


def compute_logits(model, tokens):
    ids = torch.tensor([tokens])
    cache = RoundedCache()
    with torch.no_grad():
        rows = [model(ids[:, :N_PROMPT], past_key_values=cache, use_cache=True).logits[0]]
        for i in range(N_PROMPT, len(tokens)):
            rows.append(model(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits[0])
    return torch.cat(rows).numpy()


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def require_visible(what, logits, changed):
    moved = np.abs(logits - changed).max()
    assert moved > VISIBLE, f"{what} moves no logit by more than {moved}"


def require_all_matters(golden, folder, model, tokens, logits):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored = parameter.clone()
            parameter.zero_()
            require_visible(name, logits, compute_logits(model, tokens))
            parameter.copy_(stored)
    for change in golden.matters:
        with tempfile.TemporaryDirectory() as other:
            shutil.copytree(folder, other, dirs_exist_ok=True)
            write_json(Path(other) / "config.json", golden.config | change)
            require_visible(str(change), logits, compute_logits(load(other), tokens))


# ---- GGUF ----

GGUF_NAMES = {  # of a layer, by what follows "model.layers.N."
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
GGUF_NAMES_GEMMA = GGUF_NAMES | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm"}
GGUF_NAMES_FALCON = {
    "input_layernorm": "attn_norm", "ln_mlp": "attn_norm", "ln_attn": "attn_norm_2",
    "self_attention.query_key_value": "attn_qkv", "self_attention.dense": "attn_output", "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down"}
GGUF_NAMES_TOP = {
    "model.embed_tokens": "token_embd", "transformer.word_embeddings": "token_embd", "model.norm": "output_norm",
    "transformer.ln_f": "output_norm", "lm_head": "output"}


def gguf_name(name, arch):
    stem, kind = name.rsplit(".", 1)
    if stem in GGUF_NAMES_TOP:
        return f"{GGUF_NAMES_TOP[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    table = GGUF_NAMES_FALCON if arch == "falcon" else GGUF_NAMES_GEMMA if "gemma" in arch else GGUF_NAMES
    return f"blk.{layer}.{table[rest]}.{kind}"


def pairs_side_by_side(w, n_heads):
    """Rows of each head from (0, 1 ... n/2-1, n/2 ...) to (0, n/2, 1, n/2 + 1, ...): RoPE's pairs as llama files have them."""
    return w.reshape(n_heads, 2, -1, w.shape[-1]).transpose(1, 2).reshape(w.shape)


def split_groups(w, n_kv_heads, head_dim):
    """Falcon's rows, KV group after KV group (its queries, key, value), to all queries, all keys, all values."""
    groups = w.reshape(n_kv_heads, -1, head_dim, w.shape[-1])
    return torch.cat([part.reshape(-1, w.shape[-1]) for part in (groups[:, :-2], groups[:, -2], groups[:, -1])])


def kv_heads(config):
    if config["model_type"] == "falcon":
        return config.get("num_kv_heads", 1)
    return config.get("num_key_value_heads", config["num_attention_heads"])


def gguf_tensor(name, w, arch, config):
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if arch == "llama" and "q_proj" in name:
        return pairs_side_by_side(w, config["num_attention_heads"])
    if arch == "llama" and "k_proj" in name:
        return pairs_side_by_side(w, kv_heads(config))
    if "gemma" in arch and "norm" in name:
        return w.float() + 1
    if "query_key_value" in name and config["new_decoder_architecture"]:
        return split_groups(w, kv_heads(config), head_dim)
    return w


def llama3_factors(config):
    """What the frequency of each pair of RoPE is divided by."""
    s = config["rope_scaling"]
    n = config["head_dim"]
    factors = []
    for i in range(n // 2):
        turns = s["original_max_position_embeddings"] * config["rope_theta"] ** (-2 * i / n) / (2 * math.pi)
        slow = (turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
        kept = min(max(slow, 0.0), 1.0)
        factors.append(1.0 / (kept + (1.0 - kept) / s["factor"]))
    return np.array(factors, np.float32)


def set_metadata(writer, golden, arch):
    c = golden.config
    head_dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    writer.add_name(golden.name)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c.get("intermediate_size", c.get("ffn_hidden_size")))
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(kv_heads(c))
    if arch == "falcon":
        return writer.add_layer_norm_eps(c["layer_norm_epsilon"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(int(head_dim * c.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(c.get("rope_theta") or c["rope_parameters"]["rope_theta"])
    if c.get("sliding_window") and c.get("use_sliding_window", True):
        writer.add_sliding_window(c["sliding_window"])
    if "gemma" in arch:
        writer.add_attention_scale(c["query_pre_attn_scalar"] ** -0.5)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(c["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(c["final_logit_softcapping"])
    if arch == "gemma3":
        writer.add_sliding_window_pattern(2)
        writer.add_rope_freq_base_swa(c["rope_local_base_freq"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c["rope_scaling"]["factor"])


def set_vocabulary(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(len(TOKENS) - 1)
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_add_bos_token(False)


GGML = {torch.float32: gguf.GGMLQuantizationType.F32, torch.float16: gguf.GGMLQuantizationType.F16,
        torch.bfloat16: gguf.GGMLQuantizationType.BF16}


def write_gguf(golden, path, weights):
    arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(golden.config["model_type"], golden.config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    set_metadata(writer, golden, arch)
    set_vocabulary(writer)
    for name, w in weights.items():
        w = gguf_tensor(name, w, arch, golden.config)
        kind = GGML[w.dtype if w.dim() == 2 else torch.float32]
        writer.add_tensor(gguf_name(name, arch), gguf.quants.quantize(w.float().numpy(), kind), raw_dtype=kind)
    if (golden.config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(golden.config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_golden(golden, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    weights = draw_weights(golden)
    write_folder(golden, folder, weights)
    tokens = np.random.default_rng(1000 + golden.seed).integers(0, len(TOKENS), N_PROMPT + N_DECODE).tolist()
    model = load(folder)
    logits = compute_logits(model, tokens)
    error = np.abs(logits - compute_logits(load(folder, torch.float64), tokens)).max()
    print(f"{golden.name}: logits to {np.abs(logits).max():.2f}, f32 is off by {error:.1e}")
    assert error < EXACT, "take another seed, or smaller weights"
    require_all_matters(golden, folder, model, tokens, logits)
    logits.astype("<f4").tofile(folder / "logits.bin")
    write_gguf(golden, folder / "model.gguf", weights)
    return dict(name=golden.name, seed=golden.seed, n_prompt=N_PROMPT, vocab_size=len(TOKENS),
                largest=round(float(np.abs(logits).max()), 3), tokens=tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *(g.name for g in GOLDENS)], metavar="NAME")
    names = parser.parse_args().names
    logging.disable_progress_bar()
    index = HERE / "index.json"
    old = {e["name"]: e for e in json.loads(index.read_text())} if index.exists() else {}
    entries = []
    for golden in GOLDENS:
        entries.append(write_golden(golden, HERE / golden.name) if not names or golden.name in names else old[golden.name])
    lines = ",\n".join(json.dumps(e) for e in entries)
    index.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
