"""Inputs that the models of the zoo accept: random tokens, pixels and sound."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import PretrainedConfig, PreTrainedModel

from images import IMAGES

Inputs = dict[str, Tensor]

FIRST_WORD, LAST_WORD = 10, 200
"""Ids of ordinary tokens. Special tokens lie outside."""
BATCH, LENGTH = 8, 32
LENGTH_WITH_IMAGE = 48
SAMPLES = 6400
EDGE, PATCH = 16, 4
"""Pixels along an image and a patch."""


def words(generator: Generator, *shape: int) -> Tensor:
    """Random ids of ordinary tokens."""
    return torch.randint(FIRST_WORD, LAST_WORD, shape or (BATCH, LENGTH), generator=generator)


def noise(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, generator=generator)


def default_inputs(class_: type[PreTrainedModel], config: PretrainedConfig, generator: Generator) -> Inputs:
    """What the class's main input and its signature ask for."""
    if recipe := RECIPES.get(class_.__name__):
        return recipe(config, generator)
    accepted = inspect.signature(class_.forward).parameters
    name = class_.main_input_name
    if name == "input_ids":
        inputs = {name: words(generator)}
    elif name == "pixel_values":
        edge = find(config, "image_size", EDGE)
        inputs = {name: noise(generator, find(config, "num_channels", 3), edge, edge)}
    elif name == "input_features":
        frames = 2 * find(config, "max_source_positions", LENGTH)
        inputs = {name: noise(generator, find(config, "num_mel_bins", 8), frames)}
    elif name == "input_values":
        inputs = {name: noise(generator, SAMPLES)}
    else:
        raise NotImplementedError(f"no recipe for {name} of {class_.__name__}")
    if "decoder_input_ids" in accepted and (config.is_encoder_decoder or name != "input_ids"):
        inputs["decoder_input_ids"] = words(generator)
    elif "input_ids" in accepted and name != "input_ids":
        inputs["input_ids"] = words(generator)
    return inputs


def image_inputs(class_: type[PreTrainedModel], config: PretrainedConfig, generator: Generator) -> Inputs:
    """Text with one image in each sequence, in the layout that `IMAGES` names for the class."""
    layout, tokens = IMAGES[class_.__name__]
    return LAYOUTS[layout](config, generator, tokens)


def find(config: PretrainedConfig, name: str, default: Any = None) -> Any:
    """The first integer of this name in the configuration or its sub-configurations."""
    for part in parts(config):
        if isinstance(value := vars(part).get(name), int):
            return value
    return default


def parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The configuration and its sub-configurations."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from parts(value)


def _with_image(config: PretrainedConfig, generator: Generator, tokens: int) -> Inputs:
    """Words, among which `tokens` stand for the image."""
    ids = words(generator, BATCH, LENGTH_WITH_IMAGE)
    names = ("image_token_id", "image_token_index", "image_patch_id")
    ids[:, 2 : 2 + tokens] = next((token for name in names if (token := find(config, name)) is not None), 0)
    return {"input_ids": ids}


def _flat(config: PretrainedConfig, generator: Generator, tokens: int) -> Inputs:
    edge = _edge(config)
    return _with_image(config, generator, tokens) | {"pixel_values": noise(generator, 3, edge, edge)}


def _edge(config: PretrainedConfig) -> int:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", EDGE)
    return size if isinstance(size, int) else size[0] if size else EDGE


def _sized(config: PretrainedConfig, generator: Generator, tokens: int) -> Inputs:
    inputs = _flat(config, generator, tokens)
    edge = inputs["pixel_values"].shape[-1]
    return inputs | {"image_sizes": torch.tensor([[edge, edge]] * BATCH)}


def _crops(config: PretrainedConfig, generator: Generator, tokens: int) -> Inputs:
    inputs = _flat(config, generator, tokens)
    return inputs | {"pixel_values": inputs["pixel_values"][:, None]}


def _sized_crops(config: PretrainedConfig, generator: Generator, tokens: int) -> Inputs:
    inputs = _sized(config, generator, tokens)
    two = torch.stack([inputs["pixel_values"], inputs["pixel_values"].flip(-1)], 1)
    return inputs | {"pixel_values": two}


def _patches(config: PretrainedConfig, generator: Generator, tokens: int) -> Inputs:
    vision = config.vision_config
    size = getattr(vision, "patch_size", PATCH)
    temporal = getattr(vision, "temporal_patch_size", None) or 1
    pixels = torch.randn(BATCH * 16, 3 * temporal * size * size, generator=generator)
    return _with_image(config, generator, tokens) | {
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 4]] * BATCH),
    }


def _typed_patches(config: PretrainedConfig, generator: Generator, tokens: int) -> Inputs:
    inputs = _patches(config, generator, tokens)
    types = torch.zeros_like(inputs["input_ids"])
    types[:, 2 : 2 + tokens] = 1
    return inputs | {"mm_token_type_ids": types}


LAYOUTS: dict[str, Callable[[PretrainedConfig, Generator, int], Inputs]] = {
    "flat": _flat,  # [n, 3, h, w]
    "sized": _sized,  # with image_sizes
    "crops": _crops,  # [n, 1, 3, h, w]
    "sized crops": _sized_crops,  # [n, 2, 3, h, w] with image_sizes
    "patches": _patches,  # [all patches, values] with image_grid_thw
    "typed patches": _typed_patches,  # with mm_token_type_ids as well
}


