"""Files of predictions against a case worked out by hand."""

import csv
import pathlib

import numpy as np
import pytest

from kdjax.evaluation import example_files

CLASSES = ['cat, tabby', 'père "noël"']
# Probabilities at the last epoch (3/4, 1/4) and (1/5, 4/5), the teacher's
# (1/8, 7/8) and (3/5, 2/5).
STUDENT = {
  'labels': np.int32([1, 1]),
  'best': np.log(np.float32([[1, 1], [9, 1]])),
  'last': np.log(np.float32([[3, 1], [1, 4]])),
}
TAUGHT = STUDENT | {'teacher': np.log(np.float32([[1, 7], [3, 2]]))}

HEADER = ['index', 'label', 'prediction', 'confidence', 'loss']
TEACHER_HEADER = ['teacher_prediction', 'teacher_confidence']


def read_csv(path):
  with path.open(encoding='utf-8', newline='') as file:
    header, *rows = csv.reader(file)
  return header, rows


def test_csv_names_the_classes(tmp_path):
  path = tmp_path / 'new' / 'out.csv'
  example_files.write(path, CLASSES, TAUGHT, 'last')
  header, rows = read_csv(path)
  assert header == HEADER + TEACHER_HEADER
  cat, pere = CLASSES
  assert [(row[:3], row[5]) for row in rows] == [
    (['0', pere, cat], pere),
    (['1', pere, pere], cat),
  ]
  np.testing.assert_allclose(
    [[float(row[column]) for column in (3, 4, 6)] for row in rows],
    [[3 / 4, np.log(4), 7 / 8], [4 / 5, np.log(5 / 4), 3 / 5]],
    rtol=1e-6,
  )


def test_npz_has_the_same_columns_and_the_logits(tmp_path):
  path = tmp_path / 'new' / 'out.npz'
  example_files.write(path, CLASSES, TAUGHT, 'last')
  with np.load(path) as file:
    arrays = dict(file)
  assert set(arrays) == {
    *(*HEADER, *TEACHER_HEADER),
    *('class_names', 'logits', 'teacher_logits'),
  }
  assert arrays['class_names'].tolist() == CLASSES
  np.testing.assert_array_equal(arrays['logits'], TAUGHT['last'])
  np.testing.assert_array_equal(arrays['teacher_logits'], TAUGHT['teacher'])
  assert arrays['index'].tolist() == [0, 1]
  assert arrays['label'].tolist() == [1, 1]
  assert arrays['prediction'].tolist() == [0, 1]
  assert arrays['teacher_prediction'].tolist() == [1, 0]
  np.testing.assert_allclose(arrays['loss'], np.log([4, 5 / 4]), rtol=1e-6)


def test_without_a_teacher_there_are_no_columns_of_one(tmp_path):
  example_files.write(tmp_path / 'out.csv', CLASSES, STUDENT)
  header, rows = read_csv(tmp_path / 'out.csv')
  assert header == HEADER
  # At the best epoch, (1/2, 1/2) and (9/10, 1/10).
  np.testing.assert_allclose(
    [float(row[3]) for row in rows], [1 / 2, 9 / 10], rtol=1e-6
  )
  example_files.write(tmp_path / 'out.npz', CLASSES, STUDENT)
  with np.load(tmp_path / 'out.npz') as file:
    assert set(file) == {*HEADER, 'class_names', 'logits'}


@pytest.mark.parametrize('name', ['out.json', 'out', 'out.csv.gz'])
def test_another_kind_of_file_is_refused(tmp_path, name):
  path: pathlib.Path = tmp_path / 'new' / name
  with pytest.raises(ValueError, match=r'ends in \.csv or \.npz'):
    example_files.prepare(path)
  assert not path.parent.exists()
