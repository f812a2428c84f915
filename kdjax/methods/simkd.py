"""The teacher's last layer for the student, and features that fit it."""

from kdjax import losses
from kdjax.methods._base import Batch, Hyperparameter, Loss, Method, Variables


def simkd(
  *, student_feature: str = 'projector', teacher_feature: str = 'stage4'
) -> Method:
  """Trains on w · MSE between the student's projected map and the teacher's.

  Chen et al., 2022, https://arxiv.org/abs/2203.14001. The student is a model
  that ends with the teacher's last layer, such as `resnet18_simkd`, and labels
  are not used: the metric `cross_entropy` is shown only.

  Args:
    student_feature: name of the student's map.
    teacher_feature: name of the teacher's, of the same shape.
  """

  def loss(variables: Variables, batch: Batch) -> Loss:
    del variables
    distance = losses.feature_mse(
      batch.student.features[student_feature],
      batch.teacher.features[teacher_feature],
    )
    return Loss(
      batch.hyperparameters['weight'] * distance,
      {
        'feature_mse': distance,
        'cross_entropy': losses.cross_entropy(
          batch.student.logits, batch.labels
        ),
      },
    )

  return Method(
    loss,
    student_features=(student_feature,),
    teacher_features=(teacher_feature,),
    hyperparameters={'weight': Hyperparameter(1.0)},
  )
