"""Networks of other libraries as linen modules, the kind that all else knows.

An `Adapter` makes the network anew wherever it is applied, without computing
anything, and puts the variables that it is given into it. Its `params` and
`batch_stats` have the names that they have in the network, by their path.
"""

import contextlib
import contextvars
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

Arrays = Mapping[str, Any]
"""Arrays by their path, `block1/conv/kernel`."""

# The paths of the modules to capture in a forward pass; None for all.
_NAMES: contextvars.ContextVar[Sequence[str] | None] = contextvars.ContextVar(
  'names', default=()
)


@contextlib.contextmanager
def capturing(names: Sequence[str] | None) -> Iterator[None]:
  """Has adapters capture the outputs of modules among the intermediates.

  Flax can capture those of its own modules only.

  Args:
    names: paths of modules from the outermost linen module; None for all.
  """
  token = _NAMES.set(names)
  try:
    yield
  finally:
    _NAMES.reset(token)


class Made(NamedTuple):
  """The variables of a network.

  Attributes:
    params: what is trained.
    batch_stats: what a forward pass in training changes, such as running means.
  """

  params: Arrays
  batch_stats: Arrays


class Call(NamedTuple):
  """What a forward pass is given.

  Attributes:
    made: the variables.
    images: `[batch, height, width, channels]`.
    train: whether it is one of training.
    key: for what is random in the network.
    wants: whether the output of the module with a path is to be captured.
  """

  made: Made
  images: jax.Array
  train: bool
  key: jax.Array
  wants: Callable[[str], bool]


class Adapter(nn.Module):
  """A network of another library.

  Attributes:
    label: its import path, by which messages call it.
    make: makes it.
    arguments: keywords for that, in pairs with their values.
  """

  label: str
  make: Callable[..., Any]
  arguments: tuple[tuple[str, Any], ...]

  offers: ClassVar[tuple[str, ...]] = ()
  """What it may take that only a forward pass knows."""
  base: ClassVar[type[Any]]
  """The class of its library's modules."""

  @property
  def head(self) -> str:
    """The last layer, as the network's class names it, `fc` by default."""
    made: Any = self.make
    while isinstance(made, functools.partial):
      made = made.func
    head = getattr(made, 'head', None)
    return head if isinstance(head, str) else 'fc'

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> Any:
    """Applies the network.

    Args:
      images: `[batch, height, width, channels]`.
      train: whether it is applied in training.

    Returns:
      What the network returns, an array of the logits of a batch.

    Raises:
      ValueError: the network cannot be made or called, or has variables that
        are neither trained nor statistics.
    """
    # Shapes are found with those of pixels, too.
    images = images.astype(jnp.float32)
    if self.is_initializing():
      made = self.create(self.make_rng('params'), images.shape[1:])
      self._put('params', made.params)
      self._put('batch_stats', made.batch_stats)
      return None
    random = self.has_rng('dropout')
    key = self.make_rng('dropout') if random else jax.random.key(0)
    made = Made(*map(self._flat, ('params', 'batch_stats')))
    names = _NAMES.get()

    def wants(name: str) -> bool:
      return '/'.join((*self.path, name)) in (names or ())

    call = Call(made, images, train, key, wants)
    logits, stats, outputs = self.compute(call)
    if names is None:
      # Only their names are asked for, and not all can be captured.
      outputs = dict.fromkeys(self.module_names(call))
    if self.is_mutable_collection('batch_stats'):
      self._put('batch_stats', stats)
    for name, output in outputs.items():
      self.put_variable('intermediates', name, {'__call__': (output,)})
    return logits

  def create(self, key: jax.Array, image_shape: tuple[int, ...]) -> Made:
    """Makes the variables of the network.

    Args:
      key: a key.
      image_shape: height, width and channels.

    Returns:
      The variables.
    """
    raise NotImplementedError

  def compute(self, call: Call) -> tuple[Any, Arrays, dict[str, Any]]:
    """Applies the network.

    Args:
      call: what it is applied to.

    Returns:
      Its result, the statistics after it, and the output of each module that
      was captured, by its path.
    """
    raise NotImplementedError

  def module_names(self, call: Call) -> list[str]:
    """Lists the paths of the modules that can be called."""
    raise NotImplementedError

  def construct(self, **known: Any) -> Any:
    """Makes the network; what it is given beside `arguments` if it takes it."""
    try:
      network = self.make(**keywords(self.make, known), **dict(self.arguments))
    # It is a user's, and may raise anything.
    except Exception as error:
      raise ValueError(
        f"'{self.label}' cannot be called with "
        f'{", ".join(dict(self.arguments) | keywords(self.make, known))} '
        f'({type(error).__name__}: {error})'
      ) from error
    if not isinstance(network, self.base):
      raise ValueError(
        f"'{self.label}' returns {type(network).__name__}, expected a subclass "
        f'of {self.base.__module__.partition(".")[0]}.{self.base.__name__}'
      )
    return network

  def check_call(self, network: Any, shown: str, *args: str, **kw: str) -> None:
    """Checks that a network can be called so; `shown` is how that looks."""
    try:
      if not callable(network):
        raise TypeError('it has none')
      inspect.signature(type(network).__call__).bind(network, *args, **kw)
    except TypeError as error:
      raise ValueError(
        f"'{self.label}' makes {type(network).__name__}, whose __call__ cannot "
        f'be called as {shown}: {error}'
      ) from error

  def check_states(self, others: Sequence[str], expected: str) -> None:
    """Refuses variables that are neither trained nor statistics."""
    if others:
      raise ValueError(
        f"'{self.label}' has the arrays {', '.join(others)}: expected "
        f'{expected}, since no others are trained and saved'
      )

  def _put(self, collection: str, arrays: Arrays) -> None:
    for name, tree in flax.traverse_util.unflatten_dict(
      dict(arrays), sep='/'
    ).items():
      self.put_variable(collection, name, tree)

  def _flat(self, collection: str) -> Arrays:
    tree = flax.core.unfreeze(dict(self.variables.get(collection, {})))
    return flax.traverse_util.flatten_dict(tree, sep='/')


def keywords(
  make: Callable[..., Any], offered: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns what a function takes of what it is offered.

  What a partial has set stays so.
  """
  set_already = getattr(make, 'keywords', {})
  parameters = signature(make).parameters
  takes_all = any(
    parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
  )
  return {
    name: value
    for name, value in offered.items()
    if (takes_all or name in parameters) and name not in set_already
  }


def signature(make: Callable[..., Any]) -> inspect.Signature:
  """Returns what a class, a function or a partial of either takes."""
  partial = make if isinstance(make, functools.partial) else None
  made = partial.func if partial else make
  if isinstance(made, type):
    # The metaclass of NNX takes anything, and says so.
    given = (partial.args, partial.keywords) if partial else ((), {})
    made = functools.partial(made.__init__, None, *given[0], **given[1])  # type: ignore[misc]
    return inspect.signature(made)
  return inspect.signature(make)


def subclass(kind: type[Any], call: Callable[..., Any]) -> type[Any]:
  """Makes a class whose instances are called otherwise."""
  return types.new_class(
    kind.__name__, (kind,), {}, lambda body: body.update(__call__=call)
  )
