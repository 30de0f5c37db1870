"""HunyuanVideo as data: compared with diffusers' own converter of base weights, its LoRA converter and its loader.

What a converter does to base weights is what it must do to updates, so the first is the oracle for both.
diffusers 0.42's LoRA converter differs from it for two kinds of module; `WRONG` says which, and a test by how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge import plugins
from loraforge.basegraph import carry
from loraforge.catalog import architecture
from loraforge.testing import FormatConformance

PLUGINS = Path(__file__).parents[2]
HUNYUAN = PLUGINS / "loraforge-hunyuanvideo" / "loraforge_hunyuanvideo" / "hunyuanvideo.toml"
COMFYUI, KOHYA = (
    next((PLUGINS / f"loraforge-{n}" / f"loraforge_{n}").glob(f"{f}.toml"))
    for n, f in (("comfyui", "*native*"), ("kohya", "kohya"))
)
WIDTH = 3072  # diffusers' converters cut linear1 at this number; the inputs may be few
INPUTS = 6
HEIGHTS = {
    **{
        f"double_blocks.{i}.{stream}{name}": height
        for i in (0, 19)
        for stream in ("img", "txt")
        for name, height in {"_attn_qkv": 3, "_attn_proj": 1, "_mlp.fc1": 4, "_mlp.fc2": 1, "_mod.linear": 6}.items()
    },
    **{
        f"single_blocks.{i}.{name}": height
        for i in (0, 39)
        for name, height in {"linear1": 7, "linear2": 1, "modulation.linear": 3}.items()
    },
    **{
        f"txt_in.individual_token_refiner.blocks.{i}.{name}": height
        for i in (0, 1)
        for name, height in {
            "self_attn_qkv": 3, "self_attn_proj": 1, "mlp.fc1": 4, "mlp.fc2": 1, "adaLN_modulation.1": 2,
        }.items()
    },
    **dict.fromkeys(
        (
            "txt_in.input_embedder", "txt_in.t_embedder.mlp.0", "txt_in.t_embedder.mlp.2",
            "txt_in.c_embedder.linear_1", "txt_in.c_embedder.linear_2", "img_in.proj", "time_in.mlp.0", "time_in.mlp.2",
            "guidance_in.mlp.0", "guidance_in.mlp.2", "vector_in.in_layer", "vector_in.out_layer", "final_layer.linear",
        ),
        1,
    ),
    "final_layer.adaLN_modulation.1": 2,
}  # fmt: skip
"""Every module of the original model that has a matrix, and its rows as multiples of the width."""
WRONG = ("self_attn_qkv", "final_layer.adaLN_modulation.1")
"""What diffusers' LoRA converter gets wrong: it cuts and exchanges the rows of lora_A, which are the rank's."""

Dense = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugins but those a test loads, as --plugin does, and none in the next test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("LORAFORGE_PLUGINS", "")
    yield
    plugins.forget_files()
    plugins.forget()


def load(*files: Path) -> None:
    for file in files:
        loraforge.use_plugin(file)


class TestOriginal(FormatConformance):
    format = "hunyuanvideo-original"

    @pytest.fixture(autouse=True)
    def loaded(self) -> None:
        load(HUNYUAN, COMFYUI, KOHYA)


def random_adapter(rank: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Module path -> A and B, as `<path>.lora_A.weight`; the patch embedding's as a convolution has them."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for path, height in HEIGHTS.items():
        conv = path == "img_in.proj"
        A = rng.standard_normal((rank, 16, 1, 2, 2) if conv else (rank, INPUTS), np.float32)
        B = rng.standard_normal((height * WIDTH, rank), np.float32)
        tensors[f"{path}.lora_A.weight"] = A
        tensors[f"{path}.lora_B.weight"] = B.reshape(*B.shape, 1, 1, 1) if conv else B
    return tensors


def dense(tensors: Mapping[str, np.ndarray], prefix: str = "", ends: tuple[str, str] = (".lora_A", ".lora_B")) -> Dense:
    """Module path -> B A in float64, times alpha / rank where there is one."""
    updates = {}
    for key, A in tensors.items():
        stem, found, _ = key.partition(f"{ends[0]}.weight")
        if not found:
            continue
        B = tensors[f"{stem}{ends[1]}.weight"]
        product = B.reshape(-1, len(A)).astype(np.float64) @ A.reshape(len(A), -1).astype(np.float64)
        scale = float(tensors[f"{stem}.alpha"]) / len(A) if f"{stem}.alpha" in tensors else 1.0
        updates[stem.removeprefix(prefix)] = scale * product
    return updates


def of_base_weights(updates: Dense) -> Dense:
    """The updates under diffusers' names, moved as its converter moves base weights."""
    state = {f"{path}.weight": torch.from_numpy(update) for path, update in updates.items()}
    moved = convert_hunyuan_video_transformer_to_diffusers(state)
    return {key.removesuffix(".weight"): tensor.numpy() for key, tensor in moved.items()}


