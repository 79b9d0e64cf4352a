"""What SmolLM2-135M says: its greedy answers to some hundred instructions, the lessons of a small drafter.

The instructions are made from templates and topics here; the prompts that speculation is measured on
(`elvi.bench.prompts`) are others. Answers are written to a file as they come, and an interrupted collection goes on
where it stopped.
"""

from __future__ import annotations

import json
import sys
from dataclasses import astuple, dataclass
from random import Random
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from elvi.families.family import Family

SUBJECTS, ERRANDS, HELD_OUT = 640, 192, 20
NEW_TOKENS, BATCH = 96, 64
_TURN = "{% for message in messages %}{{ message.role + '\n' + message.content + '\n' }}{% endfor %}"
TEMPLATE = _TURN + "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"  # SmolLM2's, without its marks
TOPICS = """rain, volcanoes, bread, bicycles, the moon, bees, glass, music, sleep, maps, trains, coffee, oceans,
chess, gardens, winter, libraries, salt, bridges, dreams, wolves, paper, wind, clocks, honey, deserts, football,
painting, planets, rice, shoes, forests, kites, soap, rivers, mountains, cats, horses, ships, lamps, keys, letters,
markets, photographs, whales, stars, tea, snow, dancing, swimming, wool, gold, iron, cheese, apples, potatoes,
castles, islands, robots, computers, batteries, magnets, mirrors, windows, schools, hospitals, farmers, teachers,
doctors, pirates, spiders, butterflies, eagles, penguins, elephants, camels, roses, oak trees, mushrooms, cactuses,
thunder, rainbows, fog, tides, earthquakes, fossils, diamonds, friendship, patience, courage, money, voting, traffic,
recycling, vaccines, memory"""
ABOUT = """Explain {} to a child.
Write a short paragraph about {}.
Why do people care about {}?
List five facts about {}.
Write a short story that begins with {}.
What is the history of {}?
How would you describe {} to somebody who has never heard of them?
Give three tips for someone who wants to learn about {}.
Write a poem about {}.
What are the advantages and disadvantages of {}?
Write a letter to a friend about {}.
How does science look at {}?"""
WITH_TEXT = """Rewrite this sentence more politely: Stop talking about {} and listen to me.
Summarize the following text in one sentence. Many people first met {} as children. Some were delighted and some were\
 afraid, but nearly all of them remember the day, and they still tell their own children about it."""
TASKS = """adds two numbers, finds the largest number in a list, counts the vowels in a string, sorts a list of names,
checks whether a number is even, computes the factorial of a number, removes duplicates from a list, joins two lists,
counts the words in a text, converts Celsius to Fahrenheit, finds the shortest word in a sentence, squares every number
in a list, prints the multiplication table, sums the digits of a number, checks whether a word is in a list, merges two
dictionaries, swaps two variables, computes the average of a list, finds the common elements of two lists, rounds a
number, prints a triangle of stars, reads a file and prints its lines, generates a random password, computes the area of
a circle"""
CODE = """Write a Python function that {}.
Write a Python program that {}, and explain how it works.
Write a JavaScript function that {}."""
THINGS = """photosynthesis, gravity, a steam engine, the water cycle, a telescope, electricity, an airplane wing, the
heart, inflation, a solar panel, a microwave oven, the immune system, the stock market, a search engine, digestion,
sound, evolution, a nuclear reactor, a jury, a lock and key, democracy, the brain, a bicycle gear, an elevator, DNA,
insurance, a thermometer, encryption, a compass, yeast, the ozone layer, a camera, a mortgage, radio, the greenhouse
effect, a vote"""
WORKINGS = """Explain how {} works.
What is {}? Answer in two sentences.
Why is {} important?
Describe {} step by step.
Tell me three common mistakes people make about {}."""
PAIRS = """weather and climate, a fruit and a vegetable, a comet and an asteroid, speed and velocity, a lake and a
sea, mass and weight, a simile and a metaphor, debit and credit, a frog and a toad, heat and temperature, a novel and
a novella, a crocodile and an alligator, renting and buying, an atom and a molecule, a city and a town,
HTTP and HTTPS"""
DIFFERENCE = """What is the difference between {}?
Compare {} in a short table.
How can a student remember the difference between {}?"""
SCENES = """an old train station, a spaceship, a small bakery, a snowy village, an empty school, a pirate ship, a
hospital at night, a desert town, a haunted hotel, an underwater city, a zoo after closing time, a busy kitchen, a
mountain hut, a courtroom, a circus, a library in the future"""
STORIES = """Write the first paragraph of a story set in {}.
Write a short conversation between two strangers in {}.
Describe {} so that the reader can smell it and hear it.
Continue this story: Nobody had expected to find anything in {}, least of all Clara."""
AIMS = """learn to cook, save money for a car, sleep better, learn Spanish, prepare for a job interview, read more
books, grow tomatoes, clean the house, write a novel, train for a bicycle race, spend a weekend in Rome, start a small
business, study for an exam, eat less sugar, organize a birthday party, learn the guitar"""
PLANS = """Make a plan for somebody who wants to {}.
List five things I need if I want to {}.
Write an e-mail asking a friend for help because I want to {}.
What is the first step for someone who wants to {}?
Give advice in three bullet points to a person who wants to {}."""


