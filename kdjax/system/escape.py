"""Text that kdjax did not write, made fit for where it is shown.

Names of classes, files and runs, and settings, may hold anything: what steers a
terminal, is markup in a page, mathematics in a figure or a formula in a
spreadsheet, or is no Unicode (Python stands bytes of a file's name that are not
UTF-8 for by lone surrogates). One function for each medium.
"""

import html as html_lib
import os
import re
from collections.abc import Iterable
from typing import Any

# What a spreadsheet takes for the beginning of a formula, the full-width forms
# too; and what stood for itself there.
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n＝＋－＠]")

# Not an underscore within a word, which is none in CommonMark.
# What LaTeX does not take for itself.
_LATEX = {
  **{character: f'\\{character}' for character in '&%$#_{}'},
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  **{character: f'${character}$' for character in '<>|'},
  '±': r'$\pm$',
  # After the end of a row they would be arguments of it.
  **{character: f'{{{character}}}' for character in '[*'},
  '−': '$-$',
}
_LATIN = 'ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿ'

_MARKUP = re.compile(r'[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])')


def printable(text: str) -> str:
  """Escapes what ends a line, steers a terminal or is no Unicode.

  The result is one line, with escapes as in Python's string literals.
  """
  return ''.join(
    character
    if character.isprintable()
    else character.encode('unicode_escape').decode()
    for character in text
  )


def lines(text: str) -> str:
  """Escapes the same in each line, such as those of an error or a table."""
  return '\n'.join(map(printable, text.split('\n')))


def unicode(text: str) -> str:
  """Escapes what no encoding of Unicode can hold, no more: for JSON."""
  return text.encode(errors='backslashreplace').decode()


def figure(text: str) -> str:
  """Escapes text for Matplotlib, which takes what is between dollars for TeX.

  Args:
    text: such as the name of a class; an end of a line is one in the figure.

  Returns:
    Text that is shown as `lines` returns it.
  """
  return lines(text).replace('$', r'\$')


def html(text: str) -> str:
  """Escapes text for HTML, within elements and quoted attributes."""
  return html_lib.escape(lines(text))


def markdown(text: str) -> str:
  """Escapes text for a line of Markdown or a cell of its tables."""
  return _MARKUP.sub(r'\\\g<0>', printable(text))


def latex(text: str) -> str:
  """Escapes text for a line of LaTeX, outside of mathematics.

  Letters that not every font of pdfLaTeX has are shown as `printable` shows
  what cannot be printed.
  """
  escaped = ''.join(
    _LATEX[character]
    if character in _LATEX
    else character
    if character.isascii() or character in _LATIN
    else _LATEX['\\'] + character.encode('unicode_escape').decode()[1:]
    for character in printable(text)
  )
  # Two of them would be another character.
  return re.sub(r"(?<=[-'`,?!])(?=[-'`,])", '{}', escaped)


def csv_cell(value: Any) -> Any:
  """Escapes a cell of CSV.

  Text that a spreadsheet would take for a formula is preceded by `'`, as OWASP
  advises (https://owasp.org/www-community/attacks/CSV_Injection); one that is
  such text after any number of `'` is, too, so that a reader can undo it:
  `re.sub("^'(?='*[=+@-])", '', cell)`.

  Args:
    value: text or a path; or a number, which stays as it is.

  Returns:
    What to write.
  """
  if not isinstance(value, str | os.PathLike):
    return value
  text = printable(os.fspath(value))
  return f"'{text}" if _FORMULA.match(text) else text


def listed(names: Iterable[object], most: int = 10) -> str:
  """Lists names, or the first of them and how many more there are."""
  # Names come from the file: of any length, and with any characters.
  texts = [
    text if text.isprintable() and len(text) <= 200 else repr(text[:200])
    for text in map(str, names)
  ]
  more = f' and {len(texts) - most} more' if len(texts) > most else ''
  return ', '.join(texts[:most]) + more
