"""Tiny open-vocabulary detectors of transformers with random weights, as `save_pretrained` writes them."""

from pathlib import Path

import torch

from dimvl.regions.detectors.torchvision_ops import import_torchvision

NAMES = ("bench", "cat", "dog", "kite", "red sofa")
FAMILIES = ("owlv2", "owlvit", "grounding-dino", "mm-grounding-dino")
WORDS = ("bench", "cat", "dog", "kite", "red", "sofa", "a", "photo", "of", "bird", "blue", "tree")


def clip_tokenizer(words=WORDS):
    """Byte pairs whose merges make each of these words one token; the end token has the highest id."""
    import transformers

    letters = [chr(code) for code in range(33, 127)]
    merges, tokens = [], [*letters, *(f"{letter}</w>" for letter in letters)]
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (pair := (parts[0], parts[1])) not in merges:
                merges.append(pair)
            parts[:2] = ["".join(parts[:2])]
            if parts[0] not in tokens:
                tokens.append(parts[0])
    vocab = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges)


def bert_tokenizer():
    """Word pieces with the special tokens at the ids that Grounding DINO expects: those of BERT."""
    import transformers

    tokens = [f"[unused{number}]" for number in range(1040)]
    for number, token in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: "."}.items():
        tokens[number] = token
    tokens[1029] = "?"
    tokens[200 : 200 + len(WORDS)] = WORDS
    return transformers.BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


def save_open_vocabulary(folder: Path, family: str, seed: int = 0, max_text_len: int = 32) -> Path:
    """Write a detector of one of `FAMILIES`."""
    import_torchvision()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor, tokenizer = _owl(family) if family.startswith("owl") else _grounding(family, max_text_len)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _owl(family):
    import transformers

    prefix = {"owlv2": "Owlv2", "owlvit": "OwlViT"}[family]
    tokenizer = clip_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "pad_token_id": end, "bos_token_id": end - 1, "eos_token_id": end}
    text = {**small, **ids, "max_position_embeddings": 12}
    vision = {**small, "image_size": 48, "patch_size": 8}
    config = getattr(transformers, f"{prefix}Config")(text_config=text, vision_config=vision, projection_dim=16)
    model = getattr(transformers, f"{prefix}ForObjectDetection")(config)
    with torch.no_grad():  # untrained patches and texts are almost equal
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(0.5 if "box_head" in name else 8)
        getattr(model, family).text_model.embeddings.token_embedding.weight.mul_(4)
        model.class_head.logit_scale.weight.mul_(0.05)
        model.class_head.logit_shift.weight.mul_(0.02)
    processor = getattr(transformers, f"{prefix}ImageProcessorPil")(size={"height": 48, "width": 48})
    return model, processor, tokenizer


def _grounding(family, max_text_len):
    import transformers

    prefix = {"grounding-dino": "GroundingDino", "mm-grounding-dino": "MMGroundingDino"}[family]
    tokenizer = bert_tokenizer()
    swin = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=4, image_size=64, out_indices=[1, 2, 3]
    )
    text = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    config = getattr(transformers, f"{prefix}Config")(
        backbone_config=swin,
        text_config=text,
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        max_text_len=max_text_len,
    )
    model = getattr(transformers, f"{prefix}ForObjectDetection")(config)
    with torch.no_grad():
        model.model.query_position_embeddings.weight.normal_(std=2)
        for layer in model.bbox_embed[-1].layers:
            layer.weight.normal_(std=0.25)
        for head in model.class_embed:
            if hasattr(head, "bias"):
                head.bias.zero_()
    processor = transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 100})
    return model, processor, tokenizer
