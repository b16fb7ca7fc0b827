"""A small byte-level BPE tokenizer in Llama 3's form: tokenizer.json, tokenizer_config.json, chat template.

Built without the `tokenizers` package: 256 byte tokens, then merges learned from the paragraph below, then the special
tokens in the order of Llama 3.2 Vision's own file, `<|image|>` last, one past the end of lm_head.
"""

import functools
import itertools
from collections import Counter
from typing import Any

N_BYTES = 256
CORPUS = """
A picture of a red square next to a blue circle. How many shapes are there? There are three shapes in the image: a
green triangle, a yellow star and a small ring. What colour is the largest one? The largest shape is the square, and
it is red. Describe the photograph in one sentence, please. The quick brown fox jumps over the lazy dog; 0123456789.
On the left side somebody wrote hello with a black pencil, while another person was reading yesterday's newspaper
under the bright evening light. Behind them you can see mountains, water, five white birds and an orange house.
Which animal stands between both trees? Count every window, then compare your answer with mine: seven, eight, twelve
or twenty? Thank you very much!
"""
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
NAMED_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
N_SPECIALS = 16  # 256 in the real file
IMAGE_TOKEN = "<|image|>"
CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif part['type'] == 'text' %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's table), by byte value."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(b) if b in printable else chr(next(others)) for b in range(N_BYTES))


@functools.cache
def learned_merges(n: int) -> tuple[tuple[str, str], ...]:
    """The n most frequent pairs of the corpus, merged one after the other; ties go to the smaller pair."""
    table = byte_characters()
    words = [[table[b] for b in (" " * (i > 0) + w).encode()] for i, w in enumerate(CORPUS.split())]
    merges: list[tuple[str, str]] = []
    while len(merges) < n:
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return tuple(merges)


def specials(vocab_size: int) -> dict[str, int]:
    """Text of each special token -> its id, for a vocabulary of vocab_size (lm_head's rows)."""
    n_reserved = N_SPECIALS - len(NAMED_SPECIALS)
    names = [*NAMED_SPECIALS, *(f"<|reserved_special_token_{i}|>" for i in range(3, 3 + n_reserved))]
    return {name: vocab_size - N_SPECIALS + i for i, name in enumerate(names)} | {IMAGE_TOKEN: vocab_size}


def _added(token: str) -> dict[str, Any]:
    return {
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def tokenizer_files(vocab_size: int) -> dict[str, Any]:
    """File name -> JSON value of all tokenizer files of a checkpoint."""
    n_base = vocab_size - N_SPECIALS
    if n_base < N_BYTES:
        raise ValueError(f"a vocabulary of {vocab_size} has no room for {N_BYTES} bytes and {N_SPECIALS} specials")
    merges = learned_merges(n_base - N_BYTES)
    vocab = {c: i for i, c in enumerate(sorted(byte_characters()))}
    for pair in merges:
        vocab["".join(pair)] = len(vocab)
    ids = specials(vocab_size)
    bos = "<|begin_of_text|>"
    bos_piece = {"SpecialToken": {"id": bos, "type_id": 0}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    template = {
        "type": "TemplateProcessing",
        "single": [bos_piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            bos_piece,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
    }
    named = {"bos_token": bos, "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i} | _added(token) for token, i in ids.items()],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [split, byte_level | {"add_prefix_space": False, "use_regex": False}],
            },
            "post_processor": {"type": "Sequence", "processors": [byte_level | {"trim_offsets": False}, template]},
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": True,
                "vocab": vocab,
                "merges": [list(pair) for pair in merges],
            },
        },
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(i): _added(token) for token, i in ids.items()},
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 131072,
            "processor_class": "MllamaProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        | named,
        "special_tokens_map.json": named,
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }
