"""A decoder of one's own on `lrk.nn`, with no transformers: `python -m examples.plain_pytorch`.

Two documents lie in each row, and each is a line of random tokens twice: a model that looks back
learns to quote. Positions skip, so that a document of 24 tokens reaches over 1,024. They turn RoPE
and nothing else; documents are told by `cu_seqlens`, and none sees another.
"""

import argparse

import torch
from torch import Generator, Tensor, nn

from lrk import positions
from lrk.nn import Attention, LinearCrossEntropyLoss, RotaryEmbedding

VOCABULARY, WIDTH, HEADS, KEY_HEADS, LAYERS = 64, 64, 4, 2, 2
LINE, WINDOW, BATCH = 12, 1024, 16
DOCUMENTS, TOKENS = 2, 4 * LINE


class Layer(nn.Module):
    """Attention and an MLP, each with a norm before it."""

    def __init__(self) -> None:
        super().__init__()
        head_dim = WIDTH // HEADS
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
        self.rotary = RotaryEmbedding(inv_freq=10_000.0**-exponents)
        self.attention = Attention()
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KEY_HEADS) * head_dim, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm, self.mlp_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """x (B, S, H), position_ids (B, S), cu_seqlens (N + 1,): (B, S, H)."""
        heads = self.qkv(self.norm(x)).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
        q, k, v = heads.split([HEADS, KEY_HEADS, KEY_HEADS], dim=1)
        q, k = self.rotary(q, k, position_ids)
        attended = self.attention(q, k, v, cu_seqlens=cu_seqlens)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Layers between an embedding and a head, which is multiplied inside the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.loss = LinearCrossEntropyLoss()

    def hidden(self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """(B, S, H), of tokens (B, S)."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, position_ids, cu_seqlens)
        return self.norm(x)

    def forward(
        self, tokens: Tensor, position_ids: Tensor, cu_seqlens: Tensor, labels: Tensor
    ) -> Tensor:
        """The mean loss; `labels[:, i]` is what token i should predict, -100 for nothing."""
        return self.loss(self.hidden(tokens, position_ids, cu_seqlens), self.head.weight, labels)


def batch(generator: Generator) -> dict[str, Tensor]:
    """Rows of two documents, each a line of random tokens twice; its second half is predicted."""
    lines = torch.randint(VOCABULARY, (BATCH, DOCUMENTS, LINE), generator=generator)
    tokens = lines.repeat(1, 1, 2)
    labels = tokens.roll(-1, dims=2).masked_fill(torch.arange(2 * LINE) < LINE - 1, -100)
    labels[..., -1] = -100  # what follows is of another document
    drawn = [
        positions.longrecipe([LINE, LINE], WINDOW, generator) for _ in range(BATCH * DOCUMENTS)
    ]
    return {
        "tokens": tokens.flatten(1),
        "labels": labels.flatten(1),
        "position_ids": torch.cat(drawn).view(BATCH, TOKENS),
        "cu_seqlens": torch.arange(0, BATCH * TOKENS + 1, 2 * LINE, dtype=torch.int32),
    }


def train(steps: int, seed: int = 0) -> tuple[Decoder, list[float]]:
    """A decoder, and its loss at each step."""
    torch.manual_seed(seed)
    model, generator = Decoder(), Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(**batch(generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small decoder on lrk.nn.")
    parser.add_argument("--steps", type=int, default=300)
    _, losses = train(parser.parse_args().steps)
    for step in range(0, len(losses), 50):
        print(f"step {step}: {losses[step]:.3f} nats")
    print(f"step {len(losses) - 1}: {losses[-1]:.3f} nats")


if __name__ == "__main__":
    main()
