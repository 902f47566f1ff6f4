"""Why a model type that people would try is not supported: clauses that follow its name.

Positions that skip stand for text between tokens. That holds where attention knows of distances by
RoPE alone. What follows the index of a token in place of its position, or the text between tokens
itself, would be trained on something else than it will meet, without a sign of it. Each clause was
read in transformers' source of the model. The types at the end have no patch, and take lrk's
attention.
"""

_GATED_DELTA_NET = (
    "three of four of its layers are linear attention (Gated DeltaNet), a state that passes from "
    "token to token and knows no positions, so positions that skip would train the others alone"
)
_MAMBA = (
    "it has state-space layers (Mamba), whose state passes from token to token and knows no "
    "positions"
)
_ROTATED_APART = (
    "its last layers use keys and values of layers before them, so that queries and keys are "
    "rotated apart, which lrk's attention does not do"
)
_LATENT = (
    "its multi-head latent attention rotates a part of each query and one key that all heads "
    "share, and has queries wider than its values, which lrk's kernels do not take"
)
_SLIDING_ROTATES = (
    "layers with a sliding window alone rotate by positions, those that see the whole text have no "
    "RoPE, so no layer would see a distance beyond the window"
)
_NO_ROW = "its attention would fit, but no patch of it was ever tested"

REASONS = {
    "bamba": _MAMBA,
    "cohere2": _SLIDING_ROTATES,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "exaone4": f"with a sliding_window {_SLIDING_ROTATES}",
    "falcon_h1": f"{_MAMBA}, beside the attention of each layer",
    "gemma3n_text": _ROTATED_APART,
    "gemma4_text": _ROTATED_APART,
    "glm4_moe": _NO_ROW,
    "granitemoehybrid": _MAMBA,
    "jamba": f"{_MAMBA}, and attention without RoPE",
    "lfm2": (
        "most of its layers are short convolutions over the tokens as they stand, which know no "
        "positions"
    ),
    "llama4_text": (
        "its chunks of attention and its attention temperature go by the index of a token, not by "
        "its position, and its layers that see the whole text have no RoPE"
    ),
    "minimax": (
        "it has layers of lightning attention, whose state passes from token to token and knows no "
        "positions"
    ),
    "nemotron_h": f"{_MAMBA}, and attention without RoPE",
    "phimoe": (
        "the model applies its sliding window by a mask of its own, which counts tokens, and "
        "scales cosine and sine by the largest position of each batch"
    ),
    "qwen3_5_moe_text": _GATED_DELTA_NET,
    "qwen3_5_text": _GATED_DELTA_NET,
    "qwen3_next": _GATED_DELTA_NET,
}

ATTENTION_ALONE = frozenset(
    (
        *("apertus", "arcee", "cohere", "ernie4_5", "ernie4_5_moe", "gemma", "glm", "glm4_moe"),
        *("gpt_neox", "granitemoe", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "minimax_m2"),
        *("olmo", "olmoe", "persimmon", "phi", "qwen2_moe", "seed_oss", "starcoder2"),
    )
)
"""Types without a patch in which `attn_implementation="lrk"` gives what eager attention gives, with
padding, documents and skipped positions, by which the model's own RoPE rotates."""
