"""Six tokenizers of the kinds that models have, made here; nothing is downloaded."""

from __future__ import annotations

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
BRACKETS = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TRIMS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["the answer is hello world", "The user asked: what is 17 * 3?", "hello\n\nhello  there, the assistant"] * 4
MARKERS = ["<pad>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _bpe(pre_tokenizer: pre_tokenizers.PreTokenizer, template: str) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=330, special_tokens=MARKERS, initial_alphabet=alphabet, show_progress=False, min_frequency=2
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<|im_end|>", chat_template=template
    )


def byte_level() -> PreTrainedTokenizerFast:
    return _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), CHATML)


def tiktoken_like() -> PreTrainedTokenizerFast:
    """Splits as GPT-4's does: at most three digits, newlines with the spaces before them."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    from tokenizers import Regex

    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return _bpe(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), CHATML
    )


def trimming() -> PreTrainedTokenizerFast:
    return _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), TRIMS)


def _sentencepiece(prefix: str) -> PreTrainedTokenizerFast:
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])}
    for letter in [*(chr(c) for c in range(33, 127)), "\u2581"]:
        vocabulary.setdefault(letter, len(vocabulary))
    merges: list[tuple[str, str]] = []
    for word in ("The", "Hello", "answer", "hi"):
        have = word[0]
        for letter in word[1:]:
            vocabulary.setdefault(have + letter, len(vocabulary))
            if (have, letter) not in merges:
                merges.append((have, letter))
            have += letter
        vocabulary.setdefault("\u2581" + word, len(vocabulary))
        merges.append(("\u2581", word))
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=prefix, split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ("<unk>", "<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template=ZEPHYR,
    )


def sentencepiece_with_space() -> PreTrainedTokenizerFast:
    return _sentencepiece("first")


def sentencepiece_without_space() -> PreTrainedTokenizerFast:
    return _sentencepiece("never")


def wordpiece_like() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.NFC(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    ids = made.get_vocab()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        chat_template=BRACKETS,
    )


KINDS = {
    function.__name__: functools.cache(function)
    for function in (
        byte_level,
        sentencepiece_with_space,
        sentencepiece_without_space,
        wordpiece_like,
        tiktoken_like,
        trimming,
    )
}
"""Name to a function that makes the tokenizer once."""
