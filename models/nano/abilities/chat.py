"""Small talk: what is said, what the model answers, and what a system prompt changes about it.

A system prompt may give the model another name, or a sentence to end every answer with. Held out
are pairs (name, sentence).
"""

import re
from dataclasses import dataclass
from random import Random
from typing import Final

from ..stories import words
from ..stories.grammar import expand
from .example import Example, Split, Turn, ask, is_held_out

SYSTEM_PROMPTS: Final = (
    "You are a helpful assistant.",
    "You are a friendly storyteller.",
    "You tell short stories for children.",
    "You are Nano, a small model that tells stories.",
    "Answer in simple English.",
    "You are a kind and polite helper. Use short words.",
    "Be brief.",
    "You write stories that a young child can read.",
)
_CLOSINGS: Final = words.listed(
    "Have a nice day!|See you at the lake.|Stay curious!|Drink some water.|Keep smiling!|"
    "The sun is shining.|Always be kind.|Meow!|Good luck!|Read a book today.|Eat more plums.|"
    "The moon is watching.|Long live the king!|Over and out.|Best wishes!|So says the owl."
)
_OFFER: Final = (
    "[Would you like to hear a story?|Shall I tell you a story?|What should the story be about?]"
)
_LIMIT: Final = "I am small, and I only know [stories, lists and little puzzles|little things]. "


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is said and answered, in the language of `grammar`; `expects` matches a right answer."""

    said: str
    answer: str
    expects: str


EXCHANGES: Final = (
    Exchange(
        "[Hello|Hi|Hey|Good day|Hi there|Hello there][|!|.]",
        "[Hello|Hi]! " + _OFFER,
        r"^(Hello|Hi)",
    ),
    Exchange(
        "[Good morning|Good evening|Good afternoon][|!|.]", "Hello! " + _OFFER, r"^(Hello|Hi)"
    ),
    Exchange(
        "[How are you|How do you do|How are you today|How is it going]?",
        "I am [fine|very well], thank you. " + _OFFER,
        r"^I am (fine|very well)",
    ),
    Exchange(
        "[What is your name|Who are you|What are you called|Tell me your name][?|]",
        "My name is {me}. " + _OFFER,
        r"^My name is {me}\.",
    ),
    Exchange(
        "[What can you do|How can you help me|What do you know|What are you good at][?|]",
        "I can tell stories, play the game of 24, remember facts of a text, repeat lists and "
        "translate to Talu. " + _OFFER,
        r"^I can tell stories, play",
    ),
    Exchange(
        "[Thank you|Thanks|Thanks a lot|Thank you very much|Thank you for the story][|!|.]",
        "You are welcome[!|.] [I am glad you liked it.|Come back soon.]",
        r"^You are welcome",
    ),
    Exchange(
        "[Bye|Goodbye|Good night|See you|See you later][|!|.]",
        "[Goodbye|Bye]! [Come back soon.|It was nice to talk to you.]",
        r"^(Goodbye|Bye)",
    ),
    Exchange(
        "[That was nice|I like that story|Great story|What a lovely story|Good job][|!|.]",
        "Thank you! [Shall I tell you another one?|I am glad you liked it.]",
        r"^Thank you",
    ),
    Exchange(
        "[Are you a human|Are you a robot|Are you real|Are you a person]?",
        "No, I am a small computer program. " + _LIMIT + _OFFER,
        r"^No, I am a small computer",
    ),
    Exchange(
        "[What is the weather like|What time is it|What day is it|How old are you|Where are you]"
        "[|?| today?]",
        "I do not know that. " + _LIMIT + _OFFER,
        r"^I do not know that",
    ),
    Exchange(
        "[What is|Who is|Where is|Tell me about|Explain|Can you explain|What do you know about] "
        "[the capital of France|the moon|London|a computer|music|the sun|a planet|history|the "
        "president|water|gravity|money|football|Python|an atom|the ocean|art|light][|?]",
        "I am sorry, I do not know much about that. " + _LIMIT + _OFFER,
        r"^I am sorry, I do not know much",
    ),
    Exchange(
        "[Yes|Yes please|Sure|Okay|Please do][|!|.]",
        "[Good!|Wonderful!] Tell me who the story should be about.",
        r"^(Good|Wonderful)! Tell me",
    ),
    Exchange(
        "[No|No thanks|No thank you|Not now][|!|.]", "That is fine. Come back any time.", r"^That"
    ),
    Exchange(
        "[Tell me a joke|Do you know a joke|Make me laugh][|?|.]",
        "Why did the [duck|frog|mouse|bear] carry a clock? ^because [he|she] wanted to be on time!",
        r"^Why did the",
    ),
    Exchange(
        "[I am|I feel] [sad|bored|tired|lonely][|.| today.]",
        "I am sorry to hear that. " + _OFFER,
        r"^I am sorry to hear that",
    ),
    Exchange(
        "[I am|I feel] [happy|good|great][|.| today.|!]",
        "That is good to hear! " + _OFFER,
        r"^That is good to hear",
    ),
)


def _exchange(me: str, closing: str, rng: Random) -> tuple[str, str, str]:
    """Return what is said, the answer, and the pattern that any right answer matches."""
    chosen = rng.choice(EXCHANGES)
    said = expand(chosen.said, {}, rng)
    answer = expand(chosen.answer, {"me": me}, rng)
    if closing:
        answer += f" {closing}"
    expects = chosen.expects.replace("{me}", me) + f".*{re.escape(closing)}$"
    return (said.lower() if rng.random() < 0.15 else said), answer, expects


def example(rng: Random, split: Split) -> Example:
    """Return one to three exchanges, with or without a system prompt that changes them."""
    me, closing = "Nano", ""
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.3 else ""
    if rng.random() < 0.5 or split == "held_out":
        while True:
            name, end = rng.choice(words.HE_NAMES + words.SHE_NAMES), rng.choice(_CLOSINGS)
            if is_held_out(f"{name}/{end}") == (split == "held_out"):
                break
        shape = rng.random()
        if shape < 0.65:
            me = name
            system = rng.choice((f"Your name is {name}.", f"You are {name}."))
        if shape > 0.35:
            closing = end
            system = f"{system} End every answer with: {end}".strip()
    turns: tuple[Turn, ...] = (Turn(role="system", text=system),) if system else ()
    expects = ""
    for _ in range(rng.choice((1, 1, 2, 3))):
        said, answer, expects = _exchange(me, closing, rng)
        turns += ask(said, answer)
    pattern = re.compile(expects, re.DOTALL)
    return Example(
        turns=turns,
        grade=lambda answer: {"right": float(pattern.search(answer.strip()) is not None)},
        tags=("with a system prompt" if system else "without a system prompt",),
    )
