import copy
import json

import pytest

from pyvllama.config import Llama3Rope, MllamaConfig, PreprocessorConfig, aspect_ratios
from pyvllama.errors import ConfigError, FormatError


@pytest.fixture
def config(pocket_checkpoint):
    return json.loads((pocket_checkpoint / "config.json").read_text())


@pytest.fixture
def preprocessor(pocket_checkpoint):
    return json.loads((pocket_checkpoint / "preprocessor_config.json").read_text())


def refusal(config):
    with pytest.raises(ConfigError) as e:
        MllamaConfig.from_hf_json(config)
    return str(e.value)


def test_pocket(config):
    c = MllamaConfig.from_hf_json(config)
    assert (c.text.hidden_size, c.text.head_dim, c.text.n_embedding_rows, c.image_token_index) == (256, 64, 1288, 1280)
    assert c.text.self_attention_layers == (0, 2, 4, 5, 7)
    assert c.text.rope_scaling == Llama3Rope(8.0, 1.0, 4.0, 8192)
    assert (c.text.bos_token_id, c.text.eos_token_ids) == (1248, (1249, 1256, 1257))
    assert c.vision.n_positions == 65
    assert c.vision.supported_aspect_ratios[5] == (2, 2)


def test_transformers5_spelling_means_the_same(config):
    new = copy.deepcopy(config)
    text, vision = new["text_config"], new["vision_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    vision["num_attention_heads"] = vision.pop("attention_heads")
    new["image_token_id"] = new.pop("image_token_index")
    assert MllamaConfig.from_hf_json(new) == MllamaConfig.from_hf_json(config)


@pytest.mark.parametrize("rope", [None, {"rope_type": "default"}, {"type": "default"}])
def test_without_rope_scaling(config, rope):
    config["text_config"]["rope_scaling"] = rope
    assert MllamaConfig.from_hf_json(config).text.rope_scaling is None


def test_all_missing_keys_stand_in_one_message(config):
    for key in ("hidden_size", "rms_norm_eps", "cross_attention_layers", "rope_theta"):
        del config["text_config"][key]
    del config["text_config"]["rope_scaling"]["low_freq_factor"]
    message = refusal(config)
    for key in ("hidden_size", "rms_norm_eps", "cross_attention_layers", "rope_theta", "low_freq_factor"):
        assert key in message


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
def test_each_required_key_is_named_when_missing(config, section):
    optional = {"hidden_act", "num_channels", "tie_word_embeddings", "dropout", "initializer_range", "use_cache"}
    optional |= {"bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "model_type", "rope_scaling"}
    for key in set(config[section]) - optional:
        damaged = copy.deepcopy(config)
        del damaged[section][key]
        message = refusal(damaged)
        assert section in message
        assert key in message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "hidden_act", "gelu"),
        ("vision_config", "hidden_act", "quick_gelu"),
        ("vision_config", "num_channels", 1),
        ("text_config", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("text_config", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("text_config", "num_attention_heads", 3),
        ("text_config", "num_key_value_heads", 3),
        ("text_config", "head_dim", 32),
        ("text_config", "hidden_size", "256"),
        ("text_config", "hidden_size", True),
        ("text_config", "hidden_size", -256),
        ("text_config", "rms_norm_eps", float("nan")),
        ("text_config", "vocab_size", 10**12),
        ("text_config", "num_hidden_layers", 10**6),
        ("text_config", "cross_attention_layers", []),
        ("text_config", "cross_attention_layers", [3, 1]),
        ("text_config", "cross_attention_layers", [1, 1]),
        ("text_config", "cross_attention_layers", [1, 99]),
        ("text_config", "cross_attention_layers", "1, 3"),
        ("vision_config", "max_num_tiles", 10**6),
        ("vision_config", "supported_aspect_ratios", [[1, 1], [1, 2]]),
        ("vision_config", "intermediate_layers_indices", [3, 1]),
        ("vision_config", "intermediate_layers_indices", [1, 2, 4]),
        ("vision_config", "vision_output_dim", 1280),
        ("vision_config", "patch_size", 13),
    ],
)
def test_unsupported_values_are_refused_by_name_and_value(config, section, key, value):
    config[section][key] = value
    message = refusal(config)
    assert section in message
    if key == "rope_scaling":
        assert (value.get("rope_type") or value["type"]) in message
    elif key not in ("num_attention_heads", "patch_size"):  # named by what they do not divide
        assert key in message
        assert repr(value) in message


def test_cross_layer_before_all_self_layers(config):
    config["text_config"]["cross_attention_layers"] = [0, 3, 6]
    assert "cross_attention_layers = [0, 3, 6]" in refusal(config)


def test_cross_layer_after_all_self_layers(config):
    config["text_config"]["cross_attention_layers"] = [1, 3, 7]
    assert "after the last" in refusal(config)


def test_cross_layers_directly_after_one_another(config):
    config["text_config"]["cross_attention_layers"] = [1, 2, 3]
    assert MllamaConfig.from_hf_json(config).text.self_attention_layers == (0, 4, 5, 6, 7)


def test_another_model(config):
    config["model_type"] = "qwen2_vl"
    assert "qwen2_vl" in refusal(config)


def test_image_token_outside_of_the_embedding(config):
    config["image_token_index"] = 1288
    assert "image_token_index = 1288" in refusal(config)


def test_sections_that_are_no_objects(config):
    config["text_config"] = [1, 2]
    assert "text_config" in refusal(config)


def test_preprocessor_round_trip(preprocessor):
    p = PreprocessorConfig.from_hf_json(preprocessor)
    assert (p.tile_size, p.max_num_tiles, p.resample) == (112, 4, 2)
    assert PreprocessorConfig.from_gguf({key: value for key, (_, value) in p.to_gguf().items()}) == p
    assert p.to_gguf()["clip.mllama.preprocessor.rescale_factor"] == ("f64", 0.00392156862745098)


def test_preprocessor_as_transformers5_saves_it(preprocessor):
    new = {"image_processor": preprocessor, "processor_class": "MllamaProcessor"}
    assert PreprocessorConfig.from_hf_json(new) == PreprocessorConfig.from_hf_json(preprocessor)
    with pytest.raises(ConfigError, match="image_processor"):
        PreprocessorConfig.from_hf_json({"image_processor": 5})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_resize", False),
        ("do_normalize", False),
        ("size", {"height": 112, "width": 56}),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [1.0, 0.0, 1.0]),
        ("resample", 9),
    ],
)
def test_preprocessor_refusals(preprocessor, key, value):
    preprocessor[key] = value
    with pytest.raises(ConfigError, match=key):
        PreprocessorConfig.from_hf_json(preprocessor)


def test_preprocessor_missing_keys(preprocessor):
    del preprocessor["image_mean"], preprocessor["rescale_factor"], preprocessor["size"]["height"]
    del preprocessor["size"]["width"]
    with pytest.raises(ConfigError, match=r"height.*rescale_factor.*image_mean"):
        PreprocessorConfig.from_hf_json(preprocessor)


def test_preprocessor_from_an_mmproj_without_its_keys():
    with pytest.raises(FormatError, match=r"clip\.vision\.image_size.*clip\.vision\.image_std"):
        PreprocessorConfig.from_gguf({})


def test_aspect_ratios_of_four_tiles():
    assert aspect_ratios(4) == ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