def assert_same(have: Dense, want: Dense) -> None:
    assert have.keys() == want.keys()
    for path, update in want.items():
        assert have[path].shape == update.shape, path
        np.testing.assert_allclose(have[path], update, rtol=1e-6, atol=1e-5, err_msg=path)


def saved(tensors: Mapping[str, np.ndarray], path: Path, prefix: str = "") -> Path:
    save_file({prefix + key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, path)
    return path


def converted(source: Path, to: str, out: Path, **options: object) -> dict[str, np.ndarray]:
    loraforge.convert(source, to=to, out=out, **options)
    return load_file(out)


def ranks(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {key.partition(".lora_A")[0]: len(A) for key, A in tensors.items() if ".lora_A" in key}


def original_to_diffusers(folder: Path) -> None:
    """Every module, against the converter of base weights."""
    tensors = random_adapter()
    source = saved(tensors, folder / "original.safetensors", "transformer.")
    out = converted(source, "diffusers", folder / "out.safetensors", trained_scale=1)
    assert_same(dense(out, "transformer."), of_base_weights(dense(tensors)))


def test_every_module_is_where_diffusers_puts_base_weights(tmp_path: Path) -> None:
    load(HUNYUAN)
    original_to_diffusers(tmp_path)


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", ""])
def test_whatever_stands_before_the_names(prefix: str, tmp_path: Path) -> None:
    load(HUNYUAN, COMFYUI, KOHYA)
    source = saved(random_adapter(2), tmp_path / "original.safetensors", prefix)
    assert loraforge.inspect(source).format == "hunyuanvideo-original"
    assert loraforge.inspect(source).architecture == "hunyuanvideo"


def test_the_folder_diffusion_pipe_saves_is_not_peft_s(tmp_path: Path) -> None:
    load(HUNYUAN)
    saved(random_adapter(2), tmp_path / "adapter_model.safetensors", "transformer.")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    assert loraforge.inspect(tmp_path).format == "hunyuanvideo-original"


def test_the_lora_converter_of_diffusers_where_it_is_right(tmp_path: Path) -> None:
    load(HUNYUAN)
    tensors = {key: tensor for key, tensor in random_adapter().items() if not any(part in key for part in WRONG)}
    theirs = _convert_hunyuan_video_lora_to_diffusers({key: torch.from_numpy(t) for key, t in tensors.items()})
    source = saved(tensors, tmp_path / "original.safetensors")
    ours = converted(source, "diffusers", tmp_path / "out.safetensors", trained_scale=1)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert np.array_equal(ours[key], tensor.numpy()), key


def test_the_lora_converter_of_diffusers_where_it_is_wrong(tmp_path: Path) -> None:
    """Both follow from one fault: rows of lora_A are taken for rows of the weight. diffusers 0.42.1."""
    load(HUNYUAN)
    final, refiner = "final_layer.adaLN_modulation.1", "txt_in.individual_token_refiner.blocks.0.self_attn_qkv"
    tensors = {key: tensor for key, tensor in random_adapter().items() if key.startswith((final, refiner))}
    theirs = {
        key: tensor.numpy()
        for key, tensor in _convert_hunyuan_video_lora_to_diffusers(
            {key: torch.from_numpy(t) for key, t in tensors.items()}
        ).items()
    }
    source = saved(tensors, tmp_path / "original.safetensors")
    ours = dense(converted(source, "diffusers", tmp_path / "out.safetensors", trained_scale=1), "transformer.")
    right = of_base_weights(dense(tensors))
    assert_same(ours, right)
    # shift and scale: the halves of A's 6 components change places too, while B's columns do not
    wrong = dense({key: t for key, t in theirs.items() if "norm_out.linear" in key}, "transformer.")["norm_out.linear"]
    # 1.32 to 1.56 for five seeds
    error = np.linalg.norm(wrong - right["norm_out.linear"]) / np.linalg.norm(right["norm_out.linear"])
    assert error == pytest.approx(np.sqrt(2), rel=0.25)  # as far off as an unrelated update of the same size
    # qkv of the refiner: A is cut into three, so that q, k and v get 2 of the 6 components for B's 6 columns
    for name in ("to_q", "to_k", "to_v"):
        stem = f"transformer.context_embedder.token_refiner.refiner_blocks.0.attn.{name}"
        assert theirs[f"{stem}.lora_A.weight"].shape == (2, INPUTS)
        assert theirs[f"{stem}.lora_B.weight"].shape == (WIDTH, 6)
    # and a rank that gives no three parts is refused
    four = {f"{refiner}.lora_A.weight": torch.zeros(4, INPUTS), f"{refiner}.lora_B.weight": torch.zeros(3 * WIDTH, 4)}
    with pytest.raises(ValueError, match="not enough values to unpack"):
        _convert_hunyuan_video_lora_to_diffusers(four)


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ('["out_scale", "out_shift"]', '["out_shift", "out_scale"]'),
        ('["img_q", "img_k", "img_v"]', '["img_q", "img_v", "img_k"]'),
        ('["single_q", "single_k", "single_v", "single_mlp"]', '["single_mlp", "single_q", "single_k", "single_v"]'),
        ("rows = { single_mlp = 4 }", "rows = { single_mlp = 3 }"),
    ],
    ids=["shift and scale", "k and v", "mlp first", "ratio"],
)
def test_a_broken_layout_is_caught(line: str, broken: str, tmp_path: Path) -> None:
    text = HUNYUAN.read_text("utf-8")
    assert line in text
    (tmp_path / "hunyuanvideo.toml").write_text(text.replace(line, broken, 1), "utf-8")
    load(tmp_path / "hunyuanvideo.toml")
    assert "hunyuanvideo-original" in loraforge.formats()
    with pytest.raises(AssertionError):
        original_to_diffusers(tmp_path)


