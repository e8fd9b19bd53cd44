"""Plots that need others: errand, building, sharing, rescue, gift, friendship."""

from typing import Final

from .beats import ASK, GLAD, MEET, OFFER, SAD, THANK, Plot, topic
from .words import FOODS, THINGS

_OBSTACLES: Final = {
    "a river": "there was no bridge|jump over it, but it was too wide|lay down a long log, and "
    "they walked across",
    "a high wall": "it had no door|climb up, but the stones were smooth|knew a small hole behind "
    "the bush, and they crept through",
    "a locked gate": "the key was gone|push it, but it did not move|lifted {A} over the gate",
    "thick mud": "it was deep and brown|walk through, but {his} feet got stuck|put flat stones in "
    "the mud, one after another",
    "a fallen tree": "it lay across the path|pull it away, but it was too heavy|took the other "
    "end, and together they rolled the tree away",
    "a steep hill": "the path was full of loose stones|run up, but {he} slid down again|held a "
    "rope from the top, and {A} climbed up",
    "a dark tunnel": "no light came out of it|go in, but it was too dark|lit a lantern and went "
    "first",
    "a sleeping bear": "it lay in the middle of the path|tiptoe past, but a twig broke|hummed a "
    "sleepy song until the bear snored again",
    "thick fog": "the path had vanished|go on, but {he} walked in a circle|knew the way by the "
    "smell and led {A} on",
    "deep snow": "the path was white and hidden|walk on, but {he} sank in up to {his} belly|made "
    "a track for {A} to follow",
    "a broken bridge": "three boards were gone|jump, but the gap was too wide|found new boards, "
    "and they mended the bridge",
    "an angry goose": "it hissed and flapped its wings|run past, but the goose was faster|gave "
    "the goose some corn, and it let them pass",
}
ERRAND: Final = Plot(
    request="who brings {food} to {his} {parent} and comes to {obstacle}",
    beats=(
        "One [{weather} |][day|morning|afternoon], {A} [wanted to bring {food} to {his} {parent}|"
        "set out to visit {his} {parent} with a basket of {food}|packed some {food} for {his} "
        "{parent}, who was ill in bed]. ",
        '~"[Be careful|Stay on the path|Come home before dark]," said [a neighbour|everyone at '
        'home]. "[I will|Yes, I will]," said {A}. ',
        "~The way was long. {A} [sang a song|counted the birds|looked at the clouds] as {he} "
        "walked. {wsentence}. ",
        "[But then|Halfway there|After an hour], {A} came to {obstacle}. [{problem}|^{problem}]. ",
        "{A} tried to {attempt}. ",
        '~["What shall I do now?" {he} asked.|"I will never get there," {he} said.] ',
        "{A} [sat down on a stone|looked left and right|waited]. \n",
        MEET + ASK,
        '["I must bring {food} to my {parent}," said {A}, "but here is {obstacle}."|"I cannot '
        'get past {obstacle}," {A} said.] ',
        OFFER + "{B} {solution}. \n",
        THANK,
        '[At last|Before the sun went down|Soon], {A} came to the house of {his} {parent}. "[What '
        'a lovely surprise|How kind of you|You are so brave]!" said {his} {parent}. ',
        "[They sat down and ate the {food}|They ate the {food} together|The {food} tasted better "
        "than ever], and {A} told [everything|the whole story]. ",
    ),
    topics={
        name: {"obstacle": name, **topic("problem attempt solution", text)}
        for name, text in _OBSTACLES.items()
    },
)

