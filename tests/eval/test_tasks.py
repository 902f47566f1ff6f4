"""Prompts obey the published rules: they are taken apart here and solved by other means."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from lrk.eval import niah
from lrk.eval.fitting import Draw, Trial, Trials
from lrk.eval.frequent_words import occurrences
from lrk.eval.haystack import FILLER
from lrk.eval.prompt import Encoder, Prompt
from lrk.eval.tasks import GRID, TASKS, Setting

LENGTH = 2048
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")
WORD, NUMBER = "[a-z]+-[a-z]+", r"[1-9]\d{6}"
UUID = "[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"


@pytest.fixture
def trials(encoder, materials):
    def make(name: str, length: int = LENGTH, seed: int = 42, depth: float | None = None) -> Trials:
        task = TASKS[name]
        setting = Setting(encoder, length, seed, materials, depth)
        return Trials(name, task.draw(setting), encoder, length, task.max_new_tokens, seed)

    return make


@pytest.fixture
def prompts(trials):
    def draw(name: str, count: int = 3, **options) -> list[Prompt]:
        made = trials(name, **options)
        size = made.size()
        return [made(index, size)[0] for index in range(count)]

    return draw


NAMES = sorted(set(TASKS) - {"qa_1", "qa_2"})


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_fills_its_length_and_does_not_exceed_it(trials, name):
    made = trials(name, depth=0.5 if name == GRID else None)
    size = made.size()
    for index in range(3):
        prompt, ids = made(index, size)
        total = len(ids) + TASKS[name].max_new_tokens
        assert LENGTH * 0.9 < total <= LENGTH
        assert ids == made.encoder.tokenizer(prompt.text + prompt.answer_prefix).input_ids


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_depends_on_seed_length_and_number_alone(trials, name):
    depth = 0.5 if name == GRID else None
    first, again = trials(name, depth=depth), trials(name, depth=depth)
    size = first.size()
    assert again(5, size) == first(5, size)
    assert first(4, size)[0].references != first(5, size)[0].references
    assert trials(name, seed=43, depth=depth)(5, size)[0] != first(5, size)[0]
    assert replace(first, length=LENGTH + 1)(5, size)[0] != first(5, size)[0]


def test_passkey(prompts):
    found = prompts("passkey", 40)
    for prompt in found:
        (key,) = prompt.references
        lines = prompt.text.split("\n")
        assert lines[2] == f"The pass key is {key}. Remember it. {key} is the pass key."
        assert lines[4] + prompt.answer_prefix == "What is the pass key? The pass key is"
        before, after = (line.count(FILLER) for line in (lines[1], lines[3]))
        assert prompt.depth == before / (before + after)
        assert lines[1] == " ".join([FILLER] * before)
    keys = [int(prompt.references[0]) for prompt in found]
    assert all(1 <= key <= 50_000 for key in keys)
    assert max(keys) > 30_000 > 10_000 > min(keys)
    assert min(prompt.depth for prompt in found) < 0.2 < 0.8 < max(prompt.depth for prompt in found)


@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "niah_single_3"])
def test_one_needle(prompts, name):
    for prompt in prompts(name):
        ((kind, key, value),) = NEEDLE.findall(prompt.text)
        assert prompt.references == (value,)
        assert re.fullmatch(WORD, key)
        assert re.fullmatch(NUMBER if kind == "numbers" else UUID, value)
        one = kind[:-1]
        assert prompt.text.startswith(
            f"A special magic {one} is hidden within the following text. Make sure to memorize "
            f"it. I will quiz you about the {one} afterwards.\n"
        )
        assert prompt.text.endswith(
            f"\nWhat is the special magic {one} for {key} mentioned in the provided text?"
        )
        assert prompt.answer_prefix == (
            f" The special magic {one} for {key} mentioned in the provided text is"
        )


def test_noise_is_the_filler_line_by_line_and_depth_the_share_before(prompts):
    for prompt in prompts("niah_single_1"):
        lines = prompt.text.split("\n")[1:-1]
        place = next(i for i, line in enumerate(lines) if NEEDLE.fullmatch(line))
        assert lines.count(FILLER) == len(lines) - 1
        assert prompt.depth == place / (len(lines) - 1)


@pytest.mark.parametrize("name", ["niah_multikey_2", "niah_multikey_3"])
def test_the_haystack_is_made_of_other_needles(prompts, name):
    for prompt in prompts(name):
        lines = prompt.text.split("\n")[1:-1]
        parsed = [NEEDLE.fullmatch(line).groups() for line in lines]
        (key,) = re.findall(r"for (\S+) mentioned", prompt.answer_prefix)
        assert [value for _, other, value in parsed if other == key] == list(prompt.references)
        assert len(parsed) > 3
        of_key, of_value = (WORD, NUMBER) if name == "niah_multikey_2" else (UUID, UUID)
        for _, key, value in parsed:
            assert re.fullmatch(of_key, key)
            assert re.fullmatch(of_value, value)


def test_four_keys(prompts):
    for prompt in prompts("niah_multikey_1"):
        values = {key: value for _, key, value in NEEDLE.findall(prompt.text)}
        (key,) = re.findall(r"for (\S+) mentioned", prompt.answer_prefix)
        assert len(values) == 4
        assert prompt.references == (values[key],)


def test_four_values(prompts):
    for prompt in prompts("niah_multivalue"):
        found = NEEDLE.findall(prompt.text)
        assert len({key for _, key, _ in found}) == 1
        assert sorted(value for *_, value in found) == sorted(prompt.references)
        assert len(prompt.references) == 4
        assert prompt.text.startswith("Some special magic numbers are hidden within")
        assert "What are all the special magic numbers for" in prompt.text
        assert prompt.answer_prefix.endswith(" mentioned in the provided text are")


def test_four_queries(prompts):
    for prompt in prompts("niah_multiquery"):
        values = {key: value for _, key, value in NEEDLE.findall(prompt.text)}
        (listed,) = re.findall(r"for (.*) mentioned", prompt.answer_prefix)
        keys = re.split(r", (?:and )?", listed)
        assert prompt.references == tuple(values[key] for key in keys)
        assert len(keys) == 4
        assert ", and " in listed


def test_needles_leave_the_essay_whole(prompts, materials):
    essay = " ".join(materials.essay.words)
    for prompt in prompts("niah_multikey_1"):
        context = prompt.text.split("\n")[1]
        rest = re.sub(r" ?" + NEEDLE.pattern, "", context).strip()
        assert rest in f"{essay} {essay}"


@pytest.mark.parametrize(("depth", "lines_before"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_grid_puts_its_needle_at_the_depth(depth, lines_before):
    prompt = niah.grid(depth).prompt(Trial(0, GRID, 0, 0), 8)
    lines = prompt.text.split("\n")[1:-1]
    assert [bool(NEEDLE.fullmatch(line)) for line in lines].index(True) == lines_before
    assert lines.count(FILLER) == 8
    assert prompt.references[0] in lines[lines_before]


def test_the_grid_with_needle_and_haystack_of_the_user(materials):
    needle = niah.GridNeedle("Eat a sandwich.", "What shall I eat?", "sandwich")
    draw = niah.grid(0.5, needle, materials.essay)
    prompt = draw.prompt(Trial(0, GRID, 0, 0), 7 * 4)
    assert prompt.text == (
        "Sentence 0 of the essay is here. Sentence 1 of the essay is here. Eat a sandwich. "
        "Sentence 2 of the essay is here. Sentence 3 of the essay is here.\n\nWhat shall I eat?"
    )
    assert (prompt.answer_prefix, prompt.references) == (" Answer:", ("sandwich",))


def resolve(text: str, value: str) -> list[str]:
    """All variables that have the value, by executing the assignments as they stand."""
    memory: dict[str, str] = {}
    for target, source in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+) ?$", text, re.MULTILINE):
        memory[target] = memory.get(source, source)
    return [name for name, held in memory.items() if held == value]


def test_variable_tracking(prompts, encoder):
    for prompt in prompts("vt"):
        worked, _, asked = prompt.text.rpartition("\n\nMemorize and track")
        (value,) = re.findall(r"assigned the value (\d{5}) in the text above\.$", prompt.text)
        assert resolve(asked, value) == list(prompt.references)
        assert len(prompt.references) == 5
        assert all(len(name) == 5 for name in prompt.references)
        assert prompt.answer_prefix == (
            " Answer: According to the chain(s) of variable assignment in the text above, "
            f"5 variables are assigned the value {value}, they are: "
        )
        question, _, answer = worked.rpartition("they are: ")
        (value,) = re.findall(r"assigned the value (\d{5}) in the text above", question)
        assert resolve(question, value) == answer.split()
        assert all(len(name) == 3 for name in answer.split())
        assert len(encoder.tokenizer(question).input_ids) <= 500


@pytest.mark.parametrize(
    ("length", "times", "example"), [(2048, (6, 1), (3, 1)), (8192, (30, 3), (10, 3))]
)
def test_common_words(prompts, length, times, example):
    for prompt in prompts("cwe", 2, length=length):
        worked, asked = re.findall(r"often\.\n(.*)\nQuestion", prompt.text)
        for listed, (common, uncommon) in ((worked, example), (asked, times)):
            numbers, counted = zip(*re.findall(r"(\d+)\. (\w+)", listed), strict=True)
            assert [int(number) for number in numbers] == list(range(1, len(numbers) + 1))
            counts = Counter(counted)
            assert sorted(set(counts.values())) == [uncommon, common]
            top = {word for word, count in counts.items() if count == common}
            assert len(top) == 10
            if listed is asked:
                assert top == set(prompt.references)
            else:
                assert len(counts) == (20 if length < 4096 else 40)
                answer = re.search(r"in the list are:(.*)\n", prompt.text)[1]
                assert {word for _, word in re.findall(r"(\d+)\. (\w+)", answer)} == top


def test_frequent_words(prompts):
    for prompt in prompts("fwe"):
        (coded,) = re.findall(r"coded words\. (.*)\nQuestion", prompt.text)
        ranked = Counter(coded.split()).most_common()
        assert ranked[0][0] == "..."
        assert tuple(word for word, _ in ranked[1:4]) == prompt.references
        assert ranked[3][1] > ranked[4][1]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])


def test_occurrences_are_those_of_the_zeta_distribution():
    """n / (k^2 zeta(2)), by hand: 1000 / 1.644934 = 607.9, / 4 = 151.98, / 9 = 67.5."""
    assert [occurrences(1000, rank) for rank in (1, 2, 3, 10)] == [607, 151, 67, 6]


@pytest.mark.parametrize("name", ["passkey", "vt", "niah_multikey_3", "fwe"])
def test_too_short_a_length_is_refused(trials, name):
    with pytest.raises(ValueError, match=f"length 60 is too short for task {name}"):
        trials(name, length=60).size()


@pytest.mark.parametrize("name", ["passkey", "niah_grid", "niah_multikey_3", "vt"])
@pytest.mark.parametrize("length", [1024, 4096])
def test_a_size_is_the_largest_that_fits_and_takes_few_prompts(trials, name, length, monkeypatch):
    encoded = []
    encode = Encoder.__call__

    def counted(self, prompt):
        encoded.append(prompt)
        return encode(self, prompt)

    monkeypatch.setattr(Encoder, "__call__", counted)
    made = trials(name, length, depth=0.5 if name == GRID else None)
    size = made.size()
    assert len(encoded) <= 10
    room = length - TASKS[name].max_new_tokens
    assert made._tokens(size) <= room < made._tokens(size + 1)


def test_a_size_is_found_where_prompts_do_not_grow_evenly(encoder):
    def grows(trial: Trial, size: int) -> Prompt:
        return Prompt(" ".join([FILLER] * (size * size // 50)), "", ())

    made = Trials("uneven", Draw(grows), encoder, 4096, 8, 42)
    size = made.size()
    assert made._tokens(size) <= 4088 < made._tokens(size + 1)
    with pytest.raises(ValueError, match="no more"):
        replace(made, draw=Draw(grows, largest=size, largest_reason="no more")).size()
    assert replace(made, draw=Draw(grows, largest=size + 1)).size() == size


def test_too_few_words_are_refused(trials):
    with pytest.raises(ValueError, match="wonderwords has 480 different words"):
        trials("cwe", length=32_768).size()


def test_a_chat_template_wraps_the_question_and_not_the_answer(tokenizer):
    chat = tokenizer.__class__(tokenizer_object=tokenizer._tokenizer, eos_token="<end>")
    with pytest.raises(ValueError, match="has no chat template"):
        Encoder(chat, chat_template=True)
    chat.chat_template = "{% for turn in messages %}[{{ turn.content }}]{% endfor %}>"
    ids = Encoder(chat, chat_template=True)(Prompt("Which key?", " The key is", ("1",)))
    assert chat.decode(ids) == "[Which key?]> The key is"
