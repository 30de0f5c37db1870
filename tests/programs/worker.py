"""Loads adapters with the line of a jobs file, and measures what the layers of the live transformer then compute.

It runs inside a program of another time: torch, diffusers and peft, whichever are on the path, and nothing of ours.

    python worker.py jobs.json results.json

A job: name, line (Python with `pipe` in it), base (folder), expected (safetensors: weight name -> the update that
training applied to it) and, where a forward pass was recorded, forward (safetensors) and eps (of the last norm).
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def transformer(base):
    """The recorded model in float32, from its config, strictly filled."""
    from diffusers import CogVideoXTransformer3DModel

    config = json.loads((base / "config.json").read_text())
    model = CogVideoXTransformer3DModel.from_config(config)
    weights = load_file(base / "diffusion_pytorch_model.safetensors")
    model.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, strict=True)
    return model.eval().requires_grad_(False)


def computed(layer):
    """The matrix and the bias that a layer applies, whatever stands in it: it is given unit vectors."""
    base = getattr(layer, "base_layer", layer)
    if isinstance(base, torch.nn.Conv2d):
        shape = base.weight.shape[1:]
        out = layer(torch.eye(math.prod(shape)).reshape(-1, *shape))
        zero = layer(torch.zeros(1, *shape))
    else:
        out, zero = layer(torch.eye(base.in_features)), layer(torch.zeros(1, base.in_features))
    return (out - zero).flatten(1).T.double(), zero.flatten().double()


def layers(model):
    return {
        name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def outcome(pipe, job):
    """What the line did: the error, or the relative error and the factor per module that training or the line moved."""
    before = {name: computed(layer) for name, layer in layers(pipe.transformer).items()}
    expected = {key.removesuffix(".weight"): t.double() for key, t in load_file(job["expected"]).items()}
    if unknown := expected.keys() - before.keys():
        raise SystemExit(f"{job['name']}: the base has no {sorted(unknown)}")
    model = pipe.transformer
    try:
        exec(job["line"], {"pipe": pipe, **allowed()})
    except Exception as error:
        told = str(error).strip().partition("\n")[0].partition("{")[0].replace(job["place"], "PLACE")
        return {"error": f"{type(error).__name__}: {told[:80].strip()}"}
    modules, others = {}, 0
    for name, (was, at_zero) in before.items():
        matrix, bias = computed(model.get_submodule(name))
        moved = matrix - was
        others += not torch.allclose(bias, at_zero, rtol=1e-5, atol=1e-6)
        if name in expected:
            want = expected[name].flatten(1)
            size = want.norm()
            factor = float((moved * want).sum() / size**2)
            error, off = float((moved - want).norm() / size), float((moved - factor * want).norm() / size)
            modules[name] = [factor, error, off, float(moved.norm() / size)]
        elif not moved.norm() <= 1e-6 * was.norm():
            others += 1
    found = {"error": "", "modules": modules, "others": others}
    if job.get("forward"):
        found["forward"] = forward(model, job)
    return found


def forward(model, job):
    """The largest difference to the recorded forward pass of the whole transformer."""
    inputs = load_file(Path(job["base"]) / "inputs.safetensors")
    more = {"image_rotary_emb": (inputs["rope_cos"], inputs["rope_sin"])} if "rope_cos" in inputs else {}
    more |= {"ofs": inputs["ofs"]} if "ofs" in inputs else {}
    model.norm_out.norm.eps = job["eps"]
    out = model(
        hidden_states=inputs["x"], encoder_hidden_states=inputs["context"], timestep=inputs["timesteps"],
        return_dict=False, **more,
    )[0]  # fmt: skip
    return float((out - load_file(job["forward"])["lora_on"]).abs().max())


def allowed():
    from peft import PeftModel

    return {"PeftModel": PeftModel}


def versions():
    from importlib.metadata import version

    return {name: version(name) for name in ("diffusers", "peft", "transformers", "huggingface_hub", "torch")}


@torch.no_grad()
def main(jobs_file, results_file):
    import logging
    import warnings

    from diffusers import CogVideoXPipeline

    torch.use_deterministic_algorithms(True, warn_only=True)  # memory nobody filled holds NaN, and not what it held
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found = {}
    for job in json.loads(Path(jobs_file).read_text()):
        try:
            model = transformer(Path(job["base"]))
        except (RuntimeError, TypeError) as error:
            found[job["name"]] = {"error": "", "no_base": str(error).partition("\n")[0][:100]}
            continue
        pipe = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=None)
        found[job["name"]] = outcome(pipe, job)
    assert "loraforge" not in sys.modules
    Path(results_file).write_text(json.dumps({"versions": versions(), "jobs": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
