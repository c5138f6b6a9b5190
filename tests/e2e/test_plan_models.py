"""`plan` of the twelve published models from configs/ alone: parameters, tensors and bytes to the digit."""

import json
import re
import shutil

import pytest

import bad_input
import helpers

CONFIGS = helpers.ROOT / "configs"

# Facts about the files on the hub: (parameters, active parameters, active without the input embedding, tensors of the
# published files, bytes of their tensors, those of the tensors that the model uses).
# Sources: total_size and weight_map of each repository's model.safetensors.index.json; the sizes that the hub and the
# model cards state; for active parameters a count of the tensors' shapes in the published files, without the experts
# that a token does not choose. The OLMoE files store float32. The published Qwen3-Next holds mtp.*, GLM-4.5-Air a layer
# 46, and Qwen3-0.6B and 1.7B an lm_head that repeats the tied embedding; Qwen3-4B does not.
MODELS = {
    "01_olmoe_1b_7b": (6_919_161_856, 1_282_017_280, 1_178_994_688, 3219, 27_676_647_424, 27_676_647_424),
    "02_gpt_oss_20b": (20_914_757_184, 4_187_440_704, 3_608_307_264, 459, 13_761_264_768, 13_761_264_768),
    "03_qwen3_30b": (30_532_122_624, 3_353_032_704, 3_041_867_776, 18867, 61_064_245_248, 61_064_245_248),
    "04_mixtral_8x7b": (46_702_792_704, 12_879_925_248, 12_748_853_248, 995, 93_405_585_408, 93_405_585_408),
    "05_qwen_next_80b": (79_674_391_296, 3_874_929_408, 3_563_764_480, 75944, 162_649_725_440, 159_348_782_592),
    "06_glm_45_air": (106_852_251_264, 13_424_129_664, 12_803_372_672, 18329, 220_937_661_440, 213_704_514_048),
    "07_gpt_oss_120b": (116_829_156_672, 5_711_982_912, 5_132_849_472, 687, 65_248_815_744, 65_248_815_744),
    "dense_01_qwen3_0.6b": (596_049_920, 596_049_920, 440_467_456, 311, 1_503_264_768, 1_192_099_840),
    "dense_02_qwen3_1.7b": (1_720_574_976, 1_720_574_976, 1_409_410_048, 311, 4_063_479_808, 3_441_149_952),
    "dense_03_qwen3_4b": (4_022_468_096, 4_022_468_096, 3_633_511_936, 398, 8_044_936_192, 8_044_936_192),
    "dense_04_qwen3_8b": (8_190_735_360, 8_190_735_360, 7_568_405_504, 399, 16_381_470_720, 16_381_470_720),
    "dense_05_qwen3_14b": (14_768_307_200, 14_768_307_200, 13_990_394_880, 443, 29_536_614_400, 29_536_614_400),
}
# Parameters of the GLM-4.5-Air files with layer 46, as the hub states them, and of 0.6B with lm_head.
WITH_EXTRAS = {"06_glm_45_air": 110_468_824_832, "dense_01_qwen3_0.6b": 751_632_384}
NO_LM_HEAD = "dense_03_qwen3_4b"  # tied, and the published file holds no copy

GB = 1e9


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def clone(tmp_path):
    """A folder with the configs and nothing else."""
    shutil.copytree(CONFIGS, tmp_path / "clone" / "configs")
    return tmp_path / "clone"


def plan(clone, name, *args):
    return json.loads(helpers.run(["plan", f"configs/{name}.cfg", "--json", *args], cwd=clone).stdout)


def text_of(name):
    return (CONFIGS / f"{name}.cfg").read_text()


def deployment(name):
    """The numbers of the section."""
    section = re.search(r"deployment: \{(.*?)\}", text_of(name), re.DOTALL).group(1)
    return {key: float(value) for key, value in re.findall(r"(\w+) = ([\d.]+);", section)}


def test_there_is_a_config_for_each_model():
    found = {path.stem for path in CONFIGS.glob("*.cfg")} - {"common", "demo"}
    assert found == set(MODELS)


def test_parameters(clone, name):
    total, active, without_embedding, *_ = MODELS[name]
    result = plan(clone, name)
    assert result["parameters"] == total
    assert result["active_parameters"] == active
    assert result["active_parameters_without_embedding"] == without_embedding


def test_bytes_and_tensors(clone, name):
    *_, tensors, published, used = MODELS[name]
    result = plan(clone, name)
    extras = result["not_used"].values()
    assert result["checkpoint_bytes"] == used
    assert result["checkpoint_bytes_at_most"] == used + sum(extra["bytes"] for extra in extras)
    if name == NO_LM_HEAD:
        assert (published, tensors) == (result["checkpoint_bytes"], result["tensors"])
        assert set(result["not_used"]) == {"lm_head"}
        return
    assert result["checkpoint_bytes_at_most"] == published
    assert result["tensors"] + sum(extra["tensors"] for extra in extras) == tensors
    if name in WITH_EXTRAS:
        assert result["parameters"] + sum(extra["parameters"] for extra in extras) == WITH_EXTRAS[name]


def test_stages_add_up(clone, name):
    """A tied embedding is read for the head too, and counted there."""
    result = plan(clone, name)
    embedding = result["stage_bytes"][0] if "lm_head" in result["not_used"] else 0
    assert len(result["stage_bytes"]) == len(result["stage_flops"]) == result["layers"] + 2
    assert sum(result["stage_bytes"]) == result["checkpoint_bytes"] + embedding
    assert sum(result["stage_flops"]) == pytest.approx(result["flops"], rel=1e-12)


