"""rq worker-pool --num-workers 4    (each job has a process of its own, the models stay from job to job)"""

from model import Model

from mppool import shared_pool

models = shared_pool("models", Model, max_size=2, isolation="process", close=Model.close)


def predict(text: str) -> str:
    return models.apply(Model.predict, text)
