"""Tiny detectors of torchvision and transformers with random weights, scaled so that boxes and scores differ."""

import functools
from pathlib import Path

import torch

from dimvl.regions.detectors.torchvision_ops import import_torchvision

CLASSES = ("bench", "cat", "dog", "kite", "sofa")
TORCHVISION = "fasterrcnn_tiny"
SIGMOID_FAMILIES = {"rt_detr": "RTDetr", "rt_detr_v2": "RTDetrV2", "d_fine": "DFine"}


@functools.cache
def register_torchvision() -> None:
    """Add a Faster R-CNN of a few thousand weights to the detectors that torchvision knows by name."""
    torchvision = import_torchvision()
    detection = torchvision.models.detection

    def fasterrcnn_tiny(weights=None, weights_backbone=None, num_classes=91, **kwargs):
        assert weights is weights_backbone is None
        layers = [torch.nn.Conv2d(3, 8, 3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2, 1), torch.nn.ReLU()]
        backbone = torch.nn.Sequential(*layers)
        backbone.out_channels = 8
        return detection.FasterRCNN(
            backbone,
            rpn_anchor_generator=detection.rpn.AnchorGenerator(((12, 24, 40),), ((0.5, 1.0, 2.0),)),
            box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2),
            box_head=detection.faster_rcnn.TwoMLPHead(8 * 9, 16),
            box_predictor=detection.faster_rcnn.FastRCNNPredictor(16, num_classes),
            **{"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_test": 60, **kwargs},
        )

    fasterrcnn_tiny.__module__ = "torchvision.models.detection.faster_rcnn"  # where torchvision searches for detectors
    torchvision.models._api.register_model(TORCHVISION)(fasterrcnn_tiny)


def torchvision_state(seed: int = 0, outputs: int = len(CLASSES) + 1) -> dict[str, torch.Tensor]:
    register_torchvision()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = import_torchvision().models.get_model_builder(TORCHVISION)(num_classes=outputs)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = state["roi_heads.box_predictor.cls_score.weight"]
    scores -= scores.mean(1, keepdim=True)  # a component common to all boxes would decide the class
    scores *= 4
    for name in ("backbone.0.weight", "backbone.2.weight", "roi_heads.box_head.fc6.weight"):
        state[name] *= 4
    return state


def torchvision_file(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Weights as `.pth` and the file of class names."""
    weights, names = folder / f"weights-{seed}.pth", folder / "names.txt"
    torch.save(torchvision_state(seed), weights)
    names.write_text("\n".join(CLASSES))
    return weights, names


def save_transformers(folder: Path, family: str, seed: int = 0) -> Path:
    """A folder as transformers saves detectors; family `detr` or one of `SIGMOID_FAMILIES`."""
    import_torchvision()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    small = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 2, "d_model": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    backbone = {"embedding_size": 8, "depths": [1, 1, 1, 1], "layer_type": "basic"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "detr":
            inner = transformers.ResNetConfig(**backbone, hidden_sizes=[8, 8, 8, 16], out_features=["stage4"])
            own = {"backbone_config": inner, "backbone": None, "use_timm_backbone": False, "num_queries": 14}
            config = transformers.DetrConfig(**labels, **small, **heads, **own)
            model = transformers.DetrForObjectDetection(config)
            processor = transformers.DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 100})
            score = model.class_labels_classifier
            with torch.no_grad():  # untrained queries are almost equal
                model.model.query_position_embeddings.weight.normal_(std=4)
                for name, weight in model.named_parameters():
                    if "decoder" in name and weight.ndim == 2:
                        weight.mul_(12)
                score.weight.normal_(std=0.5)
                for layer in model.bbox_predictor.layers:
                    layer.weight.normal_(std=0.5)
        else:
            stages = ["stage2", "stage3", "stage4"]
            inner = transformers.RTDetrResNetConfig(**backbone, hidden_sizes=[8, 8, 16, 16], out_features=stages)
            sizes = {"encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 16], "decoder_in_channels": [16, 16, 16]}
            name = SIGMOID_FAMILIES[family]
            config = getattr(transformers, f"{name}Config")(
                **labels, **small, **heads, **sizes, backbone_config=inner, num_queries=15, num_denoising=0
            )
            model = getattr(transformers, f"{name}ForObjectDetection")(config)
            processor = transformers.RTDetrImageProcessorPil(size={"height": 64, "width": 64})
            with torch.no_grad():
                for layer in model.model.decoder.class_embed:
                    layer.weight.mul_(1.5)
                    layer.bias.fill_(0)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