def test_fused_split_and_fused_again(tmp_path: Path) -> None:
    """One A for a whole stack: no rank grows on the way, and the update is the same to the bit."""
    load(HUNYUAN)
    tensors = random_adapter(4)
    source = saved(tensors, tmp_path / "a.safetensors", "transformer.")
    converted(source, "diffusers", tmp_path / "b.safetensors", trained_scale=1)
    back = converted(tmp_path / "b.safetensors", "hunyuanvideo-original", tmp_path / "c.safetensors")
    assert back.keys() == {f"transformer.{key}" for key in tensors}
    for key, tensor in tensors.items():
        assert np.array_equal(back[f"transformer.{key}"], tensor), key


@pytest.mark.parametrize("form", ["hunyuanvideo-original", "comfyui-native"])
def test_split_fused_and_split_again(form: str, tmp_path: Path) -> None:
    """Where q, k and v have an A each, or none, one pair holds them block by block; split, the ranks come back."""
    load(HUNYUAN, COMFYUI)
    rng = np.random.default_rng(1)
    adapted = {  # diffusers' names: module -> rank, rows, width of the input
        "transformer_blocks.0.attn.to_q": (4, 32, 32),
        "transformer_blocks.1.attn.to_q": (4, 32, 32),
        "transformer_blocks.1.attn.to_k": (2, 32, 32),
        "transformer_blocks.1.attn.to_v": (1, 32, 32),
        "single_transformer_blocks.0.attn.to_v": (3, 32, 32),
        "single_transformer_blocks.0.proj_mlp": (5, 128, 32),
        "single_transformer_blocks.1.proj_mlp": (2, 128, 32),
        "norm_out.linear": (4, 64, 32),
    }
    tensors = {}
    for path, (rank, rows, width) in adapted.items():
        tensors[f"transformer.{path}.lora_A.weight"] = rng.standard_normal((rank, width), np.float32)
        tensors[f"transformer.{path}.lora_B.weight"] = rng.standard_normal((rows, rank), np.float32)
    source = saved(tensors, tmp_path / "a.safetensors")
    fused = converted(source, form, tmp_path / "b.safetensors", trained_scale=1)
    img, one = ("img_attn_qkv", "transformer.") if "original" in form else ("img_attn.qkv", "diffusion_model.")
    assert ranks(fused) == {
        f"{one}double_blocks.0.{img}": 4,
        f"{one}double_blocks.1.{img}": 7,
        f"{one}single_blocks.0.linear1": 8,
        f"{one}single_blocks.1.linear1": 2,
        f"{one}final_layer.adaLN_modulation.1": 4,
    }
    stack = dense(fused, one)[f"double_blocks.0.{img}"]
    assert stack.shape == (96, 32)
    assert not stack[32:].any()
    split = converted(tmp_path / "b.safetensors", "diffusers", tmp_path / "c.safetensors", trained_scale=1)
    live = {path: update for path, update in dense(split, "transformer.").items() if update.any()}
    assert_same(live, dense(tensors, "transformer."))
    assert {path: ranks(split)[f"transformer.{path}"] for path in live} == {
        path: r for path, (r, _, _) in adapted.items()
    }
    # what was not adapted is now a module whose B is zero: as one that was adapted, and has not learnt anything
    idle = ranks(split).keys() - {f"transformer.{path}" for path in live}
    assert len(idle) == 2 + 2 + 3
    again = converted(tmp_path / "c.safetensors", form, tmp_path / "d.safetensors")
    assert_same(dense(again), dense(fused))


