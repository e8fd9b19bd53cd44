"""Plots in which the hero's trouble is within: a thing lost, a skill to learn, a fear."""

from typing import Final

from .beats import ASK, GLAD, MEET, OFFER, SAD, THANK, Plot, topic
from .words import THINGS

LOST: Final = Plot(
    request="who [lost|cannot find|looks for] a {thing}",
    beats=(
        "{A} had a {mything}[| that {he} loved very much|. It was a gift from {his} {parent}"
        "|. {he} took it everywhere|. {he} played with it every day]. ",
        "One [{weather} |][day|morning|afternoon|evening], {A} "
        "[could not find the {thing}|saw that "
        "the {thing} was gone|wanted to play, but the {thing} was not there|lost the {thing}]. "
        '["Where is my {thing}?" {he} [asked|cried].|"Oh no! ^my {thing} is gone!" {he} '
        "[said|cried].|{he} was " + SAD + ".] \n",
        "{A} looked {spot1}, but [the {thing} was not there|there was only {junk1}|{he} found only "
        "{junk1}]. ",
        "~[Then|Next|After that] {he} looked {spot2}. [There was nothing but {junk2}|It was not "
        "there|No {thing}! ^only {junk2}]. ",
        "[{A} sat down and sighed|{A} did not know where to look|{A} felt "
        + SAD
        + "|{A} was tired "
        "and wanted to give up]. \n",
        MEET + ASK,
        '["I lost my {thing}," said {A}.|"I cannot find my {thing}," {A} [said|cried].|"My '
        '{thing} is gone, and I have looked everywhere," {he} said.] ',
        OFFER + "\n",
        '~["When did you see it last?" asked {B}. {A} thought hard. "I [sat|played|was] '
        '{spot3}," {he} said.|"Did you look {spot3}?" asked {B}. "No," said {A}. "Not yet."|'
        "They looked here and there, high and low.] ",
        "[They went together and looked {spot3}|Together they looked {spot3}|{B} looked {spot3}]. "
        '[And there was the {thing}!|There it was! ^the {thing} lay {spot3}.|"Look!" said {B}. '
        "^there was the {thing}!] ",
        "{A} was " + GLAD + ". " + THANK,
    ),
    topics={thing: {"thing": thing} for thing in THINGS},
)

_SKILLS: Final = {
    "swim": "{he} [sank like a stone|swallowed water|was afraid of the deep water]|kick with your "
    "legs and stay calm|swam all the way across the pond",
    "sing": "the sound was [much too loud|like a rusty door]|listen first, then sing softly|sang a "
    "[sweet|lovely] song, and everybody listened",
    "dance": "{he} [fell over {his} own feet|bumped into a tree|turned the wrong way]|count to "
    "three and follow the music|danced in a circle without falling",
    "skate": "{he} [slipped and fell|slid into the snow|could not stop]|bend your knees and look "
    "ahead|skated across the whole pond",
    "climb": "{he} [slid down again|got stuck on the first branch|was too afraid to look down]|"
    "hold on tight and take one branch at a time|climbed to the very top of the tree",
    "cook": "the soup [burned|was too salty|boiled over]|taste it often and stir slowly|cooked a "
    "hot soup, and it was good",
    "bake bread": "the bread was [as hard as a stone|flat and black|still wet inside]|wait until "
    "the dough has grown|baked a round loaf, and it smelled wonderful",
    "read": "the letters [danced before {his} eyes|all looked the same]|read one letter at a time|"
    "read a whole page aloud",
    "paint": "the picture was [only a brown spot|all wet and grey]|look at the flower for a long "
    "time first|painted a flower that looked real",
    "whistle": "only air [came out|came from {his} lips]|make your lips small and round|whistled "
    "a tune, loud and clear",
    "juggle": "the balls [fell on {his} head|rolled away]|start with only two balls|juggled three "
    "balls in the air",
    "play the drum": "it was [just noise|too fast]|tap your foot to find the beat|played the drum "
    "while everybody clapped",
    "ride a bike": "{he} [fell into a bush|rode into a fence|fell on {his} knees]|look far ahead "
    "and keep going|rode the bike down the whole road",
    "jump high": "{he} [landed in the mud|hit the fence]|run three steps and then jump|jumped "
    "right over the fence",
    "count": "{he} [forgot the number seven|began again and again]|use stones, one for each "
    "number|counted all the ducks on the pond",
    "write": "the letters were [crooked|all upside down]|draw big letters in the sand|wrote {his} "
    "own name on a card",
    "fly a kite": "the kite [fell down|got stuck in a tree]|run into the wind and let go|made the "
    "kite fly high above the trees",
    "tie a knot": "the rope [came loose|got all mixed up]|make a loop and pull the end through|"
    "tied a knot that held fast",
    "catch a ball": "the ball [hit {his} nose|flew past {him}]|keep your eyes on the ball|caught "
    "the ball ten times",
    "sew": "the thread [broke|got into a mess]|make small, slow steps with the needle|sewed a warm "
    "coat",
    "row a boat": "the boat [went round and round|hit the bank]|pull with both sides at once|rowed "
    "the boat across the lake",
    "grow flowers": "[nothing came up|the plants were dry]|give them water every morning|had a "
    "garden full of flowers",
}


