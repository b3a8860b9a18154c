"""Texts and files as their programs are given them: Arabic and Hebrew without vowels, and the bytes of real files."""

import json
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench import ROOT

# Common words; a sentence is some of them in a row, which tells a network of letters nothing it has not seen.
_ARABIC = (
    "في من على إلى عن هذا هذه التي الذي كان كانت قال وقد بعد قبل بين كل يوم سنة رئيس دولة مدينة كتاب بيت رجل امرأة "
    "مدرسة طالب معلم الماء الهواء الشمس القمر كبير صغير جديد قديم جميل يعمل يكتب يقرأ ذهب وصل درس فهم الحكومة العالم "
    "العربية اللغة الناس الحياة الوقت العمل السلام الحرب الاقتصاد السياسة الثقافة التاريخ العلم الشعب المجتمع الشركة"
)
_HEBREW = (
    "של את על הוא היא זה לא כי אם גם רק כל יותר היה היתה אני אתה אנחנו הם בית ספר ילד ילדה איש אישה יום לילה שנה "
    "עיר רחוב מים אוויר שמש ירח גדול קטן חדש ישן יפה טוב רע הלך בא ראה אמר כתב קרא למד עבד ממשלה מדינה ישראל "
    "ירושלים שלום מלחמה כלכלה תרבות היסטוריה מדע עולם חיים זמן עבודה שפה עברית אנשים חברה משפחה אוכל לחם שולחן"
)
# Files of one ending that are taken: else Python's own would be most of them.
_OF_ONE_KIND = 40


def arabic(count: int, length: int, ids: Path) -> dict[str, NDArray[np.int64]]:
    """The inputs of piper's Arabic vowel writer, (count, length) letters without marks; `ids` is its table of them."""
    table = json.loads(ids.read_text(encoding="utf-8"))
    letters = np.array(
        [[table[letter] for letter in text if letter in table][:length] for text in _sentences(_ARABIC, count, length)]
    )
    return {
        "char_inputs": letters.astype(np.int64),
        "diac_inputs": np.ones_like(letters, dtype=np.int64),
        "input_lengths": np.full(count, length, dtype=np.int64),
    }


def hebrew(count: int, length: int) -> NDArray[np.float32]:
    """(count, length) letters as numbers, as piper's Hebrew vowel writer numbers them."""
    known = ["", "H", "O", "5", *" !\"'(),-.:;?", *map(chr, range(0x05D0, 0x05EB))]
    regular = dict(zip("ךםןףץ", "כמנפצ", strict=True))
    rows = [
        [known.index(regular.get(letter, letter)) for letter in text] for text in _sentences(_HEBREW, count, length)
    ]
    return np.array([row[:length] for row in rows], dtype=np.float32)


def file_bytes(count: int, *, part: int = 1024, block: int = 4096, padding: int = 256) -> NDArray[np.int32]:
    """(count, 2 * part): the first and the last bytes of real files, as magika reads them."""
    rows = []
    for path in _files(count):
        content = path.read_bytes()
        first, last = (content.strip(),) * 2 if len(content) <= block else (content[:block].lstrip(), content[-block:])
        head, tail = list(first[:part]), list(last.rstrip()[-part:])
        rows.append(head + [padding] * (part - len(head)) + [padding] * (part - len(tail)) + tail)
    return np.array(rows, dtype=np.int32)


def _sentences(words: str, count: int, length: int) -> list[str]:
    random = np.random.default_rng(4)
    return [" ".join(random.choice(words.split(), size=length)) for _ in range(count)]


def _files(count: int) -> list[Path]:
    """Files of many kinds: of this project, of Python and its packages, and of the system."""
    roots = [ROOT, Path(sysconfig.get_paths()["purelib"]), Path(sysconfig.get_paths()["stdlib"]), Path("/usr/share")]
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for root in (*roots, Path(sys.base_prefix) / "include"):
        for path in sorted(root.rglob("*")):
            if len(by_kind[path.suffix]) < _OF_ONE_KIND and path.is_file() and path.stat().st_size >= 64:
                by_kind[path.suffix].append(path)
    random = np.random.default_rng(5)
    # A few of the kinds with one or two files alone, then turns: no ending makes more of them than another.
    found = [paths[turn] for turn in range(_OF_ONE_KIND) for paths in by_kind.values() if turn < len(paths)][:count]
    return [found[index] for index in random.permutation(len(found))]