COMFYUI_NAMES = (
    ("_attn_qkv", "_attn.qkv"), ("_attn_proj", "_attn.proj"), ("_mod.linear", "_mod.lin"),
    ("modulation.linear", "modulation.lin"), ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"),
    ("time_in.mlp.0", "time_in.in_layer"), ("time_in.mlp.2", "time_in.out_layer"),
    ("guidance_in.mlp.0", "guidance_in.in_layer"), ("guidance_in.mlp.2", "guidance_in.out_layer"),
    ("t_embedder.mlp.0", "t_embedder.in_layer"), ("t_embedder.mlp.2", "t_embedder.out_layer"),
    ("c_embedder.linear_1", "c_embedder.in_layer"), ("c_embedder.linear_2", "c_embedder.out_layer"),
)  # fmt: skip
"""Original -> ComfyUI: the attributes of the classes in its comfy/ldm/hunyuan_video/model.py."""


def in_comfyui(path: str) -> str:
    for ours, theirs in COMFYUI_NAMES:
        path = path.replace(ours, theirs)
    return path


def test_the_names_of_comfyui(tmp_path: Path) -> None:
    load(HUNYUAN, COMFYUI)
    tensors = random_adapter(4)
    source = saved(tensors, tmp_path / "a.safetensors", "transformer.")
    comfy = converted(source, "comfyui-native", tmp_path / "b.safetensors", trained_scale=1)
    assert_same(dense(comfy, "diffusion_model."), {in_comfyui(path): u for path, u in dense(tensors).items()})
    assert loraforge.inspect(tmp_path / "b.safetensors").format == "comfyui-native"
    split = converted(tmp_path / "b.safetensors", "diffusers", tmp_path / "c.safetensors", trained_scale=1)
    assert_same(dense(split, "transformer."), of_base_weights(dense(tensors)))
    back = converted(tmp_path / "c.safetensors", "comfyui-native", tmp_path / "d.safetensors")
    assert ranks(back) == ranks(comfy)
    assert_same(dense(back), dense(comfy))


