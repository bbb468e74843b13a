"""Names by a text tower: the scores of the library for what the image tower pools, and names that belong together."""

import json

import numpy as np
import pytest
import torch

from dimvl.errors import UserError
from dimvl.regions.backbones.load import load_backbone
from dimvl.regions.detectors.torchvision_ops import import_torchvision
from dimvl.regions.extractors.composed import ComposedExtractor
from dimvl.regions.extractors.grid import Grid
from dimvl.regions.naming.load import load_namer
from dimvl.regions.naming.text_tower import TextNamer
from dimvl.regions.store import RegionStore
from tests.cli.calls import call, refused
from tests.regions.detectors.test_library_models import random_images
from tests.regions.detectors.tiny_open_vocabulary import clip_tokenizer

NAMES = ("bench", "cat", "dog", "kite", "red sofa", "blue bird", "tree")
FAMILIES = ("clip", "siglip")


def save_towers(folder, family, seed=0, image_size=32, patch_size=8):
    """A CLIP or SigLIP of a few thousand weights, as `save_pretrained` writes it."""
    import_torchvision()
    import transformers

    tokenizer = clip_tokenizer()
    end = tokenizer.eos_token_id
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": end, "bos_token_id": end - 1, "eos_token_id": end}
    text = {**small, **ids, "max_position_embeddings": 16, "projection_size": 16}
    vision = {**small, "image_size": image_size, "patch_size": patch_size}
    prefix = {"clip": "CLIP", "siglip": "Siglip"}[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, f"{prefix}Config")(text_config=text, vision_config=vision, projection_dim=12)
        model = getattr(transformers, f"{prefix}Model")(config)
        with torch.no_grad():  # untrained states are almost equal; biases of 0 would test nothing
            for name, weight in model.named_parameters():
                if weight.ndim > 1:
                    weight.mul_(4)
                elif "head" in name or "post_layernorm" in name:
                    weight.add_(torch.randn_like(weight) * 0.3)
            model.logit_scale.fill_(1.5)
    model.eval().save_pretrained(folder)
    getattr(transformers, f"{prefix}ImageProcessorPil")(
        size={"height": image_size, "width": image_size}, do_center_crop=False
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("towers")
    for family in FAMILIES:
        save_towers(place / family, family)
    return place


@pytest.fixture(scope="module", params=FAMILIES)
def namer(request, folders):
    return TextNamer.create(folders / request.param, NAMES)


def library_scores(folder, prompt, image):
    """Scores (K,) of the names for a whole image by the library alone, and the states of its tokens."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = tokenizer(
        [prompt.format(name) for name in NAMES], padding="max_length", max_length=16, return_tensors="pt"
    )
    pixels = processor(images=image, return_tensors="pt")
    mask = {"attention_mask": inputs["attention_mask"]} if model.config.model_type == "clip" else {}
    with torch.inference_mode():
        logits = model(input_ids=inputs["input_ids"], **mask, **pixels).logits_per_image[0]
        states = model.vision_model(**pixels).last_hidden_state[0]
    return logits.softmax(-1) if mask else logits.sigmoid(), states


def best(scores):
    return scores.topk(5)


def test_the_class_token_of_clip_gets_the_scores_of_the_library(folders):
    (image,) = random_images((32, 32))
    namer = TextNamer.create(folders / "clip", NAMES)
    scores, states = library_scores(folders / "clip", "a photo of a {}.", image)
    ids, found = namer.name(states[:1])
    assert scores.max() < 0.9, "scores that are almost 0 and 1 would test little"
    torch.testing.assert_close(found[0], best(scores).values, atol=1e-5, rtol=1e-4)
    assert ids[0].tolist() == best(scores).indices.tolist()


def test_an_image_of_one_patch_gets_siglips_scores_of_the_library(tmp_path):
    """With one patch to attend to, the library's pooling head is what we compute for a region."""
    folder = save_towers(tmp_path / "one", "siglip", image_size=8, patch_size=8)
    (image,) = random_images((8, 8))
    scores, states = library_scores(folder, "this is a photo of {}.", image)
    assert len(states) == 1
    ids, found = TextNamer.create(folder, NAMES).name(states)
    torch.testing.assert_close(found[0], best(scores).values, atol=1e-5, rtol=1e-4)
    assert ids[0].tolist() == best(scores).indices.tolist() and 0.01 < float(scores.min()) < float(scores.max()) < 0.99


def test_names_of_a_region_do_not_depend_on_other_regions(namer):
    features = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    ids, scores = namer.name(features)
    assert ids.shape == scores.shape == (6, 5) and scores.dtype == torch.float32
    assert (scores[:, :-1] >= scores[:, 1:]).all() and len({tuple(row) for row in ids.tolist()}) > 1
    for row in range(6):
        alone = namer.name(features[row : row + 1])
        assert alone[0][0].tolist() == ids[row].tolist()
        torch.testing.assert_close(alone[1][0], scores[row])
    assert [part.shape for part in namer.name(features[:0])] == [(0, 5), (0, 5)]


def test_saved_and_loaded_it_names_alike_without_a_text_tower(namer, tmp_path):
    namer.save(tmp_path / "called")
    assert {file.name for file in (tmp_path / "called").iterdir()} == {"called.json", "names.safetensors"}
    loaded = load_namer(tmp_path / "called")
    assert (loaded.names, loaded.fingerprint) == (namer.names, namer.fingerprint)
    features = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(*pair) for pair in zip(namer.name(features), loaded.name(features), strict=True))
    file = tmp_path / "called" / "called.json"
    content = file.read_text()
    file.write_text(content.replace('"kite"', '"cake"'))
    with pytest.raises(UserError, match="copy the folder again"):
        load_namer(tmp_path / "called")
    file.write_text(content)
    weights = tmp_path / "called" / "names.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-3] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(UserError, match=r"names.safetensors is damaged, or does not belong to called.json; copy"):
        load_namer(tmp_path / "called")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_follows_weights_names_and_prompt(family, folders, tmp_path, monkeypatch):
    prints = {TextNamer.create(folders / family, names).fingerprint for names in (NAMES, NAMES[::-1], NAMES[:5])}
    assert TextNamer.create(folders / family, NAMES).fingerprint in prints
    prints.add(TextNamer.create(save_towers(tmp_path / family, family, seed=1), NAMES).fingerprint)
    monkeypatch.setattr("dimvl.regions.naming.text_tower.PROMPTS", {family: "{}"})
    assert len({*prints, TextNamer.create(folders / family, NAMES).fingerprint}) == 5


