"""Train a byte-level BPE tokenizer on the text columns of JSON-lines files.

usage: python tokenizer.py FOLDER VOCABULARY FILE [FILE …]
"""

import gzip
import json
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def texts(paths):
    for path in paths:
        with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
            for line in file:
                yield from (value for value in json.loads(line).values() if isinstance(value, str))


folder, size, *files = sys.argv[1:]
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
special = ["<pad>", "<eos>"]
bpe.train_from_iterator(
    texts(files), trainers.BpeTrainer(vocab_size=int(size), special_tokens=special, initial_alphabet=alphabet)
)
PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
