import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lrk.data.assemble.parts import Layout, Part, fill
from studies.tiny import prose, train_tokenizer


def test_parts_fill_a_room_exactly():
    generator = np.random.default_rng(0)
    unfilled = 0
    for _ in range(3000):
        between = int(generator.integers(1, 4))
        room = int(generator.integers(between + 1, 80))
        least = 1 if generator.random() < 0.5 else 8
        sizes = generator.integers(least, generator.integers(9, 40), generator.integers(0, 40))
        parts = [Part(number, 5, 5 + size) for number, size in enumerate(sizes.tolist())]
        order = generator.permutation(len(parts)).tolist()
        found = fill(order, parts, room, between)
        if found is None:
            unfilled += 1
            if least == 8:  # so that all can be halved: less than one is lost
                assert sum(sizes) + between * len(parts) < room + 40
            continue
        assert sum(part.tokens + between for _, part in found) == room
        assert all(part.tokens > 0 for _, part in found)
        units = [unit for unit, _ in found]
        assert units == [unit for unit in order if unit in units], "once, in order"
        for unit, part in found:
            assert (part.document, part.start) == (unit, 5)
            assert part.stop <= parts[unit].stop
        cut = [place for place, (unit, part) in enumerate(found) if part != parts[unit]]
        if cut:  # what is cut, and what takes its place, is all at the end
            end = sum(part.tokens + between for _, part in found[cut[0] :])
            assert end <= parts[units[cut[0]]].tokens + 2 * between
    assert 0 < unfilled < 2500


def test_no_more_units_are_drawn_than_are_needed():
    units = iter(range(10))
    assert fill(units, [Part(0, 0, 10)] * 10, 25, 1) is not None
    assert next(units) == 3


@pytest.fixture(scope="module")
def opening() -> PreTrainedTokenizerFast:
    """A tokenizer that opens texts, as Llama's do; its last token is the one that opens."""
    tokenizer = train_tokenizer([prose(200, 0)], 320)
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens(["<begin>"])
    backend.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", backend.token_to_id("<begin>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", bos_token="<begin>")


def test_special_tokens_open_and_close_the_whole_alone(opening):
    layout = Layout.of(opening)
    begin, end = opening.bos_token_id, opening.eos_token_id
    blank = opening("\n\n", add_special_tokens=False)["input_ids"]
    assert layout == Layout((begin,), tuple(blank), (end,))
    documents = [np.array([begin, 5, 6, end], np.int32), np.array([begin, 7, end], np.int32)]
    texts = [layout.text(number, ids) for number, ids in enumerate(documents)]
    assert texts == [Part(0, 1, 3), Part(1, 1, 2)]
    ids = layout.join([documents[part.document][part.start : part.stop] for part in texts])
    assert ids.tolist() == [begin, 5, 6, *blank, 7, end]
    assert ids.dtype == np.int32
    first, second = layout.places(texts)
    assert ids[first].tolist() == [5, 6]
    assert ids[second].tolist() == [7]
    assert layout.room(len(ids)) == sum(part.tokens for part in texts) + len(blank)


def test_documents_that_were_cut_lack_special_tokens(opening):
    layout = Layout.of(opening)
    begin, end = opening.bos_token_id, opening.eos_token_id
    for ids, expected in (
        ([5, 6], (0, 2)),
        ([begin, 5], (1, 2)),
        ([5, end], (0, 1)),
        ([begin, end], (1, 1)),
        ([end], (0, 0)),
        ([begin], (1, 1)),
        ([], (0, 0)),
    ):
        assert layout.text(3, np.array(ids, np.int32)) == (3, *expected)


def test_a_tokenizer_without_special_tokens(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    layout = Layout.of(bare)
    assert (layout.head, layout.tail) == ((), ())
    assert layout.text(0, np.arange(4, dtype=np.int32)) == Part(0, 0, 4)