def test_musubi_s_names_and_alpha(tmp_path: Path) -> None:
    load(HUNYUAN, COMFYUI, KOHYA)
    tensors = random_adapter(4)
    source = saved(tensors, tmp_path / "a.safetensors", "transformer.")
    musubi = converted(source, "kohya", tmp_path / "b.safetensors", alpha=1)
    assert float(musubi["lora_unet_double_blocks_0_img_attn_qkv.alpha"]) == 1
    want = {path.replace(".", "_"): update / 4 for path, update in dense(tensors).items()}
    assert_same(dense(musubi, "lora_unet_", (".lora_down", ".lora_up")), want)
    assert loraforge.inspect(tmp_path / "b.safetensors").format == "kohya"
    out = converted(tmp_path / "b.safetensors", "diffusers", tmp_path / "c.safetensors")
    scaled = {path: update / 4 for path, update in dense(tensors).items()}
    assert_same(dense(out, "transformer."), of_base_weights(scaled))


def model(**options: object) -> HunyuanVideoTransformer3DModel:
    """One small enough for a forward pass in a blink."""
    torch.manual_seed(0)
    return HunyuanVideoTransformer3DModel(
        **{
            "in_channels": 16,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 2,
            "text_embed_dim": 12,
            "pooled_projection_dim": 10,
            "rope_axes_dim": (2, 2, 4),
            **options,
        }
    ).eval()


@pytest.mark.parametrize("condition", [None, "latent_concat", "token_replace"])
@pytest.mark.parametrize("guidance", [True, False])
def test_every_parameter_of_the_model_has_its_place(condition: str | None, guidance: bool) -> None:
    load(HUNYUAN)
    arch = architecture("hunyuanvideo")
    layout = arch.layouts["diffusers"]
    base = model(image_condition_type=condition, guidance_embeds=guidance)
    seen = set()
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d):
            place = layout.locate(name)
            assert place, name
            assert not arch.unadapted.keys() & set(layout.modules[place[0]]), name
    for key, parameter in base.named_parameters():
        path, _, name = key.rpartition(".")
        place = layout.locate(path)
        assert place, key
        segments = layout.modules[place[0]]
        assert name in arch.named(segments)
        assert arch.sizes(segments, parameter.shape[0])
        seen.add(place[0])
    missing = {template.text for template in layout.modules.keys() - seen}
    assert missing == (set() if guidance else {t for t in missing if "guidance_embedder" in t})


def test_a_whole_base_model_moves_as_diffusers_moves_it() -> None:
    load(HUNYUAN)
    arch = architecture("hunyuanvideo")
    rng = np.random.default_rng(2)
    base = {}
    for path, height in HEIGHTS.items():
        inputs = (16, 1, 2, 2) if path == "img_in.proj" else (INPUTS,)
        base[f"{path}.weight"] = rng.standard_normal((height * WIDTH, *inputs), np.float32)
        base[f"{path}.bias"] = rng.standard_normal(height * WIDTH, np.float32)
    for template, segments in arch.layouts["original"].modules.items():
        if segments[0] in arch.unadapted:
            base |= {f"{template.fill((('i', 0),))}.{p}": rng.random(8, np.float32) for p in arch.named(segments)}
    oracle = convert_hunyuan_video_transformer_to_diffusers({key: torch.from_numpy(t) for key, t in base.items()})
    moved, dropped = carry(base, arch, "original", "diffusers", arch.like((WIDTH, 16, 1, 2, 2))[:1])
    assert not dropped
    assert moved.keys() == oracle.keys()
    for key, tensor in oracle.items():
        assert np.array_equal(moved[key], tensor.numpy()), key
    back, _ = carry(moved, arch, "diffusers", "original", arch.like((WIDTH, 16, 1, 2, 2))[:1])
    assert all(np.array_equal(back[key], tensor) for key, tensor in base.items())
    # and they are the names of the model
    names = {key.replace(".19.", ".1.").replace(".39.", ".1.") for key in moved}
    assert {key for key in model().state_dict() if ".1.attn.norm" not in key} - names == {
        f"context_embedder.token_refiner.refiner_blocks.1.norm{n}.{p}" for n in (1, 2) for p in ("weight", "bias")
    }


