"""The words of a text in any script, without a dictionary."""

import re
import unicodedata

# Scripts that put no space between words: each of their characters counts as a word.
_UNSPACED = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"  # Han and kana
    "\u0e01-\u0e30\u0e32-\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0ec0-\u0ec6\u0edc-\u0edf\u1000-\u102a\u1780-\u17b3"
)
# Vowel signs and accents are part of a word, but `\w` leaves them out. Nothing beyond the first plane has many.
_MARKS = "".join(char for char in map(chr, range(0x300, 0xFE30)) if unicodedata.category(char) in ("Mn", "Mc"))
_PART = rf"(?:(?![{_UNSPACED}_])[\w{_MARKS}\u200c\u200d])+"
_WORD = re.compile(rf"[{_UNSPACED}][{_MARKS}]*|{_PART}(?:['’]{_PART})*")


def words(text: str) -> list[str]:
    """The words and numbers of a text, in order. A character of a script without spaces (Han, kana, Thai, Lao, Khmer,
    Burmese) is a word of its own. Linear time."""
    return _WORD.findall(text)