@dataclass(frozen=True)
class Talk:
    """An instruction, the answer as plain text, and whether the answer ended before NEW_TOKENS."""

    instruction: str
    answer: str
    ended: bool


def instructions(seed: int) -> list[str]:
    """Distinct instructions: SUBJECTS that ask about a topic, ERRANDS that ask for code or bring a text along, and
    everything that asks how a thing works, tells things apart, sets a scene or makes a plan."""
    subjects = _filled(ABOUT, TOPICS)
    errands = _filled(CODE, TASKS) + _filled(WITH_TEXT, TOPICS)
    others = _filled(WORKINGS, THINGS) + _filled(DIFFERENCE, PAIRS) + _filled(STORIES, SCENES) + _filled(PLANS, AIMS)
    for name, group in (("instructions", subjects), ("errands", errands), ("others", others)):
        Random(f"{seed}/{name}").shuffle(group)
    return subjects[:SUBJECTS] + errands[:ERRANDS] + others


def _filled(templates: str, things: str) -> list[str]:
    names = [" ".join(thing.split()) for thing in things.split(",")]
    return [template.format(name) for template in templates.splitlines() for name in names]


def lessons(seed: int) -> tuple[list[str], list[str]]:
    """The instructions to learn from, and every HELD_OUT-th, which training does not see."""
    every = instructions(seed)
    return [text for i, text in enumerate(every) if i % HELD_OUT], every[::HELD_OUT]


def talks(texts: list[str], path: Path) -> list[Talk]:
    """What SmolLM2 says to each instruction.

    The file keeps all that was ever asked, a line each, and only what it lacks is asked now. Raises FitError, an
    ElviError, where SmolLM2 is needed and not installed.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    known = {talk.instruction: talk for talk in (Talk(*json.loads(line)) for line in lines)}
    missing = [text for text in texts if text not in known]
    if missing:
        from elvi.families.load import SMOLLM2, load

        family = load(SMOLLM2, device="cpu")
        family.model.set_attn_implementation("sdpa")
        path.parent.mkdir(parents=True, exist_ok=True)
        for batch in _asked(family, missing, len(texts)):
            with path.open("a") as file:
                file.write("".join(json.dumps(astuple(talk)) + "\n" for talk in batch))
            known |= {talk.instruction: talk for talk in batch}
    return [known[text] for text in texts]


def _asked(family: Family, missing: list[str], total: int) -> Iterator[list[Talk]]:
    columns = (TextColumn("what SmolLM2 says"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=not sys.stdout.isatty()) as shown:
        bar = shown.add_task("", total=total, completed=total - len(missing))
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            yield answers(family, batch)
            shown.advance(bar, len(batch))


def spell(talk: Talk, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Prompt and answer in the drafter's own pieces; an answer that ended has its end."""
    asked = [{"role": "user", "content": talk.instruction}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    said = tokenizer.encode(talk.answer, add_special_tokens=False)
    return tokenizer.encode(prompt, add_special_tokens=False), said + [tokenizer.eos_token_id] * talk.ended


def answers(family: Family, texts: list[str]) -> list[Talk]:
    """The greedy answers to instructions, spelt without special tokens; one left-padded batch."""
    import torch

    prompts = [family.template(text, None) for text in texts]
    width, pad = max(map(len, prompts)), min(family.eos)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        said = family.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=pad
        )
    rows = said[:, width:].tolist()
    spelt = family.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [Talk(*one) for one in zip(texts, spelt, (not family.eos.isdisjoint(row) for row in rows), strict=True)]