_BUILDS: Final = {
    "a tree house": "boards and nails|the floor fell down|sat in it and saw the whole village",
    "a raft": "logs and a rope|it sank at once|floated down the river",
    "a snow hut": "blocks of snow|the roof fell in|sat in it and drank hot milk",
    "a sand castle": "wet sand and shells|a wave washed it away|put a flag on the tallest tower",
    "a swing": "a rope and a board|the rope broke|swung up to the leaves",
    "a bridge": "stones and long sticks|the water took the sticks away|walked to the other side",
    "a nest": "twigs and grass|the wind blew it down|slept in it all night",
    "a cart": "four wheels and a box|a wheel came off|rolled down the hill in it",
    "a big kite": "paper and string|the paper tore|watched it fly over the hills",
    "a house": "stones and wood|the wall fell over|lived in it all winter",
    "a cake": "flour, eggs and milk|it was flat and burned|ate it to the last crumb",
    "a boat": "wood and a sheet|water came in through a hole|sailed around the lake",
    "a garden": "seeds and a spade|the birds ate all the seeds|picked a basket of beans",
    "a tower": "blocks and boxes|it fell over|looked at it proudly",
}
BUILD: Final = Plot(
    request="who [builds|makes|wants to make] {build}",
    beats=(
        'One [{weather} |][day|morning], {A} [had an idea|had a plan|could not sit still]. "[I '
        'will make {build}|Today I want to make {build}]!" {he} said. ',
        "~{wsentence}, [and it was a good day to start|but that did not matter]. ",
        "{A} [found|took|carried home] {parts}, [and worked all morning|and went to work|and "
        "started at once]. ",
        "[But|Then, with a loud crash|In the end], {crash}. ",
        "~{A} began again, [but it was no better|but again {crash}]. ",
        '["It does not work!" cried {A}.|"All that work for nothing," {he} said.|{A} was '
        + SAD
        + ".] \n",
        MEET + ASK,
        '["I wanted to make {build}, but {crash}," said {A}.|"I cannot make {build} alone," '
        "said {A}.] ",
        OFFER + "\n",
        "~{B} [showed {A} how to do it right|brought what was missing|knew a better way]. ",
        "[{A} held it and {B} made it fast|One worked on the left, one on the right|They worked "
        "side by side], [until it was done|until the evening came|and soon it was ready]. ",
        "[It was {build} to be proud of|It was wonderful|What a fine thing it was]! ",
        "[The two friends|Together they|{A} and {B}] {use}. {A} was " + GLAD + ". " + THANK,
    ),
    topics={
        name: {"build": name, **topic("parts crash use", text)} for name, text in _BUILDS.items()
    },
)

SHARE: Final = Plot(
    request="who does not want to share [{his} {thing}|a {thing}]",
    beats=(
        "{A} had a {mything}. [It was the best {thing} in the whole land|Nobody else had one like "
        'it|{he} had found it {spot1}]. [{he} never let anyone touch it|"It is mine!" {he} always '
        "said]. ",
        'One [{weather} |][day|afternoon], {newB} came to play. "[What a nice {thing}|I like your '
        '{thing}]! ^may I [hold|have|try] it?" asked {B}. ',
        '"No! ^it is mine," said {A}[| and turned away]. [{B} was sad and went away|{B} looked at '
        'the ground and left|"Oh," said {B}, and went home]. \n',
        "{A} played alone with the {thing}. [But it was not much fun|But soon it was boring|But it "
        "was very quiet]. ",
        "~[{he} looked out {spot2}. Nobody came|There was nobody to laugh with|The others were "
        "playing {spot3}, and {A} heard them laugh]. ",
        '["A {thing} is not a friend," {he} thought.|"I was not kind to {B}," {he} thought.|{A} '
        "felt " + SAD + ".] \n",
        '[The next day|So|At last], {A} took the {thing} and went to {B}. "I am sorry," {he} '
        'said. "[Do you want to play with me?|Let us play with it together.|You may have it '
        'first.]" ',
        '[{B} smiled|{B} jumped up|{B} was not angry anymore]. "[Yes, please|I would love to|Of '
        'course]!" {Bhe} said. ',
        "~They [played all day|took turns|laughed a lot] {spot3}, and {B} shared {Bhis} {food}. ",
        "[It was much more fun together|Playing together was much better|{A} had never had so much "
        "fun]. {A} was " + GLAD + ". ",
    ),
    topics={thing: {"thing": thing} for thing in THINGS[::2]},
)

