"""A long conversation as people have it: someone plans a move abroad, a little at a time, with an assistant that talks
a lot. Made by a recipe, so that every run says the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

FACT_TURN = 3
FACT = "My daughter Ingrid is allergic to cashews, and our moving company is Fjordline, contract QX-7741."
FACT_WORDS = ("Ingrid", "cashew", "Fjordline", "QX-7741")
"""What has to be known of it at the end."""

_OPENINGS = (
    "Hello! We are moving from Porto to Bergen and I could use some help with the planning.",
    "Where should we begin? There is so much to think of.",
)
_TOPICS: Sequence[tuple[str, Sequence[str]]] = (
    ("the flat", ("furniture", "the lease", "the deposit", "the balcony", "heating", "the basement room")),
    ("schools", ("the language course", "lunch boxes", "the school bus", "the music lessons", "after-school care")),
    ("the harbour trip", ("ferry tickets", "rain clothes", "the weather", "the museum", "a picnic")),
    ("papers", ("the residence form", "the tax card", "the driving licence", "insurance", "the bank account")),
    ("food", ("fish soup", "bread recipes", "the market", "breakfast habits", "a birthday cake")),
    ("my work", ("the first week", "remote days", "the handover", "the team lunch", "a new laptop")),
)
_ASKS = (
    "What should I keep in mind about {thing} when it comes to {topic}?",
    "I was thinking about {thing} again. How would you go about it, given {topic}?",
    "Is {thing} something to worry about now, or can it wait until {topic} is settled?",
    "Could you explain {thing} to me once more? I keep mixing it up with the rest of {topic}.",
    "Someone told me that {thing} is the hardest part of {topic}. Is that so?",
)
_SENTENCES = (
    "It usually helps to look at {thing} step by step, because most of the trouble comes from doing it all at once.",
    "Many people find that {thing} takes longer than they expect, so a little slack in the calendar is worth having.",
    "You can write down what you already know about {topic} and see which questions are left over.",
    "There is no single right answer here, since it depends on what matters most to your family.",
    "A friendly phone call often settles more about {thing} than a long letter does.",
    "If something changes later, that is fine, and we can look at {topic} again whenever you like.",
    "Compare two or three offers before you decide, and ask what is included and what costs extra.",
    "People who have done it before say that the first month is busy and then it becomes routine.",
    "Keep copies of everything that has to do with {thing} in one folder, on paper as well.",
    "Some of it can be done from home, and the rest is quicker in person once you are there.",
)


def questions(turns: int) -> list[str]:
    chance = random.Random(3)
    asked = [*_OPENINGS, FACT]
    while len(asked) < turns:
        topic, things = chance.choice(_TOPICS)
        asked.append(chance.choice(_ASKS).format(thing=chance.choice(things), topic=topic))
    return asked[:turns]


def reply(question: str, number: int) -> list[str]:
    """Pieces of an answer of about 90 tokens. It never repeats what the user told."""
    chance = random.Random(number)
    topic, things = next(
        ((topic, things) for topic, things in _TOPICS if topic in question), _TOPICS[number % len(_TOPICS)]
    )
    thing = next((thing for thing in things if thing in question), things[0])
    text = " ".join(chance.sample(_SENTENCES, 4)).format(thing=thing, topic=topic)
    return [f"{word} " for word in text.split()]
