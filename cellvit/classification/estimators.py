"""The classifiers that have a short name: logistic regression, gradient boosting, nearest neighbours."""

from typing import Any

from cellvit.classification.base import CLASSIFIERS, ClassifierRecipe, ClassWeight


@CLASSIFIERS.register("logistic")
class Logistic(ClassifierRecipe):
    """Logistic regression on standardised features: the default, best with few labels.

    Args:
        regularization: Strength of the L2 penalty, ``1 / C`` of scikit-learn. It is strong, as tens of labels meet tens
            of features that go together; probabilities are then too modest, which the calibration makes good.
        max_iter: Steps of the optimiser, at most.
    """

    def __init__(self, *, regularization: float = 1000.0, max_iter: int = 1000) -> None:
        self.regularization, self.max_iter = regularization, max_iter

    def build(self, *, class_weight: ClassWeight, seed: int) -> Any:
        """Return a pipeline of ``StandardScaler`` and ``LogisticRegression``."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = LogisticRegression(C=1 / self.regularization, max_iter=self.max_iter, class_weight=class_weight)
        return make_pipeline(StandardScaler(), model)


@CLASSIFIERS.register("gradient-boosting")
class GradientBoosting(ClassifierRecipe):
    """Gradient boosting of trees over histograms: for thousands of labels, and for features that interact.

    Args:
        max_iter: Number of trees per class.
        learning_rate: Share of each tree that is added.
    """

    def __init__(self, *, max_iter: int = 100, learning_rate: float = 0.1) -> None:
        self.max_iter, self.learning_rate = max_iter, learning_rate

    def build(self, *, class_weight: ClassWeight, seed: int) -> Any:
        """Return ``HistGradientBoostingClassifier``."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(
            max_iter=self.max_iter, learning_rate=self.learning_rate, class_weight=class_weight, random_state=seed
        )


@CLASSIFIERS.register("knn")
class NearestNeighbors(ClassifierRecipe):
    """Vote of the nearest labels among standardised features, the nearer the heavier; knows no class weights.

    Args:
        n_neighbors: How many vote; fewer where there are fewer labels.
    """

    def __init__(self, *, n_neighbors: int = 15) -> None:
        self.n_neighbors = n_neighbors

    def build(self, *, class_weight: ClassWeight, seed: int) -> Any:
        """Return a pipeline of ``StandardScaler`` and ``KNeighborsClassifier``."""
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(StandardScaler(), KNeighborsClassifier(self.n_neighbors, weights="distance"))
