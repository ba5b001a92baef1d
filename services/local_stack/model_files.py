"""Write Hugging Face folders: of a converted GGUF file, and of a tiny random model.

Imports torch, so only the process of `model` imports this module.
"""

# transformers and tokenizers are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportArgumentType=false

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from services.local_stack.chat_format import PLAIN_CHATML

TINY_CONTEXT = 2048
_WRITTEN_BY_THE_MODEL = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Markers of Qwen2.5 that are part of a text, and stay in it when special tokens are left out."""
_END, _START, _STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def convert_smollm2(gguf: Path, target: Path) -> None:
    """Weights in bf16, tokenizer and chat template. What GGUF does not say is restored as SmolLM2
    was trained: every digit is a token of its own even after spaces, bytes decode as they were
    encoded, and a turn ends with <|im_end|>.
    """
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    raw: Tokenizer = tokenizer.backend_tokenizer
    digits, words = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    )
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    raw.decoder = decoders.ByteLevel()
    tokenizer.eos_token = tokenizer.pad_token = _STOP
    tokenizer.clean_up_tokenization_spaces = False
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def convert_qwen2(gguf: Path, target: Path) -> None:
    """The same for Qwen2.5. Head and embedding, one matrix once, are in the file twice, the head in
    a finer quantisation: it is both again. Markers of its chat format are whole tokens. Generation
    ends at the end of a turn or of the text.
    """
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.add_tokens(_markers(tokenizer))
    head = model.get_parameter("lm_head.weight")
    model.get_parameter("model.embed_tokens.weight").data.copy_(head.data)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (_STOP, _END)]
    model.config.eos_token_id = model.generation_config.eos_token_id = ends
    tokenizer.eos_token, tokenizer.pad_token = _STOP, _END
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _markers(tokenizer: PreTrainedTokenizerFast) -> list[AddedToken]:
    """Tokens that text is split at before all else, `<tool_call>` among them: all that follow the
    end of a turn in the vocabulary, up to its padding.
    """
    names = tokenizer.convert_ids_to_tokens(range(tokenizer.get_vocab()[_STOP] + 1, len(tokenizer)))
    markers = list(takewhile(lambda name: not name.startswith("[PAD"), names))
    return [
        AddedToken(name, special=name not in _WRITTEN_BY_THE_MODEL, normalized=False)
        for name in markers
    ]


def write_tiny(target: Path, *, tied: bool, seed: int) -> None:
    """Write a model of 0.3M parameters in 2 layers. It has a token per byte, so that it can read
    and write any text.
    """
    torch.manual_seed(seed)
    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TINY_CONTEXT,
        tie_word_embeddings=tied,
        # Wider than usual: the distributions of a model this small must not all be flat, or tests
        # compare nothing.
        initializer_range=0.15,
        bos_token_id=tokenizer.convert_tokens_to_ids(_START),
        eos_token_id=tokenizer.convert_tokens_to_ids(_STOP),
        pad_token_id=tokenizer.convert_tokens_to_ids(_END),
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(
        models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (_END, _START, _STOP)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=_START, eos_token=_STOP, pad_token=_END, unk_token=_END
    )
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.chat_template = PLAIN_CHATML
    return tokenizer
