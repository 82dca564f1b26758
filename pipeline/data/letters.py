"""The letters of languages: how well a decoded text fits the language that it fits best.

A wrong encoding gives letters that no language has together, signs inside of words, or words of two scripts.
"""

import math
import re
from collections import Counter
from functools import cache

# The letters beyond ASCII of each language, the most frequent ones first.
LANGUAGES = {
    "French": "éèàêçôîûùâëïœÿæ",
    "German": "üäöß",
    "Spanish": "óíáñéúü",
    "Portuguese": "ãçéáóõêíúâôà",
    "Italian": "èàòùéìîó",
    "Catalan": "àóèéíçòúïü",
    "Finnish": "äöåšž",
    "Swedish": "äåöé",
    "Danish": "æøåé",
    "Norwegian": "åøæéòô",
    "Icelandic": "áðíþéóæöúý",
    "Dutch": "ëéïèöüá",
    "English": "éèêïñôöüçâ",
    "Polish": "łąęóżśćńź",
    "Czech": "íáěéýřčšžůúťňóď",
    "Slovak": "áíéýčšžúťľôóňďäĺŕ",
    "Hungarian": "áéöíóőüúű",
    "Romanian": "ăîâşţșț",
    "Croatian": "čšžćđ",
    "Albanian": "ëç",
    "Turkish": "ıüşçğöâîû",
    "Lithuanian": "ėšųžįčūąę",
    "Latvian": "āīēšūžņļģčķ",
    "Estonian": "äõüöšž",
    "Greek": "αοιετσνηυρπκμλςγδάέήίόύώθφχβξζψϊϋΐΰ",
    "Russian": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
    "Ukrainian": "оаинтірвескдлумпязьбгйчхжшцюєїфщґ",
    "Bulgarian": "аоиентрсвлкдпмзгяъубчщйжхцшфюь",
    "Serbian": "аиоенрстјувкдпмлзгбцчшњљжћхђфџ",
    "Hebrew": "יוהלאתרבמשנעםדחקפגטסכזןצךףץ",
    "Arabic": "اليمنوترعبدسفهكقحجأشصطخةضىذثزغإءئظؤآ",
    "Persian": "ایرندمهوتبسشکزگفخلقعجپحطصچضغذثآظژ",
}
SIGNS = "“”„‚‘’–—…«»‹›€£§°·•©®™¿¡ºª²³½¼¾×±µ´\xa0"  # signs that texts in all languages have
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
# Characters at places where no language has them:
INSIDE = re.compile(r"(?<=[^\W\d_])[^\w\s\x00-\x7f’·´](?=[^\W\d_])")  # a sign between two letters
LATIN = "A-Za-z\u00c0-\u024f"
OTHER = "\u0370-\u06ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af"  # Greek, Cyrillic, Hebrew, Arabic, East Asian
MIXED = re.compile(f"[{LATIN}][{OTHER}]|[{OTHER}][{LATIN}]")
PAIR = re.compile(r"(?=([^\W\d_]{2}))")
EAST_ASIAN = re.compile("[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]")
# Surprise in nats, the negative logarithm of a probability:
EXPONENT = 0.6  # of the frequencies of letters by rank
SIGN = 4.0  # of a usual sign
OF_TWO_BYTES = 7.5  # of a character of East Asian languages, which have thousands
MISFIT = 9.0  # of a character that a language does not have, or of one at a wrong place


def misfit(text: str) -> float:
    """Return the surprise of a text's characters beyond ASCII, in nats, in the language that fits best."""
    beyond = BEYOND_ASCII.findall(text)
    counts = Counter(character.lower()[0] for character in beyond)
    of_languages = [_surprise(counts, language) for language in LANGUAGES]
    return min(of_languages) + MISFIT * _count_misplaced(text)


def _surprise(counts: Counter[str], language: str) -> float:
    surprises = _surprises(language)
    total = 0.0
    for character, count in counts.items():
        usual = OF_TWO_BYTES if EAST_ASIAN.match(character) else MISFIT
        total += count * surprises.get(character, usual)
    return total


@cache
def _surprises(language: str) -> dict[str, float]:
    """Return the surprise of the letters of a language, whose frequencies fall with their rank, and of usual signs."""
    letters = LANGUAGES[language]
    weights = [1 / rank**EXPONENT for rank in range(1, len(letters) + 1)]
    total = sum(weights)
    surprises = dict.fromkeys(SIGNS, SIGN)
    for letter, weight in zip(letters, weights, strict=True):
        surprises[letter] = math.log(total / weight)
    return surprises


def _count_misplaced(text: str) -> int:
    """Count signs inside of words, letters next to one of another script, and large letters after small ones."""
    count = len(INSIDE.findall(text)) + len(MIXED.findall(text))
    for pair in PAIR.findall(text):
        first, second = pair
        if not pair.isascii() and first.islower() and second.isupper():
            count += 1
    return count