def test_flops(clone, name):
    """Two per active parameter and token, less the input embedding, and what attention and DeltaNet add to that."""
    result = plan(clone, name)
    products = 2 * 16 * 2048 * result["active_parameters_without_embedding"]
    if "lm_head" in result["not_used"]:
        products += 2 * 16 * 2048 * (result["active_parameters"] - result["active_parameters_without_embedding"])
    assert products * 0.999 < result["flops"] < products * 1.4


def test_text_has_the_same_numbers(clone, name):
    *counts, _, _, used = MODELS[name]
    text = helpers.run(["plan", f"configs/{name}.cfg"], cwd=clone).stdout
    for number in (*counts, used):
        assert re.search(rf"\b{number}\b", text), (number, text)


def test_every_run_has_the_parameters_of_the_study(name):
    text = text_of(name)
    assert '@include "common.cfg"' in text.splitlines()
    assert "sequences = 16;" in text and "length = 2048;" in text
    common = text_of("common")
    for setting in ("threshold = 6.0;", "min_layer_fraction = 0.25;", "min_position_fraction = 0.06;"):
        assert setting in common


def test_common_part_counts(clone, name):
    """What the included file says reaches the model's config, and an error in it is reported there."""
    common = clone / "configs" / "common.cfg"
    common.write_text(common.read_text().replace("threshold = 6.0", "threshold = -6.0"))
    done = helpers.run(["plan", f"configs/{name}.cfg"], check=False, cwd=clone)
    assert done.returncode == 2
    assert "analysis.threshold" in done.stderr and "common.cfg" in done.stderr


def test_from_another_folder(tmp_path, name):
    config = re.search(r'config = "(.*)"', text_of(name)).group(1)
    args = ["plan", CONFIGS / f"{name}.cfg", "--json", "-s", f"model.config={helpers.ROOT / config}"]
    result = json.loads(helpers.run(args, cwd=tmp_path).stdout)
    assert result["parameters"] == MODELS[name][0]


def test_disk_holds_the_checkpoint(name):
    assert deployment(name)["container_disk_gb"] * GB >= MODELS[name][4] + 10 * GB


def test_plan_fits_the_gpus(clone, name):
    wanted = deployment(name)
    result = plan(clone, name, "--gpus", str(int(wanted["gpus"])), "--vram", str(wanted["min_vram_gb"]))
    assert len(result["ranks"]) == wanted["gpus"]
    assert all(rank["memory_bytes"] <= wanted["min_vram_gb"] * GB for rank in result["ranks"])


# --- against real files ---


@pytest.mark.parametrize("folder", sorted(helpers.REFERENCES.glob("*/config.json")), ids=lambda path: path.parent.name)
def test_count_of_a_real_checkpoint(folder, tmp_path):
    """What plan counts is what is in the files of a reference checkpoint, without the tensors that the model leaves."""
    model = folder.parent
    config = helpers.write_config(tmp_path / "plan.cfg", {"model": {"path": model}})
    result = json.loads(helpers.run(["plan", config, "--json"]).stdout)
    tied = json.loads(folder.read_text())["tie_word_embeddings"]
    left = rf"mtp\.|model\.layers\.{result['layers']}\." + (r"|lm_head\." if tied else "")
    sizes = [
        end - begin
        for file in model.glob("*.safetensors")
        for name, tensor in bad_input.Safetensors(file).header.items()
        if name != "__metadata__" and not re.match(left, name)
        for begin, end in [tensor["data_offsets"]]
    ]
    assert (len(sizes), sum(sizes)) == (result["tensors"], result["checkpoint_bytes"])


# --- where config.json comes from ---

GLM = "06_glm_45_air"


def test_the_checkpoints_own_config_comes_first(clone):
    folder = clone / "models" / "GLM-4.5-Air"
    folder.mkdir(parents=True)
    config = json.loads((CONFIGS / "models" / "glm-4.5-air.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    result = plan(clone, GLM)
    assert result["layers"] == 3 and result["config"] == "models/GLM-4.5-Air"


def test_empty_model_folder_is_planned_from_the_copy(clone):
    (clone / "models" / "GLM-4.5-Air").mkdir(parents=True)
    assert plan(clone, GLM)["config"] == "configs/models/glm-4.5-air.json"


def refusal(*args, cwd):
    done = helpers.run(args, check=False, cwd=cwd)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("moe-outliers: error: ")
    return done.stderr


def test_no_config_at_all(clone):
    line = refusal("plan", f"configs/{GLM}.cfg", "-s", "model.config=", cwd=clone)
    assert "models/GLM-4.5-Air" in line and f"scripts/fetch configs/{GLM}.cfg" in line and "model.config" in line


def test_config_that_is_not_there(clone):
    line = refusal("plan", f"configs/{GLM}.cfg", "-s", "model.config=nowhere.json", cwd=clone)
    assert "nowhere.json" in line and "model.config" in line


def test_run_says_how_to_get_the_checkpoint(clone):
    line = refusal("run", f"configs/{GLM}.cfg", cwd=clone)
    assert f"(models/GLM-4.5-Air): get it with scripts/fetch configs/{GLM}.cfg, read it from the hub with -s " in line
    assert "-s model.path=hf://zai-org/GLM-4.5-Air, or" in line
    assert not (clone / "results").exists()


def test_run_says_what_an_empty_folder_lacks(clone):
    (clone / "models" / "GLM-4.5-Air").mkdir(parents=True)
    line = refusal("run", f"configs/{GLM}.cfg", "-s", "output.path=result.h5", cwd=clone)
    assert "config.json" in line and "scripts/fetch" in line
