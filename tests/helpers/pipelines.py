"""Tiny but real CogVideoX pipelines: folders that diffusers itself wrote and that its from_pretrained loads strictly.

Nothing is downloaded. The transformers are those of tests/data/bases, configuration and weights as recorded, so every
adapter of tests/data fits the pipeline of its base and a recorded forward holds in it. VAE, text encoder and tokenizer
are random and small; what decides shapes and call rules is as released: 8 x spatial and 4 x temporal compression,
16 latent channels, T5 with gated GELU, v-prediction with zero terminal SNR.

    folder = pipeline_folder("5b", place)
    pipe = load(folder)
    frames = pipe(**arguments(pipe)).frames[0]
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from helpers.oracle import DATA

TEXT_LENGTH = 226
"""max_sequence_length of a call that does not say otherwise, and max_text_seq_length of the released models."""


@dataclass(frozen=True)
class Kind:
    """What tells one released model from another, as far as a pipeline can show it."""

    base: str
    """Folder of tests/data/bases whose transformer it is, or is shaped after."""
    pipeline: str = "CogVideoXPipeline"
    changed: dict[str, Any] = field(default_factory=dict)
    """Entries of the transformer's config that differ from the base's. With any, its weights are random."""
    scaling_factor: float = 0.7
    snr_shift_scale: float = 1.0
    invert_scale_latents: bool = False


IMAGE = "CogVideoXImageToVideoPipeline"
KINDS = {
    "2b": Kind("2b", scaling_factor=1.15258426, snr_shift_scale=3.0),
    "5b": Kind("5b"),
    "5b_i2v": Kind("5b_i2v", IMAGE),
    "1.5_t2v": Kind("1.5_t2v", invert_scale_latents=True),
    # No recorded base has an ofs embedding; it is added to the time embedding, so it must be as wide.
    "1.5_i2v": Kind("1.5_t2v", IMAGE, {"in_channels": 32, "ofs_embed_dim": 32}, invert_scale_latents=True),
}
"""The numbers after diffusers' scripts/convert_cogvideox_to_diffusers.py and the comments there."""


def transformer(kind: str, text_length: int | None = None) -> diffusers.CogVideoXTransformer3DModel:
    """The recorded transformer in float32, which holds its bf16 numbers exactly.

    `text_length`: max_text_seq_length to give it instead of the recorded 8. Where positions are stored or computed for
    text and video together, a call must pass that very number as max_sequence_length. No adapter cares: no module
    changes its shape. The new text positions are zeros, as diffusers initialises them.
    """
    made = KINDS[kind]
    base = DATA / "bases" / made.base
    config = json.loads((base / "config.json").read_text()) | made.changed
    recorded = config["max_text_seq_length"]
    config["max_text_seq_length"] = text_length or recorded
    model = diffusers.CogVideoXTransformer3DModel.from_config(config)
    if made.changed:
        return model
    weights = load_file(base / "diffusion_pytorch_model.safetensors")
    positions = "patch_embed.pos_embedding"
    if positions in weights and text_length:
        kept = min(text_length, recorded)
        wider = model.state_dict()[positions].clone()
        wider[:, :kept] = weights[positions][:, :kept]
        wider[:, text_length:] = weights[positions][:, recorded:]
        weights[positions] = wider
    model.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, strict=True)
    return model


def vae(kind: str) -> diffusers.AutoencoderKLCogVideoX:
    """Four blocks give the factor 8. Widths after diffusers' tests/pipelines/cogvideo; latent channels as released."""
    made = KINDS[kind]
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=2,
        layers_per_block=1,
        latent_channels=16,
        sample_height=64,
        sample_width=64,
        scaling_factor=made.scaling_factor,
        invert_scale_latents=made.invert_scale_latents,
    )


