"""Files of names as editors write them."""

import pytest

from kdjax.data import class_names


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_names_of_classes_are_read_as_editors_write_them(
  encoding, end, tmp_path
):
  path = tmp_path / 'names.txt'
  text = f'cat {end}père noël{end}{end}'
  path.write_bytes(text.encode(encoding))
  assert class_names.read(path) == ['cat', 'père noël']


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'cat\n\ndog\n', r"line 2, is '': expected the name of a class"),
    (b'cat\ndog\ncat', r"names 'cat' in line 1 and in line 3"),
    (b'caf\xe9\ndog', r'is no text in UTF-8 \(byte 3\): save it as UTF-8'),
    (b'a\0\nb\0', r"line 1, is 'a\\x00': expected the name"),
  ],
)
def test_other_files_of_names_are_refused(content, message, tmp_path):
  path = tmp_path / 'names.txt'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    class_names.read(path)
