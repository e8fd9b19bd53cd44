"""The words stories are made of: who, what, where, when. All lists are our own."""

from typing import Final


def listed(text: str) -> tuple[str, ...]:
    """Return the entries of `text`: cut at bars where it has some, else at spaces."""
    return tuple(text.split("|" if "|" in text else None))


HE_NAMES: Final = listed(
    "Tom Ben Max Sam Leo Finn Jack Oscar Hugo Milo Theo Noah Paul Otto Felix Toby Arlo Ned Gus "
    "Rob Bo Pip Kit Remy Ivo Jonas Emil Anton Yuri Omar Ravi Kofi Dan Tim Barnaby Rufus Wilbur "
    "Jasper Monty Bruno"
)
SHE_NAMES: Final = listed(
    "Lily Mia Anna Emma Rosa Ella Zoe Nora Ruby Ivy Clara Lucy Molly Daisy Hazel Bella Poppy Tess "
    "June Elsa Greta Nina Lena Maya Sofia Amina Priya Yuki Hana Wren Pearl Dot Kate Sue Penny "
    "Matilda Olive Flora Juno Bea"
)
# Kinds that fix the pronoun; every other kind may be he or she.
HE_KINDS: Final = frozenset(listed("boy prince king wizard rooster grandfather snowman"))
SHE_KINDS: Final = frozenset(listed("girl princess queen witch hen cow fairy mermaid"))

KINDS: Final = listed(
    "cat dog fox rabbit bear mouse owl frog duck hedgehog squirrel turtle horse pig cow sheep goat "
    "lion tiger elephant monkey penguin dragon robot giant fairy witch wizard knight princess "
    "prince king queen pirate boy girl farmer baker unicorn snail bee ant butterfly crow parrot "
    "deer wolf panda kangaroo koala camel zebra giraffe hippo crab otter beaver badger mole bat "
    "goose hen rooster kitten puppy lamb pony donkey raccoon ghost monster snowman clown sailor "
    "lizard swan seal spider worm bird elf troll"
)
COMMON_KINDS: Final = listed(
    "cat dog fox rabbit bear mouse dragon boy girl bird frog owl robot princess"
)
HELPER_TRAITS: Final = listed("wise old kind friendly gentle clever tall quiet big strong")
TRAITS: Final = listed(
    "little small young brave shy curious kind happy clever funny quiet gentle lazy busy proud "
    "lonely cheerful careful hungry sleepy silly polite stubborn tiny friendly"
)

THINGS: Final = listed(
    "key|ball|hat|boot|kite|drum|lamp|book|ring|bell|cup|spoon|map|coin|scarf|blanket|basket|"
    "toy boat|toy car|doll|teddy bear|whistle|flute|pencil|paintbrush|mirror|shell|stone|feather|"
    "button|umbrella|mitten|crown|balloon|letter|lantern|clock|rope|shoe|glove|box|bottle|"
    "necklace|bow|flag|puzzle|watch|toy train|pillow|ribbon|candle|bag|marble|flower pot|jar|"
    "picture|brush|sock|coat|seed|egg|pot|horn|top|sled|backpack"
)
COLOURS: Final = listed("red blue green yellow white golden silver brown purple orange")
THING_ADJECTIVES: Final = listed("shiny little old new pretty tiny special lovely favourite")
FOODS: Final = listed(
    "apples|warm bread|honey|berries|carrots|cheese|soup|pancakes|nuts|cookies|plums|corn|pie|"
    "cake|pears|jam|noodles|rice|milk|porridge"
)

# Where a character lives; reads after "lived".
HOMES: Final = listed(
    "in a small house|in a cosy hole under a tree|at the edge of the forest|near a blue lake|"
    "on a green hill|in a quiet village|by the sea|on a farm|in a tall tower|beside a river|"
    "in a noisy town|in a little hut|at the foot of a mountain|next to a big garden|"
    "on a tiny island|in an old barn|behind the mill|under a bridge|in a sunny valley"
)
PARENTS: Final = listed("mother father grandmother grandfather aunt uncle")
# Where one can look for something, or leave it; reads after "looked".
SPOTS: Final = listed(
    "under the bed|behind the door|in the tall grass|near the old well|inside a hollow tree|"
    "under the bridge|behind a big rock|in the garden|by the pond|under the table|in the barn|"
    "behind the fence|under a pile of leaves|on the roof|beside the path|in the kitchen|"
    "between the roots of an oak|at the bottom of the basket|near the mill|in the mud|"
    "under the stairs|in an old nest|by the gate|on the sand|in the shed|"
    "under a bush|on top of the wall|in the cart|behind the curtain"
)
# weather: (reads before "morning", a sentence about it)
WEATHERS: Final = {
    "sunny": "[The sun was warm|The sky was blue|There was not a cloud in the sky]",
    "windy": "[The wind blew through the trees|The wind was strong|Leaves flew through the air]",
    "rainy": "[Rain fell on the roof|It had been raining since dawn|There were puddles everywhere]",
    "snowy": "[Snow covered the ground|Everything was white|Soft snow fell from the sky]",
    "foggy": "[The fog was thick and grey|It was hard to see the trees|Mist hung over the fields]",
    "cold": "[The air was cold|There was ice on the pond|The grass was white with frost]",
    "hot": "[The sun burned in the sky|It was too hot to run|Even the birds were resting]",
    "spring": "[The flowers were opening|Birds were singing|The trees had new green leaves]",
    "autumn": "[The leaves were red and gold|The air smelled of apples|Leaves fell to the ground]",
}
