"""Write Hugging Face folders: of a converted GGUF file, and of a tiny random model.

Imports torch, so only the process of `model` imports this module.
"""

# transformers and tokenizers are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportArgumentType=false

from __future__ import annotations

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
_END, _START, _STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def convert_gguf(gguf: Path, target: Path) -> None:
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
