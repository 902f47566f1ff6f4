import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from lrk.recipe import Collator, PlacedSamples, Placement, Samples, tokenize


@pytest.fixture
def samples(byte_tokenizer, english) -> Samples:
    texts = [english, english[:200], "Short. Very short.", english[60:]] * 3
    return Samples(tokenize(Dataset.from_dict({"text": texts}), byte_tokenizer), 24)


def test_a_batch_is_what_the_model_takes(samples):
    packed = next(s for s in samples if len(s["segment_lengths"]) > 1)
    alone = next(s for s in samples if len(s["segment_lengths"]) == 1)
    batch = Collator(Placement(4096))([alone, packed])

    lengths = [24, *(int(part.sum()) for part in packed["segment_lengths"])]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert batch[name].dtype == torch.int32
        assert torch.equal(batch[name].long(), ends)
    assert batch["max_length_q"] == batch["max_length_k"] == max(lengths)
    assert list(batch) == [
        "input_ids",
        "position_ids",
        "labels",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "max_length_q",
        "max_length_k",
    ]
    for name in ("input_ids", "position_ids", "labels"):
        assert batch[name].shape == (2, 24)
        assert batch[name].dtype == torch.int64


def test_the_first_token_of_a_document_is_not_predicted(samples):
    batch = Collator(Placement(4096))(list(samples))
    starts = torch.zeros(len(samples) * 24, dtype=torch.bool)
    starts[batch["cu_seq_lens_q"][:-1].long()] = True
    starts = starts.view(-1, 24)
    assert starts.sum() > len(samples), "some sample here must be packed"
    assert (batch["labels"][starts] == -100).all()
    assert torch.equal(batch["labels"][~starts], batch["input_ids"][~starts])
    assert (batch["position_ids"][starts] == 0).all()
    assert (batch["position_ids"][~starts] > 0).all()


def positions_by_index(samples, epochs: int, **options) -> list[dict[int, torch.Tensor]]:
    """Positions by sample in each epoch, as a shuffling loader delivers them."""
    collator = Collator(Placement(4096, contiguous_share=0.3, seed=7))
    order: list[int] = []

    class Indexed(torch.utils.data.Dataset):
        def __len__(self):
            return len(samples)

        def __getitem__(self, index):
            return samples[index]

    def collate(rows):
        return [row["index"] for row in rows], collator(rows)

    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        Indexed(), 3, shuffle=True, generator=generator, collate_fn=collate, **options
    )
    seen = []
    for epoch in range(epochs):
        collator.set_epoch(epoch)
        rows: dict[int, torch.Tensor] = {}
        for indices, batch in loader:
            order += indices
            rows |= dict(zip(indices, batch["position_ids"], strict=True))
        seen.append(rows)
    assert order != sorted(order)
    return seen


@pytest.mark.parametrize(
    "options",
    [{"num_workers": 1}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}],
    ids=str,
)
def test_workers_do_not_change_positions(samples, options):
    alone = positions_by_index(samples, epochs=2)
    shared = positions_by_index(samples, epochs=2, **options)
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[index], other[index]) for index in one)
    assert any(not torch.equal(alone[0][index], alone[1][index]) for index in alone[0])


def test_rows_with_positions_keep_them(samples):
    placed = PlacedSamples(samples, Placement(512, seed=5))
    collator = Collator(Placement(4096))
    collator.set_epoch(9)
    batch = collator([placed[0], placed[1]])
    assert torch.equal(batch["position_ids"][1], placed[1]["position_ids"])
    assert batch["position_ids"].max() < 512
