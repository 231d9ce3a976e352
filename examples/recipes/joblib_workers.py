"""joblib: however many workers it starts, and starts anew, they share two models."""

from joblib import Parallel, delayed
from model import Model

from mppool import shared_pool

models = shared_pool("models", Model, max_size=2, close=Model.close)


def predict(text: str) -> str:
    return models.apply(Model.predict, text)


def predict_all(texts: list[str]) -> list[str]:
    return list(Parallel(n_jobs=4)(delayed(predict)(text) for text in texts))