def tokenizer() -> T5Tokenizer:
    """One token per printable ASCII character, <unk> for any other: takes every prompt and needs no download."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [("\u2581", -2.0), *((chr(code), -3.0) for code in range(33, 127))]
    if transformers.__version__.startswith("4."):  # whose T5Tokenizer wants a file
        made = Tokenizer(Unigram(special + pieces, unk_id=2))
        made.pre_tokenizer, made.decoder = Metaspace(), decoders.Metaspace()
        made.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        return transformers.T5TokenizerFast(tokenizer_object=made, extra_ids=0, model_max_length=TEXT_LENGTH)
    return T5Tokenizer(vocab=special + pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


def text_encoder(width: int, words: int) -> T5EncoderModel:
    """T5 v1.1, as the released one: gated GELU, embeddings of its own."""
    config = T5Config(
        vocab_size=words,
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def scheduler(kind: str) -> diffusers.CogVideoXDDIMScheduler:
    return diffusers.CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        clip_sample=False,
        timestep_spacing="trailing",
        snr_shift_scale=KINDS[kind].snr_shift_scale,
    )


def pipeline_folder(
    kind: str, folder: Path, seed: int = 0, *, text_length: int | None = None, dtype: torch.dtype = torch.float32
) -> Path:
    """Write the pipeline of one of KINDS to `folder`: the same seed gives the same bytes.

    `text_length=TEXT_LENGTH` makes a pipeline that a call without max_sequence_length suits, such as the snippet of a
    model card; without it the transformer keeps the 8 text tokens of the recorded forward passes.
    `dtype` is that of the stored weights: the released folders hold float16 (2b) and bfloat16.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformer(kind, text_length)
        words = tokenizer()
        parts = {
            "transformer": model,
            "vae": vae(kind),
            "text_encoder": text_encoder(model.config.text_embed_dim, len(words)),
        }
    for part in parts.values():
        torch.nn.Module.to(
            part.eval(), dtype
        )  # diffusers' own .to warns of modules it means to keep in float32: of none
    pipe = getattr(diffusers, KINDS[kind].pipeline)(tokenizer=words, scheduler=scheduler(kind), **parts)
    pipe.save_pretrained(folder)
    return folder


def load(folder: Path, pipeline: str | None = None, **options: Any) -> Any:
    """The folder as the pipeline that model_index.json names, or as the one named here. Silent while it runs."""
    named = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, pipeline or named).from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(pipe: Any, *, frames: int | None = None, steps: int = 2, seed: int = 0) -> dict[str, Any]:
    """A call that fits the pipeline, whichever it is: an image or a video where it takes one, and the seed's noise.

    `frames`: 9 unless said otherwise; 13 for video to video with 1.5, which does not pad and so refuses 9.
    The generator serves one call: make the arguments anew for the next.
    """
    config = pipe.transformer.config
    width, height = (size * pipe.vae_scale_factor_spatial for size in (config.sample_width, config.sample_height))
    given: dict[str, Any] = {
        "prompt": "a cat",
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "max_sequence_length": config.max_text_seq_length,
        "output_type": "np",
    }
    if isinstance(pipe, diffusers.CogVideoXVideoToVideoPipeline):
        count = frames or (13 if config.patch_size_t else 9)
        return given | {"video": pictures(width, height, count), "num_inference_steps": 2 * steps, "strength": 0.5}
    given["num_frames"] = frames or 9
    if isinstance(pipe, diffusers.CogVideoXImageToVideoPipeline):
        given["image"] = pictures(width, height, 1)[0]
    return given


def latents(pipe: Any, **changed: Any) -> torch.Tensor:
    """What a call with `arguments` denoises to, before the VAE: where runs are compared, and quick."""
    result: torch.Tensor = pipe(**arguments(pipe) | {"output_type": "latent"} | changed).frames
    return result


def pictures(width: int, height: int, count: int) -> list[Image.Image]:
    """Frames of a colour gradient that drifts."""
    y, x = np.mgrid[:height, :width]
    return [
        Image.fromarray(np.stack([x * 4 + 8 * i, y * 4, (x + y) * 2], axis=-1).astype(np.uint8)) for i in range(count)
    ]


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Everything diffusers, transformers and peft warn of meanwhile, by log or by warning.

    Their loggers do not propagate, so pytest's caplog hears nothing of them.
    """
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(f"{record.name}: {record.getMessage()}")  # type: ignore[method-assign]  # keeps
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
            heard += [f"{warning.category.__name__}: {warning.message}" for warning in caught]
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