def test_a_grid_of_the_same_model_gets_names_as_classes_and_another_model_is_refused(namer, folders, tmp_path):
    backbone = load_backbone(str(folders / namer.family))
    whole = ComposedExtractor(Grid(cells=2), backbone, namer)
    assert whole.extractor.classes == NAMES
    (found,) = whole.detect(random_images((50, 40)))
    assert found.class_ids.shape == (5, 5) and len({tuple(row) for row in found.class_scores.tolist()}) > 1
    (tmp_path / "saved").mkdir()
    whole.save(tmp_path / "saved")
    again = ComposedExtractor.load(tmp_path / "saved")
    assert again.extractor == whole.extractor
    np.testing.assert_array_equal(again.detect(random_images((50, 40)))[0].class_scores, found.class_scores)
    other = load_backbone(str(save_towers(tmp_path / "other", namer.family, seed=1)))
    message = rf"{namer.tower} does not belong to the model of these features \(grid, .*other.*give {namer.tower}"
    with pytest.raises(UserError, match=message):
        ComposedExtractor(Grid(cells=2), other, namer)


def test_a_model_without_a_text_tower_or_with_missing_weights_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"bert is of the family bert; use one of clip, siglip"):
        TextNamer.create(tmp_path / "bert", NAMES)
    with pytest.raises(UserError, match=r"text tower nobody/nothing cannot be loaded by transformers"):
        TextNamer.create("nobody/nothing", NAMES)
    import safetensors.torch

    folder = save_towers(tmp_path / "part", "clip")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("text_projection")}
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the weights of CLIPModel, such as text_projection.weight; use a"):
        TextNamer.create(folder, NAMES)


def test_the_command_names_a_grid_and_says_what_is_missing(folders, tmp_path, monkeypatch, capfd):
    (tmp_path / "photos").mkdir()
    random_images((50, 40))[0].save(tmp_path / "photos" / "1.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    names, clip = ("--vocabulary", tmp_path / "names.txt"), folders / "clip"
    asked = ("extract", tmp_path / "photos", tmp_path / "store", "--where", "grid", "--features", clip)
    refused(call(monkeypatch, capfd, *asked, "--names-by", clip), "give a file of names as --vocabulary")
    refused(call(monkeypatch, capfd, *asked, *names), "grid takes no vocabulary; omit --vocabulary, or give")
    refused(call(monkeypatch, capfd, *asked, *names, "--names-by", "nowhere"), "text tower nowhere does not exist")
    refused(call(monkeypatch, capfd, *asked, *names, "--names-by", folders / "siglip"), "siglip does not belong to")
    assert not (tmp_path / "store").exists()
    assert call(monkeypatch, capfd, *asked, *names, "--names-by", clip).code == 0
    store = RegionStore(tmp_path / "store")
    assert store.extractor.classes == NAMES and store.extractor.recipe["names_by"] == str(clip)
    assert store.read(0).class_ids.shape == (50, 5)