SKILL: Final = Plot(
    request="who [wants|wanted|learns] to {skill}",
    beats=(
        "{A} [wanted to {skill}|had one big wish: {he} wanted to {skill}|dreamed every night that "
        "{he} could {skill}]. [But {he} did not know how|But it was hard|"
        "Nobody had ever shown {him} "
        "how]. ",
        "One [{weather} |][day|morning], {A} [tried to {skill}|went "
        "out to try]. [But|It did not go well:|{he} tried hard, but] {fail}. \n",
        "~{A} [tried again|tried a second time|did not give up at once]. [But again|Once more|This "
        "time it was no better:] {fail}. ",
        '~[^{junkpeople} laughed at {him}|"I will never learn it," {he} said|{he} sat down '
        "{spot1} and sighed]. ",
        "{A} was " + SAD + ". \n",
        MEET + ASK,
        '["I want to {skill}, but I cannot," said {A}.|"I cannot {skill}," {A} [said|cried].|'
        '"I wish I could {skill}," said {A}.] ',
        '["I can show you," said {B}.|"It took me a long time too," said {B}.|{B} smiled. "You '
        'only need to practise," {Bhe} said.] "[The trick is this|Remember|You must do this]: '
        '{advice}." \n',
        "[{A} did what {B} said|{A} listened and nodded|So they practised together]. ",
        "~{A} practised [every day|all day long|until the sun went down]. ",
        "[First it went badly, then a little better|It was hard at first|Little by little, it got "
        "better]. [And then|Then, one day,|At last] {A} {success}! ",
        '["I did it!" {he} [cried|shouted].|"Look at me!" {he} called.|"You did it!" cried '
        "{B}.] {A} was " + GLAD + ". " + THANK,
    ),
    topics={
        skill: {"skill": skill, **topic("fail advice success", text)}
        for skill, text in _SKILLS.items()
    },
)

_FEARS: Final = {
    "the dark": "when the lamp went out|There are only the same things as in the day|the stars "
    "were shining like little lamps",
    "thunder": "when the sky made a loud noise|It is only the clouds bumping into each other|the "
    "storm went away and the sun came out",
    "deep water": "when {he} came to the lake|The water will carry you if you are calm|the water "
    "was cool and nice",
    "the forest": "when {he} had to walk under the tall trees|The trees are old and kind|there "
    "were sweet berries between the trees",
    "high places": "when {he} had to cross the bridge|Look at me and not down|{he} could see the "
    "whole valley from up there",
    "spiders": "when a spider sat on the wall|A spider is small and only wants to make its web|"
    "the web was shining with drops of water",
    "the big dog": "when the dog next door barked|He only barks because he is lonely|the dog "
    "licked {his} hand",
    "new people": "when somebody knocked at the door|Everyone is new at first|they played until "
    "the evening",
    "the wind": "when the wind howled around the house|The wind only wants to play|the wind lifted "
    "the leaves in a funny dance",
    "ghosts": "when something white moved outside|Let us go and look|it was only a shirt on the "
    "line",
    "the cave": "when {he} stood before the dark hole|I will hold the light for you|the walls of "
    "the cave were full of shiny stones",
    "loud noises": "when the bell rang|Put your hands over your ears and count to five|the noise "
    "was only the start of a parade",
    "school": "when the first day of school came|The teacher is kind and there are games|{he} had "
    "three new friends by noon",
    "the night": "when the sun went down|The moon will watch over you|the moon was big and round "
    "and bright",
}


FEAR: Final = Plot(
    request="who is afraid of {fear}",
    beats=(
        "{A} was [afraid of|scared of|very much afraid of] {fear}. ",
        "~[Nobody knew about it|{he} did not want to tell anyone|The others did not understand it|"
        "{he} always ran home and hid {spot1}]. ",
        "One [{weather} |][day|evening|morning], {moment}, {A} [began to shake|could not move|hid "
        "{spot1}|started to cry|held {his} {thing} very tight]. \n",
        MEET + ASK,
        '["I am afraid of {fear}," [said {A}|{A} said in a small voice].|"It is {fear}," '
        '{A} said. "I am scared."] ',
        '[{B} did not laugh|{B} nodded|{B} sat down next to {him}]. "[I was afraid of {fear} too, '
        'long ago|Everybody is afraid of something|Being afraid is not bad]," {Bhe} said. ',
        '"{advice}. ^[come with me|take my hand|let us go together][|, and do not be afraid]." \n',
        "{A} [took a deep breath|closed {his} eyes and counted to three|"
        "held on to {B}]. [One step, "
        "then another|Slowly {he} went on|{his} heart beat fast, but {he} went on]. ",
        "[And then {he} saw it|{he} opened {his} eyes|It was not bad at all]: {good}. ",
        '["It is not so bad," said {A}.|"I am not afraid anymore!" {he} said.|{A} laughed. "Is '
        'that all?" {he} asked.] {A} was ' + GLAD + ". " + THANK,
    ),
    topics={
        fear: {"fear": fear, **topic("moment advice good", text)} for fear, text in _FEARS.items()
    },
)
