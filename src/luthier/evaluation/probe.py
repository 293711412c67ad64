"""A small multiple-choice test of general knowledge, made for this project: about 400 questions with four options each.

It exists so that forgetting can be measured on any machine without a download. The facts are written down below;
questions and wrong options are drawn from them by a fixed rule, so every copy of the test is the same. A model of 135
million parameters is well above chance (0.25) and well below 1 on it; it ranks no models and is no benchmark.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question; `answer` is the index of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int
    category: str = ""
    id: str = ""


def questions() -> list[Question]:
    """The whole test, categories interleaved, so that its first n questions are a fair sample of it."""
    categories = [
        list(category)
        for category in (
            _table("capital", "What is the capital of {}?", CAPITALS),
            _table("opposite", 'What is the opposite of "{}"?', OPPOSITES),
            _table("young", "What is a young {} called?", YOUNG),
            _table("symbol", "What is the chemical symbol of {}?", SYMBOLS),
            _table("continent", "On which continent is {}?", CONTINENTS),
            _table("color", "What color is {}?", COLORS),
            _table("tool", "What do you use to {}?", TOOLS),
            _table("effect", "What happens {}?", EFFECTS),
            _forms("plural", 'What is the plural of "{}"?', PLURALS, _wrong_plurals),
            _forms("past", 'What is the past tense of "{}"?', PASTS, _wrong_pasts),
            _arithmetic(),
            _same_kind(),
        )
    ]
    longest = max(map(len, categories))
    return [category[i] for i in range(longest) for category in categories if i < len(category)]


def _pairs(text: str) -> list[tuple[str, str]]:
    entries = (entry.split(":") for entry in text.replace("\n", " ").split(";"))
    return [(entry[0].strip(), entry[1].strip()) for entry in entries]


def _question(category: str, number: int, text: str, right: str, wrong: Sequence[str]) -> Question:
    choices = [right, *wrong]
    random.Random(f"order/{category}/{number}").shuffle(choices)
    return Question(text, tuple(choices), choices.index(right), category, f"{category}-{number:02d}")


def _table(category: str, form: str, facts: str) -> Iterator[Question]:
    """One question a fact; wrong options are the right ones of other facts."""
    pairs = _pairs(facts)
    answers = sorted({answer for _, answer in pairs})
    for number, (subject, right) in enumerate(pairs):
        others = [answer for answer in answers if answer != right]
        wrong = random.Random(f"{category}/{subject}").sample(others, 3)
        yield _question(category, number, form.format(subject), right, wrong)


def _forms(category: str, form: str, facts: str, mistakes: Callable[[str, str], list[str]]) -> Iterator[Question]:
    """One question a word; wrong options are what a learner might say."""
    for number, (word, right) in enumerate(_pairs(facts)):
        wrong = [mistake for mistake in dict.fromkeys(mistakes(word, right)) if mistake != right]
        yield _question(category, number, form.format(word), right, wrong[:3])


def _wrong_plurals(word: str, plural: str) -> list[str]:
    return [word + "s", plural + "s", word + "es", word + "en", plural + "es"]


def _wrong_pasts(verb: str, past: str) -> list[str]:
    return [verb + ("d" if verb.endswith("e") else "ed"), past + "ed", verb + "s", verb + "t", past + "s"]


def _arithmetic() -> Iterator[Question]:
    """Sums, differences and products small enough to know by heart; wrong options are near."""
    draw = random.Random("arithmetic")
    seen: set[str] = set()
    while len(seen) < 36:
        a, b = draw.randint(2, 12), draw.randint(2, 12)
        kind = len(seen) % 3
        text, right = [
            (f"What is {a} plus {b}?", a + b),
            (f"What is {a + b} minus {b}?", a),
            (f"What is {a} times {b}?", a * b),
        ][kind]
        if text in seen:
            continue
        wrong = draw.sample([right + step for step in (-5, -3, -2, -1, 1, 2, 4, 10) if right + step > 0], 3)
        yield _question("arithmetic", len(seen), text, str(right), [str(number) for number in wrong])
        seen.add(text)


def _same_kind() -> Iterator[Question]:
    """Three of a kind are named; one option is of that kind too."""
    kinds = [(kind, members.split()) for kind, members in _pairs(KINDS)]
    for number in range(3 * len(kinds)):
        draw = random.Random(f"kind/{number}")
        kind, members = kinds[number % len(kinds)]
        named = draw.sample(members, 4)
        others = draw.sample([entry for entry in kinds if entry[0] != kind], 3)
        wrong = [draw.choice([member for member in listed if member not in members]) for _, listed in others]
        yield _question(
            "kind", number, f"Which of these is {kind}, like {named[0]}, {named[1]} and {named[2]}?", named[3], wrong
        )


CAPITALS = """
France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; England: London; Ireland: Dublin;
Austria: Vienna; Switzerland: Bern; Belgium: Brussels; the Netherlands: Amsterdam; Denmark: Copenhagen; Sweden:
Stockholm; Norway: Oslo; Finland: Helsinki; Poland: Warsaw; Hungary: Budapest; Greece: Athens; Russia: Moscow; Turkey:
Ankara; Egypt: Cairo; Kenya: Nairobi; Nigeria: Abuja; Ethiopia: Addis Ababa; Japan: Tokyo; China: Beijing; India: New
Delhi; South Korea: Seoul; Thailand: Bangkok; Vietnam: Hanoi; Iran: Tehran; Iraq: Baghdad; Cuba: Havana; Mexico:
Mexico City; Canada: Ottawa; the United States: Washington, D.C.; Brazil: Brasilia; Argentina: Buenos Aires; Chile:
Santiago; Peru: Lima; Australia: Canberra; New Zealand: Wellington
"""

OPPOSITES = """
hot: cold; big: small; tall: short; fast: slow; up: down; left: right; open: closed; early: late; light: dark; happy:
sad; rich: poor; young: old; strong: weak; wet: dry; full: empty; hard: soft; loud: quiet; clean: dirty; thick: thin;
wide: narrow; deep: shallow; heavy: weightless; sweet: bitter; brave: cowardly; true: false; first: last; north:
south; east: west; day: night; summer: winter; love: hate; war: peace; friend: enemy; buy: sell; win: lose; remember:
forget; arrive: depart; begin: end; push: pull; accept: refuse
"""

YOUNG = """
dog: a puppy; cat: a kitten; cow: a calf; horse: a foal; sheep: a lamb; pig: a piglet; goat: a kid; duck: a duckling;
goose: a gosling; swan: a cygnet; frog: a tadpole; deer: a fawn; bear: a cub; kangaroo: a joey; chicken: a chick; owl:
an owlet; eagle: an eaglet; human: a baby; butterfly: a caterpillar; fish: a fry; hare: a leveret; spider: a
spiderling
"""

SYMBOLS = """
hydrogen: H; helium: He; carbon: C; nitrogen: N; oxygen: O; sodium: Na; magnesium: Mg; aluminum: Al; silicon: Si;
phosphorus: P; sulfur: S; chlorine: Cl; potassium: K; calcium: Ca; iron: Fe; copper: Cu; zinc: Zn; silver: Ag; tin:
Sn; gold: Au; mercury: Hg; lead: Pb; uranium: U; iodine: I; nickel: Ni; neon: Ne; lithium: Li; fluorine: F; platinum:
Pt; titanium: Ti
"""

CONTINENTS = """
France: Europe; Japan: Asia; Kenya: Africa; Brazil: South America; Canada: North America; Germany: Europe; India:
Asia; Nigeria: Africa; Peru: South America; Mexico: North America; Poland: Europe; China: Asia; Ghana: Africa;
Argentina: South America; the United States: North America; Spain: Europe; Thailand: Asia; Morocco: Africa; Chile:
South America; Cuba: North America; Norway: Europe; Vietnam: Asia; Ethiopia: Africa; Colombia: South America; Italy:
Europe; Nepal: Asia; Tanzania: Africa; Bolivia: South America; Greece: Europe; Mongolia: Asia; Zambia: Africa;
Ecuador: South America; Sweden: Europe; Pakistan: Asia; Uganda: Africa; Venezuela: South America
"""

COLORS = """
a ripe banana: yellow; grass in spring: green; fresh snow: white; coal: black; a clear sky at noon: blue; blood: red;
a carrot: orange; milk: white; a lemon: yellow; an eggplant: purple; chocolate: brown; a ripe strawberry: red; an
elephant: gray; a ruby: red; an emerald: green; a sapphire: blue; a flamingo: pink; a crow: black; a polar bear:
white; lettuce: green; a pumpkin: orange; a fire truck: red; the yolk of an egg: yellow; an old tree trunk: brown; a
ripe tomato: red; spinach: green; salt: white; lavender: purple
"""

TOOLS = """
cut paper: scissors; drive in a nail: a hammer; turn a screw: a screwdriver; saw wood: a saw; dig a hole: a shovel;
sweep the floor: a broom; measure temperature: a thermometer; tell the time: a clock; see distant stars: a telescope;
see tiny cells: a microscope; sew a button: a needle and thread; write on a blackboard: chalk; open a locked door: a
key; boil water: a kettle; iron a shirt: an iron; brush your teeth: a toothbrush; comb your hair: a comb; take a
photograph: a camera; find north: a compass; weigh flour: a scale; draw a straight line: a ruler; eat soup: a spoon;
cut bread: a knife; stay dry in the rain: an umbrella; wash your hands: soap; dry yourself: a towel; light a candle: a
match; catch fish: a net; paint a wall: a brush; tighten a bolt: a wrench; water the plants: a watering can; listen to
a heartbeat: a stethoscope; climb onto a roof: a ladder; erase pencil marks: an eraser
"""

EFFECTS = """
to ice when it is heated: it melts; to water when it is heated to one hundred degrees: it boils; to water when it gets
very cold: it freezes; to a plant that never gets water: it withers; to a glass that falls on a stone floor: it
breaks; to bread that stays too long in the toaster: it burns; to iron that stays wet for months: it rusts; to sugar
that is stirred into hot tea: it dissolves; to a balloon that is pricked with a pin: it bursts; to a stone that is
thrown into a lake: it sinks; to a cork that is thrown into a lake: it floats; to milk that stands in the sun for
days: it turns sour; to a candle in a strong wind: it goes out; to wet clothes that hang in the sun: they dry; to the
days when summer turns into winter: they get shorter; to a ball that is thrown into the air: it falls back down; to
your shadow when the lamp is switched off: it disappears; to dough with yeast in a warm place: it rises; to leaves of
many trees in autumn: they change color; to a metal spoon in a pot of boiling soup: it gets hot; to a phone whose
battery is empty: it switches off; to a rubber band that is pulled: it stretches; to a seed that is planted and
watered: it sprouts; to an ice cream that is left in the sun: it drips
"""

PLURALS = """
mouse: mice; child: children; foot: feet; tooth: teeth; goose: geese; man: men; woman: women; ox: oxen; person:
people; knife: knives; wife: wives; leaf: leaves; wolf: wolves; half: halves; shelf: shelves; thief: thieves; loaf:
loaves; life: lives; city: cities; baby: babies; lady: ladies; story: stories; country: countries; family: families;
crisis: crises; analysis: analyses; cactus: cacti; fungus: fungi; phenomenon: phenomena; criterion: criteria; potato:
potatoes; tomato: tomatoes; hero: heroes; calf: calves
"""

PASTS = """
go: went; see: saw; eat: ate; take: took; give: gave; come: came; run: ran; write: wrote; speak: spoke; break: broke;
bring: brought; buy: bought; think: thought; teach: taught; catch: caught; find: found; fly: flew; know: knew; grow:
grew; throw: threw; begin: began; drink: drank; swim: swam; sing: sang; sleep: slept; keep: kept; leave: left; lose:
lost; make: made; sell: sold; stand: stood; tell: told; wear: wore; win: won; choose: chose; drive: drove; forget:
forgot
"""

KINDS = """
a fruit: apple pear plum cherry banana grape peach mango; an animal: horse tiger rabbit sheep monkey camel goat zebra;
a color: red green blue yellow purple orange brown pink; a tool: hammer saw drill wrench pliers chisel axe shovel; a
vehicle: car bus train bicycle truck ship airplane tram; a musical instrument: piano violin guitar flute trumpet drum
harp cello; a piece of clothing: shirt coat hat scarf skirt glove sock dress; a month: January March April June July
August October May; a part of the body: arm leg nose ear knee hand elbow shoulder; a bird: eagle sparrow owl parrot
duck robin crow swan; a metal: iron copper gold silver tin zinc lead nickel; a piece of furniture: table chair sofa
bed desk shelf wardrobe stool
"""
