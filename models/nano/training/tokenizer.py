"""Trains the tokenizer: byte-level BPE, so that no text is unknown and all text comes back.

Digits stand alone and so do operators and the punctuation of JSON: arithmetic and structured text
can then be read sign by sign. Part of the sample is text of those kinds and of other languages,
written here, so that the merges are not those of stories alone.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from typing import Final, cast

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..stories.grammar import expand
from ..stories.words import COLOURS, FOODS, KINDS, SHE_NAMES, SPOTS, THINGS
from .common_words import COMMON_WORDS
from .corpus import END_OF_DOCUMENT, END_OF_TURN, START_OF_TURN, documents

VOCAB_SIZE: Final = 3072
_WITHOUT_SPACE: Final = 0.6  # share of the vocabulary that the first stage of training fills
_SPACE: Final = "Ġ"  # how byte-level BPE writes a space
CONTEXT_TOKENS: Final = 2048
# Longest first: a contraction, a word with the space before it, one digit, one sign, spaces.
_PIECES: Final = (
    r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}| ?[\-+*/=()<>{}\[\]:,\"\\%#@&|^~$_`]|"
    r" ?[^\s\p{L}\p{N}]|\s*[\r\n]|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE: Final = (
    "{{- bos_token -}}\n"
    "{%- for message in messages -%}\n"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}\n"
    "{{- raise_exception('Unknown role: ' ~ message['role']) -}}\n"
    "{%- endif -%}\n"
    "{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)
# Stand-ins for what a later model is to read: numbers, questions, words of other languages.
_OTHER_TEXT: Final = (
    "{n} [+|-|*|/] {m} = {n}",
    "({n} [+|-] {m}) * {n} = {m}",
    "Use the numbers {n}, {m}, {n} and {m} to make 24. Use each number once.",
    "The secret number is {n}. Remember it. What is the secret number? It is {n}.",
    "Copy this text exactly: {thing} {n} {colour} {food} {m}",
    "Question: where is the {thing}? Answer: it is {spot}. The answer is {n}.",
    "Translate to [French|German|Spanish]: the {colour} {thing}.",
    "[Le chat|Le chien|La fille|Le roi] [mange|aime|cherche|trouve] [une pomme|le livre|la maison]"
    " [avec sa mère|dans la forêt|près de la mer|et il est content].",
    "[Die Katze|Der Hund|Das Mädchen|Der König] [isst|mag|sucht|findet] [einen Apfel|das Buch|das "
    "Haus] [mit der Mutter|im Wald|am Meer|und ist fröhlich].",
    "[El gato|El perro|La niña|El rey] [come|quiere|busca|encuentra] [una manzana|el libro|la casa]"
    " [con su madre|en el bosque|cerca del mar|y está feliz].",
    "Write a story with the words {thing}, {food} and {colour}, but without a {kind}.",
    "Here is a list:\n- {thing}\n- {food}\n{n}. {colour}\n{m}. {kind}\n",
    "Extract the name, the age and the city as JSON. {name} is {n} years old and lives in a city.",
    "This is an example of a longer sentence which explains how something works "
    "and why it matters.",
    "def add(x, y):\n    return x + y\n\nprint(add({n}, {m}))",
)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _train_model(sample: list[str], vocab_size: int) -> models.BPE:
    """Return merges learned in two stages: first within words, then of a word and its space.

    Learned together, "white" and " white" would have different pieces, and to copy a rare word to
    the start of a line would be to spell it. This way the pieces are the same everywhere, and the
    most frequent words have a second token that holds the space as well.
    """
    specials = [END_OF_DOCUMENT, START_OF_TURN, END_OF_TURN]
    first = Tokenizer(models.BPE())
    first.pre_tokenizer = _split(rf" |{_PIECES}")
    trainer = trainers.BpeTrainer(
        vocab_size=int(vocab_size * _WITHOUT_SPACE),
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    first.train_from_iterator(sample, trainer)
    state = json.loads(first.to_str())["model"]
    vocab = cast("dict[str, int]", state["vocab"])
    merges = [cast("tuple[str, str]", tuple(pair)) for pair in state["merges"]]
    spaced = Counter[str]()
    for encoding in first.encode_batch(sample, add_special_tokens=False):
        tokens = encoding.tokens
        for before, token, after in zip(tokens, tokens[1:], [*tokens[2:], _SPACE], strict=False):
            # Only whole words: a piece that another follows keeps its space apart.
            if before == _SPACE and (after == _SPACE or not after[0].isalpha()):
                spaced[token] += 1
    for token, _ in sorted(spaced.items(), key=lambda item: (-item[1], item[0])):
        if len(vocab) == vocab_size:
            break
        if token not in specials and not token.startswith(_SPACE):
            vocab[_SPACE + token] = len(vocab)
            merges.append((_SPACE, token))
    return models.BPE(vocab=vocab, merges=merges)


def train_tokenizer(sample: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Return a tokenizer with 256 bytes, merges learned from `sample` and three special tokens.

    Encoding puts `<|endoftext|>` before the text, as every document of the corpus has it; the chat
    template writes it itself.
    """
    tokenizer = Tokenizer(_train_model(list(sample), vocab_size))
    tokenizer.add_special_tokens([END_OF_DOCUMENT, START_OF_TURN, END_OF_TURN])
    tokenizer.pre_tokenizer = _split(_PIECES)
    tokenizer.decoder = decoders.ByteLevel()
    bos = tokenizer.token_to_id(END_OF_DOCUMENT)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_DOCUMENT} $A",
        pair=f"{END_OF_DOCUMENT} $A {END_OF_DOCUMENT} $B",
        special_tokens=[(END_OF_DOCUMENT, bos)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_DOCUMENT,
        eos_token=END_OF_TURN,
        pad_token=END_OF_DOCUMENT,
        extra_special_tokens=[START_OF_TURN],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def sample_text(seed: int, count: int) -> Iterator[str]:
    """Yield common words, `count` documents and a tenth as many texts of other kinds."""
    rng = Random(f"other/{seed}")
    for _ in range(8):
        yield " ".join(rng.sample(COMMON_WORDS, len(COMMON_WORDS)))
    for index, document in enumerate(islice(documents(seed), count)):
        yield document
        if index % 10 == 0:
            yield _other_text(rng)


def _other_text(rng: Random) -> str:
    slots = {
        "n": str(rng.randrange(1000)),
        "m": str(rng.randrange(30)),
        "name": rng.choice(SHE_NAMES),
        "food": rng.choice(FOODS),
        "thing": rng.choice(THINGS),
        "colour": rng.choice(COLOURS),
        "spot": rng.choice(SPOTS),
        "kind": rng.choice(KINDS),
    }
    if rng.random() < 0.2:
        likes = [slots["food"], slots["thing"]]
        record = {"name": slots["name"], "age": int(slots["m"]), "likes": likes, "city": None}
        return json.dumps([record, {"happy": rng.random() < 0.5, "total": 1.5}], indent=2)
    return expand(rng.choice(_OTHER_TEXT), slots, rng)