_TRAPS: Final = {
    "in a hole": "It was too deep|pushed a long branch down, and {B} climbed up",
    "in the mud": "It pulled {Bhim} down|held out {his} scarf and pulled with all {his} might",
    "in a net": "The strings were tight|bit and pulled until the strings broke",
    "on the ice": "The ice was thin|lay down flat and pushed a stick over the ice",
    "in a tree": "It was too high to jump|ran to get a ladder",
    "under a branch": "The branch was heavy|used a stick to lift it up",
    "in a thorn bush": "The thorns were sharp|bent the twigs aside, one by one",
    "in the river": "The water was fast|threw a rope and held it tight",
    "on a high rock": "There was no way down|made a pile of leaves, and {B} jumped into it",
    "in a barrel": "The lid was shut|rolled a stone against the lid until it broke",
}
RESCUE: Final = Plot(
    request="who [helps|saves] somebody stuck {trap}",
    beats=(
        "One [{weather} |][day|evening|morning], {A} was [on the way home|looking for {food}|"
        "walking with {his} {thing}]. {wsentence}. ",
        'Suddenly {he} heard a [small|weak|loud] voice. "Help! ^help!" [it called|it cried]. ',
        "~{A} [stopped and listened|looked around|was a little afraid]. "
        "[Who could it be?|Where did "
        "it come from?] ",
        "{he} ran [fast|over] and saw {newB}. {B} was stuck {trap}! {why}. \n",
        '["I cannot get out," said {B}.|"Please help me," {B} said.|"I have been here since '
        'last night," {Bhe} said.] "[Hold on|Do not move|Stay calm]!" called {A}. ',
        "~[First {A} pulled, but {he} was not strong enough|{A} called for help, but nobody came|"
        "{A} did not know what to do and ran in a circle]. ",
        "[Then {he} had an idea|{he} thought hard|But {A} did not give up]. {A} {rescue}. ",
        "[At last {B} was free!|{B} was safe!|It worked!] \n",
        '"[Thank you, you saved me|You are very brave|I thought nobody would come]," said {B}. '
        '"[I was glad to help|Anyone would do that|That is what friends are for]," said {A}. ',
        "~{B} gave {A} [some {food}|a {colour} stone] to say thank you. ",
        "{A} was " + GLAD + ". ",
    ),
    topics={name: {"trap": name, **topic("why rescue", text)} for name, text in _TRAPS.items()},
)

GIFT: Final = Plot(
    request="who looks for a gift [|for {his} {parent}]",
    beats=(
        "Tomorrow was the birthday of {his} {parent}. {A} [wanted to give something special|had no "
        "gift yet|wanted to find the best gift of all]. ",
        "[But {A} had no money.|But what could it be?|{he} thought and thought.] "
        "[{he} looked {spot1}, "
        "but found only {junk1}|{he} found {junk1} {spot1}, but that was no gift]. ",
        "~Then {he} looked {spot2}. [Only {junk2}|There was nothing but {junk2}]. ",
        "{A} was " + SAD + ". \n",
        MEET + ASK,
        '["I need a gift for my {parent}," said {A}.|"It is my {parent}\'s birthday, and I have '
        'no gift," {A} said.] ',
        '["What does your {parent} like?" asked {B}.|"A gift must come from the heart," said '
        '{B}.] ["{food}, and a good song," said {A}.|{A} thought of {food}.] ',
        OFFER + "\n",
        "[Together they made {food}|{B} gave {A} what they needed, and they made {food}]. ",
        "~They [tied a {colour} ribbon around it|put it into a {colour} box|worked until late]. ",
        'The next morning, {A} [ran|went] to {his} {parent}. "[Happy birthday|This is for you]!" '
        "{he} said. ",
        '{his} {parent} [laughed with joy|had tears of joy|was very happy]. "[Nobody makes better '
        '{food}|This is the best gift of all|You made it yourself]!" ^{A} was ' + GLAD + ". ",
    ),
    topics={food: {"food": food} for food in FOODS},
)

FRIEND: Final = Plot(
    request="who [has no friends|looks for a friend|finds a friend]",
    beats=(
        "{A} [had no friends|was often alone|wished for a friend]. [{he} played alone {spot1}|"
        "Every "
        "day {he} sat {spot1} and waited|{he} talked to {his} {thing}, but it never answered]. ",
        "One [{weather} |][day|morning], {A} [went to find a friend|wanted to find a "
        "friend|set out to look for a friend]. {wsentence}. ",
        '{he} asked {junkpeople} {spot2}. "[We have no time|We are busy|Not today]," they said. ',
        '~Then {he} asked a {colour} bird. "You cannot fly," said the bird, and away it went. ',
        "{A} was " + SAD + ". \n",
        MEET,
        '["Will you be my friend?" asked {A}.|"Nobody wants to play with me," said {A}.] '
        '["I was looking for a friend too," said {B}.|"I would like that," said {B}.|"Nobody '
        'ever asked me that," said {B}, and {Bhe} smiled.] \n',
        '~[{B} loved {food}, and so did {A}|They both loved {food}]. ["Then we shall eat together '
        'every day," said {B}. ^they shook hands|They laughed about it]. ',
        "[They played {spot3}|{A} showed {B} the {thing}, and they played with it {spot3}|They ate "
        "{food} and told each other stories]. {A} was " + GLAD + ". ",
    ),
    topics={thing: {"thing": thing} for thing in THINGS[1::2]},
)
