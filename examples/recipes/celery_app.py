"""celery --app celery_app worker               (with --max-tasks-per-child, --autoscale, ... as well)"""

from celery import Celery
from model import Model

from mppool import shared_pool

app = Celery("celery_app")
models = shared_pool("models", Model, max_size=2, isolation="process", close=Model.close)


@app.task
def predict(text: str) -> str:
    return models.apply(Model.predict, text)
