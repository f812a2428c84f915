# ruff: noqa: B018
# %% [markdown]
# # Distillation in a notebook
#
# Each `# %%` begins a cell; Jupytext, VS Code and PyCharm open this file as a
# notebook. A small ResNet teaches a smaller one on scikit-learn's digits.

# %%
import sklearn.datasets

import kdjax

# %%
config = kdjax.load_config(
  'quickstart',
  {
    'method.name': 'response',
    'teacher.name': 'resnet10',
    'teacher.width': 16,
    'student.name': 'resnet10',
    'student.width': 8,
    'train.epochs': 3,
    'teacher.train.epochs': 3,
  },
)
config

# %% [markdown]
# The teacher is trained first. A stopped cell, run again, continues.

# %%
history = []
callbacks = kdjax.Callbacks(
  on_evaluation=lambda workdir, values: history.append(
    (workdir.name, values['epoch'], values['accuracy'])
  )
)
result = kdjax.train(config, 'runs/notebook', callbacks=callbacks)

# %%
for run, epoch, accuracy in history:
  print(f'{run:20} epoch {epoch:.0f}  validation accuracy {accuracy:.2%}')
print(f'test accuracy {result["best"]["test"]["accuracy"]:.2%}')

# %%
digits = sklearn.datasets.load_digits()
images = (digits.images * (255 / 16)).round().astype('uint8')[..., None]
student = kdjax.load_student('runs/notebook')
student(images[:3]).argmax(axis=-1), digits.target[:3]

# %% [markdown]
# Arrays in, a student out, without a configuration:

# %%
distiller = kdjax.Distiller(
  teacher='runs/quickstart_teacher',
  student='resnet10',
  method='dkd',
  changes={
    'student.width': 8,
    'train.epochs': 3,
    'train.batch_size': 32,
    'train.learning_rate': 0.003,
  },
)
student = distiller.fit(images, digits.target, 'runs/arrays')
distiller.result['best']['test']['accuracy']
