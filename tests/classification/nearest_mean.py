"""A classifier of somebody's own, as scikit-learn wants one."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class NearestMean(ClassifierMixin, BaseEstimator):
    def __init__(self, power=1.0):
        self.power = power

    def fit(self, X, y):  # noqa: N803
        self.classes_ = np.unique(y)
        self.means_ = np.stack([X[y == kind].mean(axis=0) for kind in self.classes_])
        return self

    def predict_proba(self, X):  # noqa: N803
        away = np.linalg.norm(X[:, None] - self.means_, axis=2) + 1e-6
        return away**-self.power / (away**-self.power).sum(axis=1, keepdims=True)

    def predict(self, X):  # noqa: N803
        return self.classes_[self.predict_proba(X).argmax(axis=1)]
