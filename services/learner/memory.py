"""Computes the GPU memory that training takes: `python -m services.learner.memory` prints the table
of `docs/how-to/several-gpus.md`, and with a model's folder that of one model.

It counts what grows with the model and the micro-batch, with gradient checkpointing and
FlexAttention, and takes every token of a micro-batch to be trained. CUDA's own memory, a reference
model (`algorithm.kl` with all weights) and fragmentation come on top. Importable without torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

GIB = 1 << 30

CARDS = (24, 48, 80, 139)
"""Memory of usual cards, in GiB."""

_MARGIN = 1.15
"""What a card should have of that, for CUDA, NCCL, fragmentation and the formula's own error."""

_STATE_BYTES = 16
"""Of a trained parameter: fp32 weight, gradient, and two moments of AdamW."""


class Shape(NamedTuple):
    """The dimensions of a dense decoder, as Hugging Face's config has them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool

    @property
    def parameters(self) -> int:
        """How many it has, norms left out."""
        return self.layers * self.layer_parameters + self.root_parameters

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        return sum(rows * columns for rows, columns in self._linears)

    @property
    def root_parameters(self) -> int:
        """Of embedding and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter_parameters(self, rank: int) -> int:
        """Of a LoRA adapter of all linear layers."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self._linears)

    @property
    def _linears(self) -> tuple[tuple[int, int], ...]:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return (
            *((self.hidden, queries), (queries, self.hidden)),
            *((self.hidden, keys), (self.hidden, keys)),
            *(((self.hidden, self.intermediate),) * 3),
        )


class Memory(NamedTuple):
    """Bytes on one GPU."""

    state: int
    """Weights, gradients and optimizer: its share of them."""
    gathered: int
    """What is gathered from the other GPUs to be computed with: two layers, embedding and head."""
    activations: int
    logits: int

    @property
    def gib(self) -> float:
        """All of it, in GiB."""
        return sum(self) / GIB


def activation_bytes(shape: Shape, tokens: int) -> int:
    """Of a micro-batch in bf16: the input of each layer, and one layer in its backward pass."""
    keys = shape.kv_heads * shape.head_size
    one_layer = 7 * shape.hidden + 2 * keys + 6 * shape.intermediate
    return 2 * tokens * (shape.layers * shape.hidden + one_layer)


def training_memory(
    shape: Shape, gpus: int, micro_batch_tokens: int, lora_rank: int | None = None
) -> Memory:
    """What a step takes on each of so many GPUs; with all weights, or with an adapter."""
    if lora_rank is None:
        state = _STATE_BYTES * shape.parameters
    else:
        state = 2 * shape.parameters + _STATE_BYTES * shape.adapter_parameters(lora_rank)
    # In bf16. An adapter on one GPU computes with the weights that it has.
    computed = 2 * (2 * shape.layer_parameters + shape.root_parameters)
    return Memory(
        state // gpus,
        0 if lora_rank is not None and gpus == 1 else computed,
        activation_bytes(shape, micro_batch_tokens),
        # In bf16, and their gradient.
        2 * 2 * micro_batch_tokens * shape.vocabulary,
    )


def shape_of(folder: Path) -> Shape:
    """The shape of a model, from its config.json. Raises OSError, and ValueError for a model that
    this does not know.
    """
    config = cast(
        "dict[str, Any]", msgspec.json.decode((folder / "config.json").read_bytes(), type=dict)
    )
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return Shape(
            hidden,
            int(config["intermediate_size"]),
            int(config["num_hidden_layers"]),
            heads,
            int(config.get("num_key_value_heads") or heads),
            int(config.get("head_dim") or hidden // heads),
            int(config["vocab_size"]),
            bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise ValueError(
            f"{folder / 'config.json'} has no {error}: memory is computed of dense decoders only"
        ) from error


MODELS = {
    "Qwen3-0.6B": Shape(1024, 3072, 28, 16, 8, 128, 151936, tied=True),
    "Qwen3-1.7B": Shape(2048, 6144, 28, 16, 8, 128, 151936, tied=True),
    "Qwen3-4B": Shape(2560, 9728, 36, 32, 8, 128, 151936, tied=True),
    "Qwen3-8B": Shape(4096, 12288, 36, 32, 8, 128, 151936, tied=False),
    "Qwen3-14B": Shape(5120, 17408, 40, 40, 8, 128, 151936, tied=False),
    "Qwen3-32B": Shape(5120, 25600, 64, 64, 8, 128, 151936, tied=False),
}


def table(models: Iterable[tuple[str, Shape]], tokens: int, rank: int) -> Iterable[str]:
    """Lines of Markdown: GiB on each GPU, and the smallest card that has them."""
    counts = (1, 2, 8)
    heads = [f"{count} GPU{'s' if count > 1 else ''}" for count in counts]
    columns = ["model", *(f"all weights, {head}" for head in heads)]
    columns += [f"adapter, {head}" for head in heads]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for name, shape in models:
        cells = [
            _cell(training_memory(shape, count, tokens, lora_rank))
            for lora_rank in (None, rank)
            for count in counts
        ]
        yield f"| {' | '.join([name, *cells])} |"


def _cell(memory: Memory) -> str:
    card = next((f"{card}" for card in CARDS if memory.gib * _MARGIN <= card), "none")
    return f"{memory.gib:.0f} ({card})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="*", help="folders with a config.json")
    parser.add_argument("--tokens", type=int, default=8192, help="engine.micro_batch_tokens")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapter")
    options: Any = parser.parse_args(arguments)
    models = [(folder.name, shape_of(folder)) for folder in options.model] or MODELS.items()
    sys.stdout.writelines(f"{line}\n" for line in table(models, options.tokens, options.rank))


if __name__ == "__main__":
    main()
