"""FP8 weights in blocks, in the layout in which DeepSeek-V3 is published."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

from grpo.model.fp8 import dequantize, refuse_fp8, write_dequantized
from grpo.model.load import load_model
from grpo.model.weights import checkpoint_weights, save_model
from grpo.recipe.config import ModelConfig
from tests.conftest import save_tiny, tiny_v3_config

QUANTIZATION = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
IN_FULL = ("embed_tokens", "lm_head", "norm", "mlp.gate.")  # what V3 does not store in FP8


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values and the scale of each block, one block at a time: the largest value of a block becomes 448."""
    rows, columns = (-(-size // 128) for size in weight.shape)
    stored = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scales[i, j] = weight[part].abs().max() / 448
            stored[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
    return stored, scales


def plain(stored: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    """Every entry times its block's scale."""
    values, factors = stored.float().numpy(), scales.numpy()
    rows, columns = np.indices(values.shape)
    return values * factors[rows // 128, columns // 128]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder as V3's, with scales in another file than their weights; and the weights that it means."""
    config = tiny_v3_config()
    config.hidden_size, config.intermediate_size, config.moe_intermediate_size = 160, 200, 136
    folder = save_tiny(DeepseekV3ForCausalLM(config), tmp_path_factory.mktemp("models") / "fp8")
    files: dict[str, dict[str, torch.Tensor]] = {
        "model-00001-of-00002.safetensors": {},
        "model-00002-of-00002.safetensors": {},
    }
    first, second = files.values()
    meant: dict[str, np.ndarray] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if weight.ndim == 2 and not any(part in name for part in IN_FULL):
            first[name], second[f"{name}_scale_inv"] = quantized(weight)
            meant[name] = plain(first[name], second[f"{name}_scale_inv"])
        else:
            second[name] = weight
            meant[name] = weight.numpy()
    (folder / "model.safetensors").unlink()
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    places = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    settings = json.loads((folder / "config.json").read_text()) | {"quantization_config": QUANTIZATION}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder, meant


def test_blocks_at_the_edge_have_their_own_scales() -> None:
    """3 x 5 in blocks of 2 x 2: the last row and the last column are blocks of one."""
    weight = torch.tensor([[1, 2, 1, 2, 1], [2, 1, 2, 1, 2], [4, 4, 4, 4, 4]]).to(torch.float8_e4m3fn)
    found = dequantize(weight, torch.tensor([[1.0, 10.0, 100.0], [0.5, 0.25, 2.0]]), (2, 2))
    assert found.tolist() == [[1, 2, 10, 20, 100], [2, 1, 20, 10, 200], [2, 2, 1, 1, 8]]
    with pytest.raises(ValueError, match=r"shape \[3, 5\] in blocks of 128 x 128 has scales of shape \[2, 3\]"):
        dequantize(weight, torch.ones(2, 3))


def test_loading_gives_the_float32_weights_that_the_file_means(published: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, meant = published
    assert meant["model.layers.1.mlp.experts.7.down_proj.weight"].shape == (160, 136)  # 2 x 2 blocks, three at an edge
    model = load_model(ModelConfig(model_name_or_path=str(folder)))
    weights = dict(checkpoint_weights(model))
    assert weights.keys() == meant.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        np.testing.assert_array_equal(weight.numpy(), meant[name], err_msg=name)
    assert model.generation_config.eos_token_id == 257
    assert model.config.name_or_path == str(folder)


def test_what_is_saved_is_an_ordinary_model(published: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    folder, meant = published
    save_model(load_model(ModelConfig(model_name_or_path=str(folder))), tmp_path / "out", is_writer=True)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved.keys() == meant.keys()
    assert all(np.array_equal(saved[name].numpy(), weight) for name, weight in meant.items())


def test_a_folder_written_out_in_bfloat16_is_for_trainer_and_engine(
    published: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder, meant = published
    with pytest.raises(ValueError, match=r"and compute in FP8, .*`grpo dequantize .*fp8 OUT`"):
        refuse_fp8(str(folder), None, False)
    out = tmp_path / "out"
    write_dequantized(folder, out, max_file_bytes=300_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == meant.keys() and len(set(index.values())) > 2
    weight = load_file(out / index["lm_head.weight"])["lm_head.weight"]
    assert weight.dtype == torch.float32  # as it was
    refuse_fp8(str(out), None, False)
    assert {path.name for path in folder.iterdir()} - {path.name for path in out.iterdir()} <= set(
        json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()
    )
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    for name, tensor in checkpoint_weights(model):
        expected = torch.from_numpy(meant[name])
        rounded = expected if any(part in name for part in (*IN_FULL, "bias")) else expected.bfloat16().float()
        assert torch.equal(tensor, rounded), name
    with pytest.raises(ValueError, match=r"out exists\. Choose"):
        write_dequantized(folder, out)
    with pytest.raises(ValueError, match="nothing to dequantize"):
        write_dequantized(out, tmp_path / "again")


def test_other_quantizations_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    settings = json.loads((tiny_llama / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"is quantized \(awq\), and such weights cannot be trained"):
        load_model(ModelConfig(model_name_or_path=str(tmp_path)))


def test_fp8_weights_whose_scales_have_other_names_are_refused(tiny_v3: Path, tmp_path: Path) -> None:
    """As DeepSeek-V4's: without the scales, the weights would be taken for what they are not."""
    config = json.loads((tiny_v3 / "config.json").read_text()) | {"quantization_config": QUANTIZATION}
    (tmp_path / "v4").mkdir()
    (tmp_path / "v4/config.json").write_text(json.dumps(config))
    stored, scales = quantized(torch.randn(4, 6))
    save_file(
        {"layers.0.attn.wo_b.weight": stored, "layers.0.attn.wo_b.scale": scales}, tmp_path / "v4/model.safetensors"
    )
    with pytest.raises(ValueError, match=r"wo_b.weight is FP8 without .*_scale_inv, .*as DeepSeek-V4's are"):
        write_dequantized(tmp_path / "v4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
