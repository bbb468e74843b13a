"""Models of transformers that caption or answer from an image file, for `benchmarks/pixels.py`.

Weights are random; configurations are those of the published checkpoints, written out here because nothing is
downloaded. Each has the image processor of its checkpoint at its default resolution. Prompts are token ids of the
length that its processor makes, so no tokenizer is timed; ours tokenises. Attention is torch's kernel where the model
has it (Florence-2, SmolVLM), which is the faster; BLIP and ViLT have eager attention only.

Captions have exactly `WORDS` tokens (the end token is suppressed until then) and come from `BEAMS` beams. ViLT
classifies 3,129 answers; BLIP generates an answer greedily, of the two tokens that one word and the end token take.

Letters: B images.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dimvl.regions.detectors.torchvision_ops import import_torchvision

BEAMS, WORDS, ANSWERS, QUESTION = 3, 16, 3129, 11
FLORENCE_IMAGE, FLORENCE_VOCABULARY = 51289, 51328
SMOLVLM_IMAGE, SMOLVLM_VOCABULARY, SMOLVLM_TILE = 49190, 49280, 512
SMOLVLM_MARKS = 3  # tokens around the 64 of a tile: its place, a mark and a line break

Peer = Callable[[Sequence[Path]], Tensor]
"""Image files to token ids or answers, (B, any)."""


def images_of(files: Sequence[Path]) -> list[Image.Image]:
    """Decode image files."""
    return [Image.open(file).convert("RGB") for file in files]


def prompt(images: int, length: int, *, start: int = 101, end: int = 102) -> Tensor:
    """Make token ids of a text of any words: (B, length)."""
    words = torch.arange(1000, 1000 + length - 2)
    return torch.cat([torch.tensor([start]), words, torch.tensor([end])]).repeat(images, 1)


def generation(tokens: int, beams: int) -> dict[str, Any]:
    """Return the options of `generate` for exactly so many new tokens."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "num_beams": beams, "do_sample": False}


def blip(small: bool, answers: bool) -> Peer:
    """BLIP-base (Li et al., ICML 2022), captioning or answering; eager attention is all that transformers has."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipForQuestionAnswering, BlipImageProcessor

    text: dict[str, Any] = {"num_attention_heads": 12, "eos_token_id": 102, "bos_token_id": 30522}
    vision: dict[str, Any] = {}
    if small:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        text |= {**shape, "encoder_hidden_size": 32}
        vision |= {**shape, "image_size": 64}
    config = BlipConfig(text_config=text, vision_config=vision)
    model = (BlipForQuestionAnswering if answers else BlipForConditionalGeneration)(config).eval()
    side = model.config.vision_config.image_size
    processor = BlipImageProcessor(size={"height": side, "width": side})
    options = generation(2, 1) if answers else generation(WORDS, BEAMS)

    def run(files: Sequence[Path]) -> Tensor:
        pixels = processor(images_of(files), return_tensors="pt")["pixel_values"]
        question = {"input_ids": prompt(len(files), QUESTION)} if answers else {}
        ids: Tensor = model.generate(pixel_values=pixels, **question, **options)
        return ids[:, 1:]  # without the start token

    return run


def vilt(small: bool) -> Peer:
    """ViLT-B/32 (Kim et al., ICML 2021) with its head for VQA; eager attention is all that transformers has."""
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViltForQuestionAnswering(ViltConfig(num_labels=ANSWERS, **(shape if small else {}))).eval()
    processor = ViltImageProcessor()

    def run(files: Sequence[Path]) -> Tensor:
        inputs = processor(images_of(files), return_tensors="pt")
        answers: Tensor = model(input_ids=prompt(len(files), QUESTION), **inputs).logits.argmax(-1, keepdim=True)
        return answers

    return run


def florence(small: bool) -> Peer:
    """Florence-2-base (Xiao et al., CVPR 2024), captioning."""
    from transformers import CLIPImageProcessor, Florence2Config, Florence2ForConditionalGeneration

    sides = {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "encoder_layers": 6, "decoder_layers": 6}
    text: dict[str, Any] = {"model_type": "bart", "vocab_size": FLORENCE_VOCABULARY, "d_model": 768, **sides}
    text |= {"encoder_attention_heads": 12, "decoder_attention_heads": 12, "max_position_embeddings": 1024}
    vision: dict[str, Any] = {"projection_dim": 768}
    if small:
        text |= {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
        text |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        vision = {"projection_dim": 32, "embed_dim": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
        vision |= {"num_groups": (1, 2, 2, 2)}
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=FLORENCE_IMAGE)
    model = Florence2ForConditionalGeneration(config).eval()
    side = 192 if small else 768
    processor = CLIPImageProcessor(size={"height": side, "width": side}, do_center_crop=False)
    rows = (side // 32) ** 2 + 1

    def run(files: Sequence[Path]) -> Tensor:
        pixels = processor(images_of(files), return_tensors="pt")["pixel_values"]
        images = torch.full((len(files), rows), FLORENCE_IMAGE)
        ids = torch.cat([images, prompt(len(files), 9, start=0, end=2)], dim=1)
        found: Tensor = model.generate(input_ids=ids, pixel_values=pixels, **generation(WORDS, BEAMS))
        return found[:, 1:]  # without the start token

    return run


def smolvlm(small: bool) -> Peer:
    """SmolVLM-256M (Marafioti et al., 2025), captioning; the image is scaled to 2,048 pixels and cut into tiles."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor

    text: dict[str, Any] = {"model_type": "llama", "vocab_size": SMOLVLM_VOCABULARY, "hidden_size": 576}
    text |= {"intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    text |= {"head_dim": 64, "max_position_embeddings": 8192, "eos_token_id": 2, "pad_token_id": 2, "bos_token_id": 1}
    vision = {"hidden_size": 768, "num_attention_heads": 12, "image_size": SMOLVLM_TILE, "patch_size": 16}
    if small:
        text |= {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
        vision |= {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}
    shape = {"scale_factor": 4, "image_token_id": SMOLVLM_IMAGE, "tie_word_embeddings": True}
    config = SmolVLMConfig(text_config=text, vision_config=vision, **shape)
    model = SmolVLMForConditionalGeneration(config).eval()
    processor = SmolVLMImageProcessor(
        size={"longest_edge": SMOLVLM_TILE if small else 4 * SMOLVLM_TILE},
        max_image_size={"longest_edge": SMOLVLM_TILE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    tile = torch.cat([torch.full((64,), SMOLVLM_IMAGE), torch.arange(SMOLVLM_MARKS) + 1000])

    def run(files: Sequence[Path]) -> Tensor:
        inputs = processor([[image] for image in images_of(files)], return_tensors="pt")
        tiles = tile.repeat(len(files), inputs["pixel_values"].shape[1])
        ids = torch.cat([tiles, prompt(len(files), 20, start=1, end=3)], dim=1)
        found: Tensor = model.generate(input_ids=ids, **inputs, **generation(WORDS, BEAMS))
        return found[:, ids.shape[1] :]

    return run


CAPTIONS: dict[str, Callable[[bool], Peer]] = {
    "BLIP-base": partial(blip, answers=False),
    "Florence-2-base": florence,
    "SmolVLM-256M": smolvlm,
}
VQA: dict[str, Callable[[bool], Peer]] = {"BLIP-base VQA": partial(blip, answers=True), "ViLT-B/32 VQA": vilt}


def make(name: str, small: bool) -> Peer:
    """Make a model with seeded random weights."""
    import_torchvision()  # image processors of transformers import it
    torch.manual_seed(0)
    return (CAPTIONS | VQA)[name](small)