def test_the_real_loader_applies_the_update_and_the_model_feels_it(tmp_path: Path) -> None:
    load(HUNYUAN)
    plain, loaded = model(), model()
    width = 16
    tensors, rng = {}, np.random.default_rng(3)
    arch = architecture("hunyuanvideo")
    shapes = {name: m.weight.shape for name, m in plain.named_modules() if getattr(m, "weight", None) is not None}
    where = {s: t for t, stack in arch.layouts["diffusers"].modules.items() for s in stack}
    for path, height in HEIGHTS.items():
        path = path.replace(".19.", ".1.").replace(".39.", ".1.")
        template, index = arch.layouts["original"].locate(path)
        shape = shapes[where[arch.layouts["original"].modules[template][0]].fill(index)]
        rows = shape[0] if path == "final_layer.linear" else height * width
        tensors[f"{path}.lora_A.weight"] = rng.standard_normal((4, *shape[1:]), np.float32) / 4
        B = rng.standard_normal((rows, 4), np.float32) / 4
        tensors[f"{path}.lora_B.weight"] = B.reshape(*B.shape, *(1,) * (len(shape) - 2))
    source = saved(tensors, tmp_path / "original.safetensors", "transformer.")
    loraforge.convert(source, to="diffusers", out=tmp_path / "out", trained_scale=0.5)

    state, metadata = HunyuanVideoPipeline.lora_state_dict(str(tmp_path / "out"), return_lora_metadata=True)
    HunyuanVideoPipeline.load_lora_into_transformer(state, loaded, metadata=metadata)
    updates = {path: update / 2 for path, update in dense(tensors).items()}
    expected = of_base_weights({path: u for path, u in updates.items() if "linear1" not in path})
    for i in (0, 1):  # diffusers' converter knows only the released width here
        parts = np.split(updates[f"single_blocks.{i}.linear1"], [width, 2 * width, 3 * width])
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        expected |= {f"single_transformer_blocks.{i}.{n}": part for n, part in zip(names, parts, strict=True)}
    modules = dict(plain.named_modules())
    assert expected.keys() == {n for n, m in modules.items() if isinstance(m, torch.nn.Linear | torch.nn.Conv3d)}
    inputs = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, 12),
        "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool),
        "pooled_projections": torch.randn(1, 10),
        "guidance": torch.tensor([6000.0]),
        "return_dict": False,
    }
    with torch.no_grad():
        before = plain(**inputs)[0]
        for path, update in expected.items():
            weight = modules[path].weight
            weight += torch.from_numpy(update).to(weight.dtype).reshape(weight.shape)
        want, got = plain(**inputs)[0], loaded(**inputs)[0]
    assert (want - before).norm() > 0.1 * before.norm()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_peft_s_folder_too(tmp_path: Path) -> None:
    load(HUNYUAN)
    source = saved(random_adapter(2), tmp_path / "original.safetensors", "transformer.")
    loraforge.convert(source, to="peft", out=tmp_path / "peft", trained_scale=0.5)
    assert loraforge.verify(source, tmp_path / "peft").strength == pytest.approx(0.5)  # a file without alpha: read at 1


def test_the_report_and_what_shapes_say(tmp_path: Path) -> None:
    load(HUNYUAN)
    rng = np.random.default_rng(0)
    stem = "double_blocks.0.img_attn_qkv"
    tensors = {
        f"{stem}.lora_A.weight": rng.random((2, 3072), np.float32),
        f"{stem}.lora_B.weight": np.zeros((9216, 2), np.float32),
    }
    source = saved(tensors, tmp_path / "a.safetensors", "transformer.")
    said = "\n".join(loraforge.inspect(source).lines())
    assert "fits     HunyuanVideo, HunyuanVideo-I2V, HunyuanVideo-I2V-33ch" in said
    small = saved({k: t[:, :64] if "_A" in k else t[:192] for k, t in tensors.items()}, tmp_path / "b.safetensors")
    assert "no released HunyuanVideo has these shapes" in "\n".join(loraforge.inspect(small).lines())
    with pytest.raises(loraforge.LoraforgeError, match="sat has no names for HunyuanVideo"):
        loraforge.convert(source, to="sat", trained_scale=1, out=tmp_path / "x")
    loraforge.convert(source, to="diffusers", trained_scale=1, out=tmp_path / "d.safetensors")
    with pytest.raises(
        loraforge.LoraforgeError, match="builds a CogVideoX transformer, and this adapter is one of Hun"
    ):
        loraforge.verify(tmp_path / "d.safetensors", in_="diffusers")