def _bare_pixels(config: PretrainedConfig, generator: Generator, *more: str) -> Inputs:
    edge = _edge(config)
    return {"pixel_values": noise(generator, 3, edge, edge), **{name: words(generator) for name in more}}


def _instruct_blip(config: PretrainedConfig, generator: Generator) -> Inputs:
    inputs = _with_image(config, generator, find(config, "num_query_tokens", 8))
    return inputs | _bare_pixels(config, generator, "qformer_input_ids")


def _instruct_blip_video(config: PretrainedConfig, generator: Generator) -> Inputs:
    inputs = _instruct_blip(config, generator)
    inputs["input_ids"][:, 2 : 2 + config.num_query_tokens] = config.video_token_id
    return inputs | {"pixel_values": inputs["pixel_values"][:, None]}


def _idefics(config: PretrainedConfig, generator: Generator) -> Inputs:
    return {
        "input_ids": words(generator),
        "pixel_values": _bare_pixels(config, generator)["pixel_values"][:, None],
        "image_attention_mask": torch.ones(BATCH, LENGTH, 1, dtype=torch.long),
    }


def _kosmos(config: PretrainedConfig, generator: Generator) -> Inputs:
    place = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    place[:, 2 : 2 + config.latent_query_num] = 1
    return _bare_pixels(config, generator, "input_ids") | {"image_embeds_position_mask": place}


def _pix2struct(config: PretrainedConfig, generator: Generator) -> Inputs:
    values = config.vision_config.patch_embed_hidden_size
    places = torch.arange(16).view(16, 1) // torch.tensor([4, 1]) % 4 + 1
    patches = torch.cat([places.expand(BATCH, -1, -1).float(), noise(generator, 16, values)], -1)
    return {"flattened_patches": patches, "decoder_input_ids": words(generator)}


def _udop(config: PretrainedConfig, generator: Generator) -> Inputs:
    del config
    corners = torch.rand(BATCH, LENGTH, 4, generator=generator).sort(-1).values
    return {"input_ids": words(generator), "bbox": corners, "decoder_input_ids": words(generator)}


def _frames(mels: str) -> Callable[[PretrainedConfig, Generator], Inputs]:
    """Sound as `[n, frames, mels]`."""

    def recipe(config: PretrainedConfig, generator: Generator) -> Inputs:
        features = noise(generator, 2 * LENGTH, find(config, mels, 8))
        return {"input_features": features, "decoder_input_ids": words(generator)}

    return recipe


def _dia(config: PretrainedConfig, generator: Generator) -> Inputs:
    codes = words(generator, BATCH, LENGTH, len(config.delay_pattern))
    return {"input_ids": words(generator), "decoder_input_ids": codes}


def _kyutai(config: PretrainedConfig, generator: Generator) -> Inputs:
    return {"input_ids": words(generator, BATCH, LENGTH, config.num_codebooks + 1)}


def _voxtral(config: PretrainedConfig, generator: Generator) -> Inputs:
    del config
    return {"input_ids": words(generator), "input_features": noise(generator, 8, 8 * LENGTH)}


def _pair(config: PretrainedConfig, generator: Generator) -> Inputs:
    """Texts and images, each for itself."""
    return _bare_pixels(config, generator, "input_ids")


def _ending(config: PretrainedConfig, generator: Generator) -> Inputs:
    """Sequences that end with EOS, which these classes classify by."""
    ids = words(generator)
    ids[:, -1] = config.eos_token_id
    return {"input_ids": ids}


RECIPES: dict[str, Callable[[PretrainedConfig, Generator], Inputs]] = {
    "Blip2ForConditionalGeneration": lambda config, generator: (
        _with_image(config, generator, find(config, "num_query_tokens", 8)) | _bare_pixels(config, generator)
    ),
    "InstructBlipForConditionalGeneration": _instruct_blip,
    "InstructBlipVideoForConditionalGeneration": _instruct_blip_video,
    "IdeficsForVisionText2Text": _idefics,
    "Kosmos2ForConditionalGeneration": _kosmos,
    "Pix2StructForConditionalGeneration": _pix2struct,
    "UdopForConditionalGeneration": _udop,
    "CanaryForConditionalGeneration": _frames("num_mel_bins"),
    "CohereAsrForConditionalGeneration": _frames("num_mel_bins"),
    "SeamlessM4TForSpeechToText": _frames("feature_projection_input_dim"),
    "SeamlessM4Tv2ForSpeechToText": _frames("feature_projection_input_dim"),
    "Speech2TextForConditionalGeneration": _frames("input_feat_per_channel"),
    "KyutaiSpeechToTextForConditionalGeneration": _kyutai,
    "DiaForConditionalGeneration": _dia,
    "VoxtralRealtimeForConditionalGeneration": _voxtral,
    "SpeechEncoderDecoderModel": lambda config, generator: {
        "inputs": noise(generator, SAMPLES),
        "decoder_input_ids": words(generator),
    },
    "PerceiverForMaskedLM": lambda config, generator: {"inputs": words(generator)},
    **dict.fromkeys(("BartForSequenceClassification", "T5ForSequenceClassification"), _ending),
    **dict.fromkeys(("CLIPModel", "SiglipModel", "CLIPSegModel", "AltCLIPModel", "ChineseCLIPModel"), _pair),
}
"""Of classes that need more, or something else, than their main input."""
