"""Common words that the stories do not use, so that the tokenizer has pieces for other text too."""

from typing import Final

_WORDS: Final = """
able about above accept across act action active actually address adult advice affect again
against agree air airport allow almost already although among amount angle animal answer
anything appear apply argument army around arrive article artist assistant attack attention
author available average avoid bank base basic battle beautiful because become begin behaviour
believe benefit beside between beyond billion blood board body border bottom brain branch bread
brief bring brother brought budget build business buy calculate called camera capital car card
career carry case cause cell center century certain chair chance change character charge cheap
check child choice choose church circle citizen city claim class clear client climate code
collect college colour combine come common community company compare complete computer concept
condition connect consider contain content context continue contract control convert cook copy
correct cost could count country couple course court cover create crime culture current customer
cycle damage danger data date daughter dead deal death debate decade decide deep define degree
delete deliver demand describe design detail develop device difference different difficult
digital dinner direction director discover discuss disease distance divide doctor document
dollar domain double doubt draw drive driver during early earth easy economy edge education
effect effort eight either election electric element else email empty energy engine enjoy enough
enter entire environment equal error especially establish even evening event ever evidence exact
example except exchange exist expect experience expert explain express extra extract face fact
factor fail fall false family famous fast fear feature field fifteen fifty fight figure file
final finance find fine finger finish first five flight floor focus follow foot football force
foreign forget form former forty forward four free frequent fresh fruit full function further
future game general generate glass global goal gold good government grade grammar grand great
group growth guess guide hair half hand handle happen hard health heat height help here history
holiday hope hospital hotel hour house however human hundred husband idea identify image imagine
important improve include increase indeed index industry information input inside instead
instruction interest international internet introduce island issue item join journey judge
keyword kilometre kitchen knowledge label language large last late later laugh launch law lead
leader learn least leave left legal length letter level library life light likely limit line
link list listen literature local location logic long look loss love machine magazine main major
make manage manager market marriage match material mathematics matter maximum mean measure media
medical meeting member memory mention message metal method metre middle might million mind
minimum minute mission mistake model modern moment money month mother motion move movement movie
multiply music name nation national natural nature near necessary need negative network never
news newspaper next nice night nine none normal north note nothing notice number object office
official often once open operation opinion option orange order organise origin other output
outside over page paper paragraph parent park part particular party pass past patient pattern
peace people percent perfect perhaps period person phone phrase physical picture piece place
plan planet plant player please point police policy political poor popular population position
positive possible power practice prefer prepare present president press prevent previous price
print private probably problem process produce product program project property protect prove
provide public purpose quality quarter question quick quickly quite radio raise random range
rate rather reach reaction reader reading ready real reason receive recent recipe record reduce
refer region regular related relation remain remember remove repeat replace reply report
represent request require research resource respond response rest result return review right
road role room rule safe same sample save scale scene schedule science scientist score screen
search season second secret section security select sell send sense sentence separate sequence
series serious server service seven several share short should show side sign signal similar
simple since sister situation size social society software solution solve something sometimes
soon sorry sort sound source south space speak special species speech speed spell spend sport
square staff stage standard start state statement station step still stop store story straight
strategy street strength string strong structure student study style subject subtract success
suggest summary summer supply support sure surface surprise symbol system table target task
teach teacher team technology television temperature ten term test text thank theory thing think
third thirty thousand three through time title today together tomorrow tonight tool topic total
touch toward town trade traffic train training translate travel treat tree trouble true trust
truth turn twelve twenty type under understand union unit university until update upper use user
usual value various version very video view village visit voice volume wait walk wall want war
watch water weather week weight welcome west whether which while whole whose width window winter
within without woman wonder word work worker world worry would write wrong year yesterday yes
young your zero
Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June
July August September October November December London Paris Berlin Madrid Rome Europe Africa
America Asia English French German Spanish Italian Chinese
"""
COMMON_WORDS: Final = tuple(_WORDS.split())
