"""WordPiece tokenizers: trained on the training texts, or read from a `tokenizer.json` of the Hugging Face hub."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from dimvl.data.tokenizer_file import read_tokenizer_file
from dimvl.errors import UserError
from dimvl.files import atomic_path, write_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"


class Tokenizer:
    """Text to token ids and back, without special tokens.

    Attributes:
        unknown: id of [UNK], which stands for a word that no tokens make up.
        cls: id of [CLS], which also starts a sequence-to-sequence text.
        sep: id of [SEP], which ends context and text.
        mask: id of [MASK].
        special_ids: ids of the special tokens.
        unwritten_ids: ids of the special tokens except [SEP], which texts never contain; ascending.
        ordinary_ids: all other ids; ascending.

    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        for token in SPECIAL:
            if inner.token_to_id(token) is None:
                raise UserError(f"the tokenizer has no {token} token; dimvl needs a BERT-style WordPiece")
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # "[MASK]" in a caption is an ordinary word
        self._inner = inner
        vocabulary = inner.get_vocab()
        self.unknown, self.cls, self.sep, self.mask = (vocabulary[token] for token in SPECIAL[1:])
        self.special_ids = frozenset(vocabulary[token] for token in SPECIAL)
        self.unwritten_ids = sorted(self.special_ids - {self.sep})
        self.ordinary_ids = np.setdiff1d(np.arange(len(vocabulary)), list(self.special_ids))
        self._continues = [token.startswith("##") for token in self.tokens()]

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "Tokenizer":
        """Train an uncased WordPiece of about `size` tokens, or more if the texts have more characters.

        The same texts in any order give the same tokenizer. The trainer alone would not: it numbers continuing letters
        in hash map order and breaks ties by number, so they are numbered here first.
        """
        texts = list(map(_well_formed, texts))
        normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
        words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
        letters = sorted({f"##{letter}" for word in words for letter in word[1:]})
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*SPECIAL, *letters], show_progress=False)
        learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        learner.normalizer, learner.pre_tokenizer = normalizer, splitter
        learner.train_from_iterator(texts, trainer)
        inner = tokenizers.Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
        inner.normalizer, inner.pre_tokenizer, inner.decoder = normalizer, splitter, decoders.WordPiece()
        inner.add_special_tokens(list(SPECIAL))
        return cls(inner)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`, or the one in a folder.

        Raises:
            UserError: it is missing, or not a tokenizer with BERT's special tokens; see `tokenizer_file.py`.

        """
        path = path / FILE if path.is_dir() else path
        values = read_tokenizer_file(path)
        try:
            inner = tokenizers.Tokenizer.from_str(json.dumps(values))
        except BaseException as error:  # also a panic of the library, which is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise UserError(
                f"{path} is not a tokenizer file that can be used ({error}); give another, or restore it"
            ) from None
        return cls(inner)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and the file that `transformers` needs to read it."""
        with atomic_path(folder / FILE) as temporary:
            temporary.write_text(self._inner.to_str(pretty=True), encoding="utf-8")
        names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
        write_json(folder / CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast", **names})

    def __len__(self) -> int:
        """Return the number of tokens V."""
        return self._inner.get_vocab_size()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the definition; equal fingerprints mean equal token ids."""
        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    def tokens(self) -> list[str]:
        """Return the tokens in id order."""
        return [token for token, _ in sorted(self._inner.get_vocab().items(), key=lambda item: item[1])]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without added special tokens."""
        return self._inner.encode(_well_formed(text), add_special_tokens=False).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts."""
        well_formed = list(map(_well_formed, texts))
        return [encoding.ids for encoding in self._inner.encode_batch(well_formed, add_special_tokens=False)]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self._inner.decode(list(token_ids), skip_special_tokens=True)

    def continues_word(self, token_id: int) -> bool:
        """Return whether a token continues the word before it."""
        return self._continues[token_id]


def _well_formed(text: str) -> str:
    """Replace lone surrogates, which JSON allows but which are not characters, by a question mark."""
    return text.encode("utf-8", "replace").decode()
