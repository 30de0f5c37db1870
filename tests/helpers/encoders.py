"""Tiny text encoders and tokenizers made in code, for pipelines of every architecture: nothing is downloaded.

Each is built twice with the same numbers. The sizes are those that Diffusers' own tiny test repositories have, as far
as its tests depend on them: the width that a transformer takes, five layers where a test leaves out the fifth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from helpers.pipelines import text_encoder, tokenizer

BYTES = sorted(ByteLevel.alphabet())
"""One character for every byte, as byte-level tokenizers write them."""
CHAT = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)


def seeded(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def t5(width: int = 32) -> Any:
    return seeded(lambda: text_encoder(width, 1103))


def _clip(kind: Any, width: int, layers: int, projection: int) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=37, projection_dim=projection, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return seeded(lambda: kind(config))


def clip(width: int = 32) -> Any:
    return _clip(transformers.CLIPTextModel, width, 5, width)


def clip_projected(width: int = 32, projection: int = 32) -> Any:
    return _clip(transformers.CLIPTextModelWithProjection, width, 5, projection)


def llama() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
    return seeded(lambda: transformers.LlamaModel(transformers.LlamaConfig(vocab_size=1000, pad_token_id=2, **sizes)))


def gemma() -> Any:
    config = transformers.GemmaConfig(
        vocab_size=1000, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=4,
    )  # fmt: skip
    return seeded(lambda: transformers.GemmaForCausalLM(config))


_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}


def qwen_vl() -> Any:
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 1000, "rope_theta": 1e6,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=_VISION)
    return seeded(lambda: transformers.Qwen2_5_VLForConditionalGeneration(config))


def mistral_vl() -> Any:
    text = {
        "model_type": "mistral", "vocab_size": 1000, "hidden_size": 16, "intermediate_size": 37,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 1,
        "num_attention_heads": 4, "image_size": 30, "patch_size": 6,
    }  # fmt: skip
    config = transformers.Mistral3Config(text_config=text, vision_config=vision)
    return seeded(lambda: transformers.Mistral3ForConditionalGeneration(config))


def gemma_vl() -> Any:
    text = {
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 1000,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return seeded(lambda: transformers.Gemma3ForConditionalGeneration(config))


def clip_words() -> Any:
    pieces = ["<|startoftext|>", "<|endoftext|>", *BYTES, *(f"{letter}</w>" for letter in BYTES)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _words(kind: Any, special: list[str], **options: Any) -> Any:
    vocabulary = {piece: number for number, piece in enumerate([*special, "\u2581", *BYTES])}
    return kind(vocab=vocabulary, merges=[], model_max_length=512, **options)


def qwen_words() -> Any:
    return _words(transformers.Qwen2Tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], chat_template=CHAT)


def llama_words() -> Any:
    return _words(
        transformers.LlamaTokenizerFast,
        ["<unk>", "<s>", "</s>"],
        add_bos_token=True,
        padding_side="right",
        pad_token="</s>",
        chat_template=CHAT,
    )


def gemma_words() -> Any:
    return _words(transformers.GemmaTokenizer, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])


t5_words = tokenizer
